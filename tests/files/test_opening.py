"""What a failed download leaves in the place of a file is named by every reader."""

import json
import os

import pytest
from tiny import message

import vocab
from files import annotations, arrays, pickles, pictures, text
from files.opening import stranger
from tools import prepare_captions
from tools.own_data import region_files

STRANGERS = {
    "page": b"<!DOCTYPE html>\n<html><head><title>Download warning</title></head></html>\n",
    "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 205207893\n",
    "404": b"404: Not Found",
    "message": json.dumps({"message": "Not Found", "status": "404"}).encode(),
    "again": b"\xef\xbb\xbf \n<Error><Code>AccessDenied</Code></Error>",
}
WORD = {"page": "web page", "LFS": "git lfs pull", "404": "server", "message": "server", "again": "web page"}
READERS = {
    "ims.npy": arrays.open_array,
    "ims_size.npy": arrays.read_sizes,
    "caps.txt": text.read_captions,
    "caps.json": text.read_dependencies,
    "dataset.json": annotations.read_karpathy,
    "captions.json": annotations.read_coco,
    "vocab.json": vocab.deserialize_vocab,
    "vocab.pkl": vocab.deserialize_vocab,
    "0.jpg": pictures.open_picture,
    "model.pth.tar": pickles.read_torch_file,
    "regions.tsv": lambda path: list(region_files.tsv_lines([path], {})),
    "captions.csv": lambda path: prepare_captions.main([str(path), "--data_name", "x_precomp", "--dev", "1"]),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_every_reader_names_it(tmp_path, kind):
    for name, read in READERS.items():
        (tmp_path / name).write_bytes(STRANGERS[kind])
        said = message(read, tmp_path / name)
        assert name in said and WORD[kind] in said, name


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe_or_takes_a_name_that_no_file_can_have(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / f"link to {name}").symlink_to(tmp_path / name)
    for path in (name, f"link to {name}"):
        assert f"{path}: a pipe" in message(READERS[name], tmp_path / path)
    for impossible in ("n" * 300, "zero\0byte"):
        assert "nnn" in (said := message(READERS[name], tmp_path / impossible)) or "zero" in said


@pytest.mark.parametrize(
    "content", [b"", b"404 people stand .", b"A page was not found\nby a man", b"<start> a dog", b'{"error": [1, 2']
)
def test_files_that_are_what_they_should_be(content):
    assert stranger(content) is None
