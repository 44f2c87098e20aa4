"""What a failed download leaves in the place of a file is named by every reader."""

import json

import pytest

import vocab
from files import annotations, arrays, pickles, pictures, text
from files.errors import InputError
from files.opening import stranger
from tools import prepare_captions

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
    "0.jpg": pictures.read_picture,
    "model.pth.tar": pickles.read_torch_file,
    "captions.csv": lambda path: prepare_captions.main([str(path), "--data_name", "x_precomp", "--dev", "1"]),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_every_reader_names_it(tmp_path, kind):
    for name, read in READERS.items():
        (tmp_path / name).write_bytes(STRANGERS[kind])
        with pytest.raises(InputError) as error:
            read(tmp_path / name)
        assert name in str(error.value) and WORD[kind] in str(error.value), name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"404 people stand .",
        b"A page was not found\nby a man",
        b"<start> a dog",
        b'{"error": [1, 2',
        b"Error of a man",
    ],
)
def test_files_that_are_what_they_should_be(content):
    assert stranger(content) is None
