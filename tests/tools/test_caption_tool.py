"""tools/caption.py: a trained model says what it sees, with or without people's captions; errors are one line."""

import re

import numpy as np
import pytest
import torch
from tiny import make_tiny, message, run

from checkpoints.checkpoint import load_checkpoint
from tools import caption

WIDTHS = "--model vsrn --embed_size 32 --dim_hidden 32 --max_len 15 --batch_size 20 --input_dropout_p 0".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("caption")
    tiny = make_tiny(root)
    return tiny, str(run(tiny, root, *WIDTHS, epochs=6) / "model_best.pth.tar")


def write(path, capsys, *flags):
    capsys.readouterr()
    caption.main(["--model_path", path, "--device", "cpu", *map(str, flags)])
    return capsys.readouterr().out.splitlines()


def test_it_says_what_it_sees(trained, capsys):
    tiny, path = trained
    lines = write(path, capsys, "--split", "train", "--image", *range(40))
    assert len(lines) == 40 * 6
    texts = (tiny.folder / "train_caps.txt").read_text().splitlines()
    right = 0
    for g in range(40):
        found = re.match(rf"image {g}: (.+) \(.* -\d+\.\d\d\)", lines[6 * g])
        assert all(line.endswith(text) for line, text in zip(lines[6 * g + 1 :], texts[5 * g : 5 * g + 5]))
        colour, thing = texts[5 * g].split()[1:3]
        right += colour in found[1] and thing in found[1]
    assert right > 20  # one in sixteen by chance


def test_split_and_data_path_are_obeyed_and_no_captions_needed(trained, tmp_path, capsys):
    tiny, path = trained
    (tmp_path / "tiny_precomp").mkdir()
    np.save(tmp_path / "tiny_precomp/extra_ims.npy", np.load(tiny.folder / "test_ims.npy")[3:4])
    expected = write(path, capsys, "--image", 3, "--beam", 1)[0].removeprefix("image 3: ")
    lines = write(path, capsys, "--data_path", tmp_path, "--split", "extra", "--beam", 1)
    assert lines == [f"image 0: {expected}"]


def test_checkpoints_that_cannot_write_captions(trained, tmp_path):
    saved = load_checkpoint(trained[1])
    whole = saved["further"]["caption_model"]
    name, *others = whole
    for further, word in (
        ({}, "without a caption model"),
        ({"caption_model": {**whole, name: whole[name][:1]}}, name),
        ({"caption_model": {other: whole[other] for other in others}}, name),
    ):
        torch.save({**saved, "further": further}, tmp_path / "cut.pth.tar")
        said = message(caption.main, ["--model_path", str(tmp_path / "cut.pth.tar"), "--device", "cpu"])
        assert "cut.pth.tar" in said and word in said


@pytest.mark.parametrize("flag, value", [("--image", "10"), ("--image", "-1"), ("--beam", "0")])
def test_flags_that_cannot_be_followed(trained, flag, value):
    said = message(caption.main, ["--model_path", trained[1], "--device", "cpu", flag, value])
    assert flag in said and value in said
