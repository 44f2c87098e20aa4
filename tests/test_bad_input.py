"""What a user can do wrong, over all scripts and both models: one line that names it, exit code 2, nothing written."""

import re
from pathlib import Path

import numpy as np
import pytest
import spoil
from spoil import (
    BEST,
    CAPS,
    IDS,
    TINY,
    all_of,
    altered,
    array,
    cut,
    flag,
    line,
    nothing,
    put,
    remove,
    vocabulary,
    write,
)

ONLY_CAPS = remove(IDS)  # then the ids are made from the captions

# title: (script, flags beside its usual ones, what is spoilt, the message, with … for what the libraries word)
CASES = {
    # ---- train.py: files
    "no features": (
        "train",
        "",
        remove("train_ims.npy"),
        "data/tiny_precomp/train_ims.npy: no such file; check --data_path, --data_name and the split, or make it with "
        "tools/extract_features.py",
    ),
    "no features of dev": (
        "train",
        "",
        remove("dev_ims.npy"),
        "data/tiny_precomp/dev_ims.npy: no such file; check --data_path, --data_name and the split, or make it with "
        "tools/extract_features.py",
    ),
    "neither ids nor captions": (
        "train",
        "",
        remove(IDS, CAPS),
        "data/tiny_precomp/train_caps.txt: no such file; check --data_path, --data_name and the split",
    ),
    "vsrn: no captions": (
        "train vsrn",
        "",
        remove("dev_caps.txt"),
        "data/tiny_precomp/dev_caps.txt: no such file; check --data_path, --data_name and the split",
    ),
    "features cut off": (
        "train",
        "",
        cut(f"{TINY}/train_ims.npy"),
        "data/tiny_precomp/train_ims.npy: truncated or not a plain .npy file (…); make or copy it again",
    ),
    "vsrn: features cut in the header": (
        "train vsrn",
        "",
        cut(f"{TINY}/dev_ims.npy", 50),
        "data/tiny_precomp/dev_ims.npy: truncated or not a plain .npy file (…); make or copy it again",
    ),
    "features are text": (
        "train",
        "",
        write(f"{TINY}/train_ims.npy", b"features"),
        "data/tiny_precomp/train_ims.npy: truncated or not a plain .npy file (…); make or copy it again",
    ),
    "fewer images": (
        "train",
        "",
        array("train_ims", lambda x: x[:7]),
        "data/tiny_precomp/train_ims.npy: 7 rows of features for 40 captions; need 5 captions for each image, and"
        " a row for each image or each caption",
    ),
    "vsrn: fewer images": (
        "train vsrn",
        "",
        array("dev_ims", lambda x: x[:3]),
        "data/tiny_precomp/dev_ims.npy: 3 rows of features for 20 captions; need 5 captions for each image, and a"
        " row for each image or each caption",
    ),
    "not five captions": (
        "train",
        "",
        line(IDS, 40, None),
        "data/tiny_precomp/train_ims.npy: 8 rows of features for 39 captions; need 5 captions for each image, and"
        " a row for each image or each caption",
    ),
    "vsrn: not five captions": (
        "train vsrn",
        "",
        line(CAPS, 3, None),
        "data/tiny_precomp/train_ims.npy: 8 rows of features for 39 captions; need 5 captions for each image, and"
        " a row for each image or each caption",
    ),
    "integers as features": (
        "train",
        "",
        array("train_ims", lambda x: x.astype(int)),
        "data/tiny_precomp/train_ims.npy: features of type int64; need float32 or float16",
    ),
    "vsrn: integers as features": (
        "train vsrn",
        "",
        array("dev_ims", lambda x: x.astype("u1")),
        "data/tiny_precomp/dev_ims.npy: features of type uint8; need float32 or float16",
    ),
    "features of another width": (
        "train",
        "",
        array("train_ims", lambda x: x[:, :, :7]),
        "data/tiny_precomp/train_ims.npy: features are 7 wide, but --img_dim is 8; they must be equal",
    ),
    "one vector an image": (
        "train",
        "",
        array("train_ims", lambda x: x[:, 0]),
        "data/tiny_precomp/train_ims.npy: shape (8, 8); need (images, regions, numbers)",
    ),
    "NaN in features": (
        "train",
        "",
        array("train_ims", put(np.nan, 6, 1, 2)),
        "data/tiny_precomp/train_ims.npy, row 6: NaN or infinity among the features; extract the features of this"
        " image again",
    ),
    "infinity in dev": (
        "train",
        "",
        array("dev_ims", put(-np.inf, 3, 0, 0)),
        "data/tiny_precomp/dev_ims.npy, row 3: NaN or infinity among the features; extract the features of this "
        "image again",
    ),
    "vsrn: NaN in features": (
        "train vsrn",
        "",
        array("train_ims", put(np.nan, 0, 0, 0)),
        "data/tiny_precomp/train_ims.npy, row 0: NaN or infinity among the features; extract the features of this"
        " image again",
    ),
    "id beyond the vocabulary": (
        "train",
        "",
        line(IDS, 3, b"1,4,99,2"),
        "data/tiny_precomp/train_precaps_stan.txt, line 3: word id 99, but the vocabulary has ids 0 to 26; use "
        "the vocabulary the ids were made with",
    ),
    "negative id": (
        "train",
        "",
        line(IDS, 3, b"1,-4,2"),
        "data/tiny_precomp/train_precaps_stan.txt, line 3: word id -4, but the vocabulary has ids 0 to 26; use "
        "the vocabulary the ids were made with",
    ),
    "words for ids": (
        "train",
        "",
        line(IDS, 40, b"1,dog,2"),
        "data/tiny_precomp/train_precaps_stan.txt, line 40: '1,dog,2' is not a list of numbers with commas between",
    ),
    "empty line of ids": (
        "train",
        "",
        line(IDS, 7, b""),
        "data/tiny_precomp/train_precaps_stan.txt, line 7: empty; every caption needs a line of word ids",
    ),
    "empty caption": (
        "train",
        "",
        all_of(ONLY_CAPS, line(CAPS, 4, b"  ")),
        "data/tiny_precomp/train_caps.txt, line 4: empty caption; every line needs one",
    ),
    "vsrn: empty caption": (
        "train vsrn",
        "",
        line("dev_caps.txt", 20, b"\r"),
        "data/tiny_precomp/dev_caps.txt, line 20: empty caption; every line needs one",
    ),
    "not UTF-8": (
        "train",
        "",
        all_of(ONLY_CAPS, line(CAPS, 5, b"caf\xe9")),
        "data/tiny_precomp/train_caps.txt, line 5: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    "vsrn: UTF-16": (
        "train vsrn",
        "",
        lambda: Path(TINY, CAPS).write_text("a dog\n" * 40, "utf-16"),
        "data/tiny_precomp/train_caps.txt, line 1: byte 0xff is not UTF-8; save the file as UTF-8",
    ),
    "no dependencies": (
        "train",
        "--is_sparse",
        remove("dev_caps.json"),
        "data/tiny_precomp/dev_caps.json: no such file; only --is_sparse needs it",
    ),
    "fewer dependencies": (
        "train",
        "--is_sparse",
        write(f"{TINY}/train_caps.json", b"[[[0, 1]], []]"),
        "data/tiny_precomp/train_caps.json: dependencies of 2 captions, but there are 40 captions; make them from"
        " the same captions",
    ),
    "dependencies cut off": (
        "train",
        "--is_sparse",
        cut(f"{TINY}/train_caps.json", 14),
        "data/tiny_precomp/train_caps.json, line 1, column 15: not valid JSON (…); write or copy it again",
    ),
    "dependencies of words": (
        "train",
        "--is_sparse",
        write(f"{TINY}/train_caps.json", b'[[["a", "dog"]]]'),
        "data/tiny_precomp/train_caps.json, caption 0: need a list of [governor, dependent] pairs, not [['a', 'dog']]",
    ),
    "no boxes": (
        "train",
        "",
        remove("train_ims_bbx.npy"),
        "data/tiny_precomp/train_ims_bbx.npy: no such file; GSMN without boxes needs --boxes none",
    ),
    "no image sizes": (
        "train",
        "",
        remove("dev_ims_size.npy"),
        "data/tiny_precomp/dev_ims_size.npy: no such file; GSMN without boxes needs --boxes none",
    ),
    "image of no height": (
        "train",
        "",
        array("train_ims_size", put((640, 0), 5)),
        "data/tiny_precomp/train_ims_size.npy, row 5: image size 640 x 0; width and height must be positive",
    ),
    "boxes outside": (
        "train",
        "",
        array("train_ims_bbx", put((0, 0, 700, 50), 2, 1)),
        "data/tiny_precomp/train_ims_bbx.npy, row 2, region 1: box [0.0, 0.0, 700.0, 50.0] lies outside its image"
        " of 202 x 102 pixels; check boxes and image sizes, or use --boxes none",
    ),
    "fewer boxes": (
        "train",
        "",
        array("train_ims_bbx", lambda x: x[:, :3]),
        "data/tiny_precomp/train_ims_bbx.npy: boxes of 3 regions in 8 images; need 4 regions in 8 images, as the "
        "features and captions have",
    ),
    "unknown data set": (
        "train",
        "--data_name f30k",
        nothing,
        "data/f30k: no such folder; data has: tiny_precomp; check --data_path and --data_name",
    ),
    "vsrn: no data at all": (
        "train vsrn",
        "--data_path nowhere",
        nothing,
        "nowhere/tiny_precomp: no such folder; nowhere has: nothing; check --data_path and --data_name",
    ),
    "vsrn: pictures that are not there": (
        "train vsrn",
        "--data_name f8k",
        spoil.vocabulary_of_f8k,
        "data/f8k: no such folder; data has: tiny_precomp; check --data_path and --data_name",
    ),
    "gsmn on pictures": (
        "train",
        "--data_name f8k",
        spoil.folder_of_f8k,
        "--data_name f8k: pictures, which GSMN cannot read; extract region features, or give --model vsrn",
    ),
    "no vocabulary": (
        "train",
        "--vocab_path nowhere",
        nothing,
        "nowhere/tiny_precomp_vocab.json: no such file; put the data set's published vocabulary there, or say where it "
        "is with --vocab_path, since word ids and released checkpoints belong to it; for captions of your own build "
        "one: python vocab.py --data_name tiny_precomp",
    ),
    "vocabulary cut off": (
        "train",
        "",
        cut("vocab/tiny_precomp_vocab.json", 40),
        "vocab/tiny_precomp_vocab.json, line 1, column 41: not valid JSON (…); write or copy it again",
    ),
    "vocabulary with a gap": (
        "train vsrn",
        "",
        vocabulary(lambda v: v["word2idx"].update(dog=77)),
        "vocab/tiny_precomp_vocab.json: the ids in word2idx must be 0 to 26, each once",
    ),
    "vocabulary that attacks": (
        "train",
        "",
        spoil.evil_vocabulary,
        "vocab/tiny_precomp_vocab.pkl: refused, because its pickle wants ….system; get the file from a source you"
        " trust",
    ),
    # ---- train.py: flags
    "widths that do not divide": (
        "train",
        "--embed_size 18",
        nothing,
        "--embed_size 18 is not divisible by --num_block 4",
    ),
    "blocks without features": ("train", "--num_block 8", nothing, "--feat_dim 4 must equal --num_block 8"),
    "kernels": ("train", "--hid_dim 12", nothing, "--hid_dim 12 is not divisible by the 8 kernels"),
    "no batch": (
        "train",
        "--batch_size 0",
        nothing,
        "--batch_size: 0 is not a whole number from 1 on; train.py --help lists the flags",
    ),
    "negative learning rate": (
        "train",
        "--learning_rate -0.1",
        nothing,
        "--learning_rate: -0.1 is not a number from 0 on; train.py --help lists the flags",
    ),
    "learning rate in words": (
        "train vsrn",
        "--learning_rate fast",
        nothing,
        "--learning_rate: fast is not a number from 0 on; train.py --help lists the flags",
    ),
    "endless margin": (
        "train",
        "--margin inf",
        nothing,
        "--margin: inf is not a number from 0 on; train.py --help lists the flags",
    ),
    "vsrn: dropout above 1": (
        "train vsrn",
        "--input_dropout_p 1.5",
        nothing,
        "--input_dropout_p: 1.5 is not a number from 0 to 1; train.py --help lists the flags",
    ),
    "a device that is not here": (
        "train",
        "--device cuda:77",
        nothing,
        "--device: cuda:77 cannot be used here, … can; devices are cpu, cuda, cuda:1, ...",
    ),
    "no device": (
        "train vsrn",
        "--device gpu",
        nothing,
        "--device: gpu cannot be used here, … can; devices are cpu, cuda, cuda:1, ...",
    ),
    "unknown flag": (
        "train",
        "--dim_vid 4",
        nothing,
        "unrecognized arguments: --dim_vid 4; --dim_vid is a flag of --model vsrn; train.py --help lists the flags",
    ),
    "checkpoints into a file": (
        "train",
        "--model_name vsrn",
        nothing,
        "vsrn: cannot be made (File exists); choose another folder",
    ),
    "log into a file": (
        "train",
        "--logger_name vsrn/log",
        nothing,
        "vsrn/log: cannot be made (Not a directory); choose another folder",
    ),
    "nothing to resume": (
        "train",
        "--resume run/ck/checkpoint_3.pth.tar",
        nothing,
        "run/ck/checkpoint_3.pth.tar: no such checkpoint; check the path",
    ),
    "nothing to resume beside other checkpoints": (
        "train",
        "--resume gsmn/checkpoint.pth.tar",
        nothing,
        "gsmn/checkpoint.pth.tar: no such checkpoint; its folder holds model_best.pth.tar",
    ),
    "folder without checkpoints": (
        "train",
        "--resume vocab",
        nothing,
        "vocab: no complete checkpoint in this folder; give another, or a file",
    ),
    "all checkpoints damaged": (
        "train",
        "--resume gsmn",
        cut(BEST, 900),
        "gsmn: no complete checkpoint in this folder; give another, or a file",
    ),
    "resuming the other model": (
        "train vsrn",
        "--resume gsmn",
        nothing,
        "gsmn/model_best.pth.tar: holds gsmn, but --model is vsrn; give --model gsmn",
    ),
    "resuming with fewer words": (
        "train",
        "--resume gsmn",
        vocabulary(spoil.one_word_less),
        "gsmn/model_best.pth.tar: trained with another vocabulary (26 words, not 27); give its own with --vocab_path",
    ),
    "resuming a flag that none could give": (
        "train vsrn",
        "--resume vsrn",
        flag("vsrn", "embed_size", "x"),
        "vsrn: its opt says 'x' for --embed_size, an invalid value; get the file again",
    ),
    "resuming a broken optimiser": (
        "train",
        "--resume gsmn",
        altered(BEST, lambda s: s.update(optimizer={"state": {}, "param_groups": []})),
        "gsmn/model_best.pth.tar: the optimiser's state is broken (its parameters are not the … of this model); resume "
        "from …",
    ),
    # ---- evaluation
    "no checkpoint": (
        "test",
        "--model_path run/ck/model_best.pth.tar",
        nothing,
        "run/ck/model_best.pth.tar: no such checkpoint; check the path",
    ),
    "checkpoint cut off": (
        "test",
        "",
        cut(BEST),
        "gsmn/model_best.pth.tar: incomplete or damaged; copy or download it again",
    ),
    "checkpoint that attacks": (
        "test",
        "--model_path evil",
        spoil.evil_checkpoint,
        "evil: refused, nothing in it was run: it asks for ….system, which no checkpoint needs; get the file from"
        " a source you trust",
    ),
    "features for a checkpoint": (
        "test",
        f"--model_path {TINY}/test_ims.npy",
        nothing,
        "data/tiny_precomp/test_ims.npy: a NumPy array, not a checkpoint; give a .pth.tar file",
    ),
    "a web page": (
        "test vsrn",
        "",
        write("vsrn", b"<!DOCTYPE html>"),
        "vsrn: a web page was saved in place of the file; download it again",
    ),
    "checkpoint of another program": (
        "test vsrn",
        "",
        altered("vsrn", spoil.scan_checkpoint),
        "vsrn: 2 state dicts; GSMN has 4, VSRN has 2 with region relations (Rs_GCN) or a CNN; a SCAN or VSE++ "
        "file can only be converted (tools/convert.py)",
    ),
    "released, another vocabulary": (
        "test",
        "",
        all_of(altered(BEST, lambda s: s.pop("vocab")), vocabulary(spoil.one_word_less)),
        "vocab/tiny_precomp_vocab.json has 26 words; 27 are needed: give the vocabulary of the training (--vocab_path)",
    ),
    "vsrn: another vocabulary given": (
        "test vsrn",
        "--vocab_path vocab",
        vocabulary(spoil.one_word_less),
        "vsrn: trained with another vocabulary (26 words, not 27); give its own with --vocab_path",
    ),
    "flags of another model": (
        "test",
        "",
        flag(BEST, "embed_size", 32),
        "gsmn: img_enc.fc.weight is 16 x 8, but by its opt 32 x 8; get the file again",
    ),
    "a flag that none could give": (
        "test",
        "",
        flag(BEST, "num_block", 0),
        "gsmn: its opt says 0 for --num_block, an invalid value; get the file again",
    ),
    "report into a file": ("test", "--report vsrn", nothing, "--report …/vsrn: is a file; name a folder"),
    "NaN in weights": (
        "test",
        "",
        altered(BEST, lambda s: s["model"][0]["fc.bias"].fill_(np.nan)),
        "gsmn: NaN or infinity in the embedding of image 0 (counted from 0); its weights are broken, evaluate "
        "another checkpoint",
    ),
    "vsrn: infinity in words": (
        "test vsrn",
        "",
        altered("vsrn", lambda s: s["model"][1]["embed.weight"][4:].fill_(np.inf)),
        "vsrn: NaN or infinity in the embedding of caption 0 (counted from 0); its weights are broken, evaluate "
        "another checkpoint",
    ),
    "NaN in similarities": (
        "test",
        "",
        altered(BEST, lambda s: s["model"][3]["out_2.bias"].fill_(np.nan)),
        "gsmn: similarity of image 0 and caption 0 is nan, not a finite number; its weights are broken, evaluate "
        "another checkpoint",
    ),
    "unknown split": (
        "test",
        "--split val",
        nothing,
        "data/tiny_precomp/val_ims.npy: no such file; check --data_path, --data_name and the split, or make it with "
        "tools/extract_features.py",
    ),
    "test: unknown data set": (
        "test vsrn",
        "--data_name f8k_precomp",
        nothing,
        "data/f8k_precomp: no such folder; data has: tiny_precomp; check --data_path and --data_name",
    ),
    "test: NaN in features": (
        "test",
        "",
        array("test_ims", put(np.nan, 2, 0, 0)),
        "data/tiny_precomp/test_ims.npy, row 2: NaN or infinity among the features; extract the features of this "
        "image again",
    ),
    "test: features cut off": (
        "test",
        "",
        cut(f"{TINY}/test_ims.npy"),
        "data/tiny_precomp/test_ims.npy: truncated or not a plain .npy file (…); make or copy it again",
    ),
    "vsrn: other width": (
        "test vsrn",
        "",
        array("test_ims", lambda x: x[:, :, :5]),
        "data/tiny_precomp/test_ims.npy: features are 5 wide, but --img_dim is 8; they must be equal",
    ),
    "released boxes, but no file": (
        "test",
        "--boxes released",
        remove("test_ims_bbx.npy"),
        "data/tiny_precomp/test_ims_bbx.npy: no such file; GSMN without boxes needs --boxes none",
    ),
    "released boxes without boxes": (
        "test",
        "--boxes released",
        all_of(flag(BEST, "boxes", "none"), remove("test_ims_size.npy")),
        "data/tiny_precomp/test_ims_size.npy: no such file; GSMN without boxes needs --boxes none",
    ),
    "four images in five folds": (
        "test",
        "--fold5",
        nothing,
        "tiny_precomp/test: 4 images do not divide into five folds; test.py without --fold5 evaluates them all at once",
    ),
    "vsrn: four images in five folds": (
        "test vsrn",
        "--fold5",
        nothing,
        "tiny_precomp/test: 4 images do not divide into five folds; test.py without --fold5 evaluates them all at once",
    ),
    "no folder for sims": (
        "test",
        "--save_sims run/sims.npy",
        nothing,
        "run/sims.npy: cannot be written, there is no folder run; make it first",
    ),
    "metrics into a folder": (
        "test",
        "--json vocab",
        nothing,
        "vocab: cannot be written, a folder has this name; give the name of a file",
    ),
    "ranks below a file": (
        "test_stack",
        "--ranks vsrn/ranks",
        nothing,
        "vsrn/ranks: cannot be written, there is no folder vsrn; make it first",
    ),
    "test: no batch": (
        "test",
        "--batch_size 0",
        nothing,
        "--batch_size: 0 is not a whole number from 1 on; test.py --help lists the flags",
    ),
    "test: unknown boxes": (
        "test",
        "--boxes right",
        nothing,
        "--boxes: invalid choice: …; test.py --help lists the flags",
    ),
    "testall: no such split": (
        "testall",
        "",
        remove("testall_ims.npy"),
        "data/tiny_precomp/testall_ims.npy: no such file; check --data_path, --data_name and the split, or make it "
        "with tools/extract_features.py",
    ),
    "testall: no five folds": (
        "testall",
        "",
        nothing,
        "tiny_precomp/testall: 4 images do not divide into five folds; test.py without --fold5 evaluates them all"
        " at once",
    ),
    "testall: sparse without dependencies": (
        "testall",
        "",
        all_of(flag(BEST, "is_sparse", True), remove("testall_caps.json")),
        "data/tiny_precomp/testall_caps.json: no such file; only --is_sparse needs it",
    ),
    "ensemble over two data sets": (
        "test_stack",
        "",
        spoil.another_data_set,
        "vsrn: evaluated on other_precomp, …, gsmn on tiny_precomp, …",
    ),
    "ensemble of other shapes": (
        "test_stack",
        "",
        spoil.smaller_copy,
        "vsrn: evaluated on tiny_precomp, 3 images, 15 captions, gsmn on …, 4 images, …",
    ),
    "ensemble with a gap": (
        "test_stack",
        "--model_path gsmn nowhere",
        nothing,
        "nowhere: no such checkpoint; check the path",
    ),
    # ---- vocab.py
    "vocab: unknown data set": (
        "vocab",
        "--data_name f30k",
        nothing,
        "data/f30k: no such folder; data has: tiny_precomp; check --data_path and --data_name",
    ),
    "vocab: no captions of dev": ("vocab", "", remove("dev_caps.txt"), "data/tiny_precomp/dev_caps.txt: no such file"),
    "vocab: not UTF-8": (
        "vocab",
        "",
        line("dev_caps.txt", 2, b"\xff\xfe"),
        "data/tiny_precomp/dev_caps.txt, line 2: byte 0xff is not UTF-8; save the file as UTF-8",
    ),
    "vocab: empty caption": (
        "vocab",
        "",
        line(CAPS, 1, b""),
        "data/tiny_precomp/train_caps.txt, line 1: empty caption; every line needs one",
    ),
    "vocab: threshold": (
        "vocab",
        "--threshold 0",
        nothing,
        "--threshold: 0 is not a whole number from 1 on; vocab.py --help lists the flags",
    ),
    "vocab: into a file": (
        "vocab",
        "--vocab_path vsrn",
        nothing,
        "vsrn: cannot be made (File exists); choose another folder",
    ),
    "vocab: pictures that are not there": (
        "vocab",
        "--data_name coco",
        nothing,
        "data/coco: no such folder; data has: tiny_precomp; check --data_path and --data_name",
    ),
}


@pytest.mark.parametrize("title", CASES)
def test_bad_input(title, place, monkeypatch, capsys):
    script, flags, change, message = CASES[title]
    change()
    before = spoil.written()
    code, said = spoil.run(script, flags, monkeypatch, capsys)
    expected = ".*".join(map(re.escape, f"error: {message}".split("…")))
    assert code == 2 and re.fullmatch(expected, said[-1]), said
    assert all(line.startswith(("warning: ", "vocabulary: ")) for line in said[:-1] if line)  # of a progress bar
    assert spoil.written() == before
