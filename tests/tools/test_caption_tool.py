"""tools/caption.py: a trained model says what it sees; everything else is one line of error."""

import re

import numpy as np
import pytest
import torch
from tiny import message

import train
from checkpoints.checkpoint import load_checkpoint
from files.errors import InputError
from tools import caption

SMALL = (
    "--model vsrn --embed_size 32 --word_dim 8 --dim_hidden 32 --dim_word 8 --max_len 15 --batch_size 20 "
    "--learning_rate 0.01 --workers 0 --num_epochs 6 --device cpu --input_dropout_p 0"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from tiny import make_tiny

    root = tmp_path_factory.mktemp("caption")
    tiny = make_tiny(root)
    train.main([*tiny.args, *SMALL, "--logger_name", str(root / "run")])
    return tiny, root / "run" / "model_best.pth.tar"


def test_it_says_what_it_sees(trained, capsys):
    tiny, path = trained
    numbers = [str(g) for g in range(40)]
    caption.main(["--model_path", str(path), "--split", "train", "--image", *numbers, "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40 * 6
    texts = (tiny.folder / "train_caps.txt").read_text().splitlines()
    right = 0
    for g in range(40):
        found = re.fullmatch(rf"image {g}: (.+)   \(log-probability -\d+\.\d\d\)", lines[6 * g])
        assert lines[6 * g + 1 : 6 * g + 6] == [f"    people wrote: {text}" for text in texts[5 * g : 5 * g + 5]]
        colour, thing = texts[5 * g].split()[1:3]
        right += colour in found[1] and thing in found[1]
    assert right > 20  # one in sixteen by chance


def test_a_checkpoint_without_caption_model(trained, tmp_path):
    saved = load_checkpoint(trained[1])
    saved["further"] = {}
    torch.save(saved, tmp_path / "released.pth.tar")
    with pytest.raises(InputError, match=r"released\.pth\.tar: a checkpoint of vsrn without a caption model"):
        caption.main(["--model_path", str(tmp_path / "released.pth.tar")])


def test_a_caption_model_of_another_size(trained, tmp_path):
    saved = load_checkpoint(trained[1])
    whole = saved["further"]["caption_model"]
    name = next(iter(whole))
    for parts in ({**whole, name: whole[name][:1]}, {n: value for n, value in whole.items() if n != name}):
        torch.save({**saved, "further": {"caption_model": parts}}, tmp_path / "cut.pth.tar")
        said = message(caption.main, ["--model_path", str(tmp_path / "cut.pth.tar")])
        assert said.startswith(f"{tmp_path / 'cut.pth.tar'}: ") and name in said


@pytest.mark.parametrize("number", ["10", "-1"])
def test_an_image_that_is_not_there(trained, number):
    with pytest.raises(InputError, match=f"--image {number}: the split test has images 0 to 9"):
        caption.main(["--model_path", str(trained[1]), "--image", number])


def test_split_and_data_path_are_obeyed(trained, tmp_path, capsys):
    tiny, path = trained
    (tmp_path / "tiny_precomp").mkdir()
    np.save(tmp_path / "tiny_precomp/extra_ims.npy", np.load(tiny.folder / "test_ims.npy")[3:4])
    (tmp_path / "tiny_precomp/extra_caps.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    caption.main(["--model_path", str(path), "--image", "3", "--beam", "1"])
    expected = capsys.readouterr().out.splitlines()[0].removeprefix("image 3: ")
    caption.main(["--model_path", str(path), "--data_path", str(tmp_path), "--split", "extra", "--beam", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"image 0: {expected}"
    assert lines[5] == "    people wrote: five"


def test_beam_must_be_positive():
    assert "--beam: 0 is not a whole number from 1 on" in message(
        caption.caption_tool_options, ["--model_path", "x", "--beam", "0"]
    )
