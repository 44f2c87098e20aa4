"""What a user can do wrong, over all scripts and both models: one line that names it, exit code 2, nothing written."""

import numpy as np
import pytest
import spoil
from spoil import BEST, CAPS, IDS, TINY, all_of, array, bytes_of, cut, flag, nothing, put, remove, weight

WORDS = "vocab/tiny_precomp_vocab.json"
no_boxes_no_sizes = all_of(flag(BEST, "boxes", "none"), remove("test_ims_size.npy"))
large_id = bytes_of(IDS, lambda content: content.replace(b",2\n", b",99\n", 1))


# title: (script and flags beside its usual ones, what is spoilt, how the message begins, a word of it)
CASES = {
    # ---- train.py: files
    "no features": ("train", remove("train_ims.npy"), "train_ims.npy", "such"),
    "neither ids nor captions": ("train", remove(IDS, CAPS), "train_caps.txt", "such"),
    "features cut off": ("train", cut(f"{TINY}/train_ims.npy"), "train_ims.npy", "truncated"),
    "features of another width": ("train", array("train_ims", lambda x: x[:, :, :7]), "dev_ims.npy", "features"),
    "NaN in features": ("train", array("train_ims", put(np.nan, 6, 1, 2)), "train_ims.npy, row 6", "infinity"),
    "id beyond the vocabulary": ("train", large_id, "train_precaps_stan.txt, line 1", "vocabulary"),
    "no dependencies": ("train --is_sparse", remove("dev_caps.json"), "dev_caps.json", "such"),
    "no boxes": ("train", remove("train_ims_bbx.npy"), "train_ims_bbx.npy", "such"),
    "unknown data set": ("train --data_name f30k", nothing, "data/f30k", "folder"),
    "gsmn on pictures": ("train --data_name f8k", spoil.folder_of_f8k, "--data_name f8k", "pictures"),
    "no vocabulary": ("train --vocab_path nowhere", nothing, "nowhere/tiny_precomp_vocab.json", "such"),
    "vocabulary cut off": ("train", cut(WORDS, 40), WORDS, "line 1 column 41"),
    # ---- train.py: flags
    "widths that do not divide": ("train --embed_size 18", nothing, "--embed_size 18", "--num_block 4"),
    "blocks without features": ("train --num_block 8", nothing, "--feat_dim 4", "--num_block 8"),
    "kernels": ("train --hid_dim 12", nothing, "--hid_dim 12", "kernels"),
    "scores of a node": ("train --out_dim 2", nothing, "--out_dim 2", "one"),
    "no batch": ("train --batch_size 0", nothing, "--batch_size", "number"),
    "negative learning rate": ("train --learning_rate -0.1", nothing, "--learning_rate", "number"),
    "endless margin": ("train --margin inf", nothing, "--margin", "number"),
    "vsrn: dropout above 1": ("train vsrn --input_dropout_p 1.5", nothing, "--input_dropout_p", "number"),
    "a device that is not here": ("train --device cuda:77", nothing, "--device", "cuda"),
    "no device": ("train vsrn --device gpu", nothing, "--device", "used"),
    "unknown flag": ("train --dim_vid 4", nothing, "unrecognized arguments", "4"),
    "checkpoints into a file": ("train --model_name vsrn", nothing, "vsrn", "made"),
    "log into a file": ("train --logger_name vsrn/log", nothing, "vsrn/log", "made"),
    "nothing to resume": ("train --resume run/x.pth.tar", nothing, "run/x.pth.tar", "checkpoint"),
    "folder without checkpoints": ("train --resume vocab", nothing, "vocab", "checkpoint"),
    "all checkpoints damaged": ("train --resume gsmn", cut(BEST, 900), "gsmn", "checkpoint"),
    "resuming the other model": ("train vsrn --resume gsmn", nothing, BEST, "holds"),
    "resuming with fewer words": ("train --resume gsmn", spoil.one_word_less, BEST, "vocabulary"),
    "resuming an impossible flag": ("train vsrn --resume vsrn", flag("vsrn", "embed_size", "x"), "vsrn", "invalid"),
    # ---- evaluation
    "no checkpoint": ("test --model_path run/x.pth.tar", nothing, "run/x.pth.tar", "checkpoint"),
    "checkpoint cut off": ("test", cut(BEST), BEST, "incomplete"),
    "released, another vocabulary": ("test", all_of(spoil.no_vocabulary, spoil.one_word_less), WORDS, "27"),
    "vsrn: another vocabulary given": ("test vsrn --vocab_path vocab", spoil.one_word_less, "vsrn", "vocabulary"),
    "flags of another model": ("test", flag(BEST, "embed_size", 32), "gsmn", "weight"),
    "a flag that none could give": ("test", flag(BEST, "num_block", 0), "gsmn", "invalid"),
    "report into a file": ("test --report vsrn", nothing, "--report /", "folder"),
    "NaN in weights": ("test", weight(BEST, 0, "fc.bias", np.nan), "gsmn", "embedding"),
    "vsrn: infinity in words": ("test vsrn", weight("vsrn", 1, "embed.weight", np.inf), "vsrn", "embedding"),
    "NaN in similarities": ("test", weight(BEST, 3, "out_2.bias", np.nan), "gsmn", "similarity"),
    "unknown split": ("test --split val", nothing, "val_ims.npy", "such"),
    "released boxes, but no file": ("test --boxes released", remove("test_ims_bbx.npy"), "test_ims_bbx.npy", "such"),
    "released boxes of a model without": ("test --boxes released", no_boxes_no_sizes, "test_ims_size.npy", "such"),
    "no folder for sims": ("test --save_sims run/sims.npy", nothing, "run/sims.npy", "written"),
    "metrics into a folder": ("test --json vocab", nothing, "vocab", "written"),
    "ranks below a file": ("test_stack --ranks vsrn/ranks", nothing, "vsrn/ranks", "written"),
    "testall: no five folds": ("testall", nothing, "tiny_precomp/testall", "images"),
    "ensemble over two data sets": ("test_stack", spoil.another_data_set, "vsrn", "evaluated"),
    # ---- vocab.py
    "vocab: threshold": ("vocab --threshold 0", nothing, "--threshold", "number"),
    "vocab: into a file": ("vocab --vocab_path vsrn", nothing, "vsrn", "made"),
    "vocab: pictures that are not there": ("vocab --data_name coco", nothing, "data/coco", "folder"),
}


@pytest.mark.parametrize("title", CASES)
def test_bad_input(title, place, monkeypatch, capsys):
    command, change, where, key = CASES[title]
    script, _, flags = command.partition(" --")
    where = f"{TINY}/{where}" if where.startswith(("train_", "dev_", "test_", "testall_", "val_")) else where
    change()
    before = spoil.written()
    code, said = spoil.run(script, flags and f"--{flags}", monkeypatch, capsys)
    assert code == 2 and said[-1].startswith(f"error: {where}") and key in said[-1], said
    assert all(line.startswith(("warning: ", "vocabulary: ")) for line in said[:-1] if line)  # of a progress bar
    assert spoil.written() == before
