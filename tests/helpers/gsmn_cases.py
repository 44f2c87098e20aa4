"""GSMN on golden data and on random inputs."""

from pathlib import Path
from types import SimpleNamespace

import torch
from tiny import SHARED, shared

import data
from modules.layers import l2norm
from systems.options import completed
from vocab import deserialize_vocab

OWN = Path(__file__).resolve().parents[1] / "golden" / "gsmn"


def golden(name):
    """Numbers of the released code: the full set where it is, else the part kept in tests/golden."""
    return SHARED / "golden/gsmn" / name if (SHARED / "golden/gsmn").exists() else OWN / name


def golden_or_skip(name):
    return golden(name) if golden(name).exists() else shared(f"golden/gsmn/{name}")


def dataset(split, is_sparse=True):
    opt = completed(SimpleNamespace(data_path=golden("."), img_dim=64, is_sparse=is_sparse))
    return data.PrecompDataset(split, "f30k_precomp", deserialize_vocab(golden("f30k_precomp_vocab.json")), opt)


def small_opt(**changes):
    opt = SimpleNamespace(
        img_dim=12,
        vocab_size=20,
        word_dim=6,
        embed_size=24,
        num_layers=1,
        bi_gru=True,
        no_imgnorm=False,
        no_txtnorm=False,
        num_block=4,
        feat_dim=4,
        hid_dim=16,
        out_dim=1,
        lambda_softmax=9.0,
        is_sparse=False,
        margin=0.2,
        max_violation=False,
        propagation="self",
    )
    return completed(opt, **changes)


def random_case(regions=5, lengths=(3, 1, 7, 3, 2), images=4, width=24, seed=0):
    rng = torch.Generator().manual_seed(seed)
    unit = lambda *shape: l2norm(torch.randn(*shape, generator=rng))  # noqa: E731
    corners = torch.rand(images, regions, 4, generator=rng)
    words = [unit(n, width) for n in lengths]
    depends = [[[0, 1]] + [[j, (j * 2 + 1) % (n + 1)] for j in range(n)] + [[0, 0]] for n in lengths]
    return unit(images, regions, width), words, corners, depends, list(lengths)
