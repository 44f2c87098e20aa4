"""Models with random weights, written as checkpoints."""

import argparse

import torch

import model
from checkpoints import checkpoint
from vocab import load_vocab

OPT = {
    "model": "gsmn",
    "data_name": "tiny_precomp",
    "img_dim": 8,
    "word_dim": 8,
    "embed_size": 32,
    "num_layers": 1,
    "bi_gru": True,
    "no_imgnorm": False,
    "no_txtnorm": False,
    "num_block": 4,
    "feat_dim": 4,
    "hid_dim": 16,
    "out_dim": 1,
    "lambda_softmax": 9.0,
    "margin": 0.2,
    "max_violation": False,
    "boxes": "normalized",
    "batch_size": 16,
    "workers": 0,
}

VSRN = {
    "model": "vsrn",
    "measure": "cosine",
    "use_abs": False,
    "dim_hidden": 8,
    "dim_word": 8,
    "max_len": 12,
    "rnn_type": "gru",
    "bidirectional": 0,
    "input_dropout_p": 0.0,
    "boxes": "none",
}  # changes that make OPT one of VSRN


def write_model(tiny, path, **changes):
    """A checkpoint of random weights for the tiny data, and the model in it."""
    words = load_vocab(tiny.vocab_path, tiny.data_name)
    own = {"data_path": tiny.data_path, "vocab_path": tiny.vocab_path, "vocab_size": len(words)}
    opt = argparse.Namespace(**{**OPT, **own, "is_sparse": False, "propagation": "self", **changes})
    torch.manual_seed(0)
    net = model.build_model(opt).eval()
    checkpoint.save_checkpoint(
        {
            "epoch": 1,
            "model": net.state_list(),
            "best_rsum": 0.0,
            "opt": opt,
            "Eiters": 1,
            "vocab": checkpoint.words(words),
        },
        path,
    )
    return net, opt, words
