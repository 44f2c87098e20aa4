"""Fuzzing: whatever a data set, a vocabulary, a checkpoint or a log holds, InputError is the only error.

FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py is the long run.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import warnings

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from pickle_samples import int16, item, numpy_int64, python2_sizes
from tiny import gsmn, make_tiny, state, vsrn

import data
import vocab
from checkpoints import checkpoint
from files.errors import InputError
from systems.options import completed
from training.logger import RunLog

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 40))


def fuzz(path, contents, check):
    """check(path) works or raises InputError, whatever content the file has."""

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(contents)
    def read_one(content):
        path.unlink(missing_ok=True)  # it may be mapped into memory
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        with contextlib.suppress(InputError):
            check(path)

    read_one()


@st.composite
def damaged(draw, content):
    """Content with some bytes changed, cut out or put in, and sometimes cut short."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 4))
        content[at : at + length] = draw(st.binary(max_size=6))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def saved(save, *arguments, **how):
    """What a function writes that takes a file."""
    file = io.BytesIO()
    save(file, *arguments, **how)
    return file.getvalue()


# ---- a data set with one file of plausible but wrong content

NUMBERS = st.one_of(st.integers(-3, 30), st.integers(), st.floats())


def nested(inner):
    return st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=4), inner, max_size=3))


JSON = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4)), nested, max_leaves=12)
PAIRS = st.lists(st.lists(st.lists(NUMBERS, min_size=1, max_size=3), max_size=4), min_size=5, max_size=5)
IDS = st.lists(
    st.lists(st.one_of(st.integers(0, 9), NUMBERS), max_size=6).map(lambda x: ",".join(map(str, x))),
    min_size=4,
    max_size=6,
).map("\n".join)
ANY_ARRAY = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unicode_string_dtypes()),
    st.one_of(st.sampled_from([(1, 4, 8), (5, 4, 8), (1, 4, 4)]), hnp.array_shapes(min_dims=0, min_side=0, max_side=5)),
)
SIZE_FIELDS = st.tuples(hnp.scalar_dtypes(), hnp.scalar_dtypes()).map(
    lambda kinds: np.dtype([("image_w", kinds[0]), ("image_h", kinds[1])])
)
SIZES = hnp.arrays(SIZE_FIELDS, st.one_of(st.just((1,)), hnp.array_shapes(min_dims=0, max_side=5)))


def npy(arrays):
    return arrays.map(lambda array: saved(np.save, array))


DATA_FILES = {  # name: what is written there
    "dev_ims.npy": npy(ANY_ARRAY),
    "dev_ims_bbx.npy": npy(ANY_ARRAY),
    "dev_ims_size.npy": npy(st.one_of(SIZES, ANY_ARRAY)),
    "dev_precaps_stan.txt": st.one_of(IDS, st.text()),
    "dev_caps.txt": st.lists(st.text(), min_size=5, max_size=6).map("\n".join),
    "dev_caps.json": st.one_of(PAIRS, JSON).map(json.dumps),
}


@pytest.mark.parametrize("model, name", [*(("gsmn", name) for name in DATA_FILES), ("vsrn", "dev_caps.txt")])
def test_fuzzed_data_sets(tmp_path, model, name):
    """What a data set accepts can be batched, and read once more for evaluation."""
    tiny = make_tiny(tmp_path, splits={"dev": 1})
    words = vocab.load_vocab(tiny.vocab_path, tiny.data_name)
    opt = completed(argparse.Namespace(data_path=tiny.data_path, img_dim=8, model=model, max_len=6, is_sparse=True))

    def read(_):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dev = data.PrecompDataset("dev", tiny.data_name, words, opt)
            batch = data.collate([dev[i] for i in range(len(dev))])
            images = list(data.image_loader(dev))
        assert torch.isfinite(batch.images).all() and batch.captions.max() < len(words) and batch.captions.min() >= 0
        assert sum(map(len, images)) == dev.n_images
        assert dev.captions is None or len(dev.captions) == len(dev)

    read(tiny)
    fuzz(tiny.folder / name, DATA_FILES[name], read)


# ---- vocabularies, arrays, checkpoints

WORDS = vocab.Vocabulary([*vocab.SPECIAL, "a", "ü"])
CHANGES = st.dictionaries(st.sampled_from(["word2idx", "idx2word", "idx", "a"]), JSON, max_size=2)
TABLES = st.dictionaries(st.sampled_from(list(WORDS.word2idx)), st.one_of(st.integers(0, 6), JSON))
VOCABULARIES = st.builds(
    lambda words, changes: json.dumps({**vars(WORDS), "word2idx": {**WORDS.word2idx, **words}, **changes}),
    TABLES,
    CHANGES,
)


def read_vocabulary(path):
    words = vocab.deserialize_vocab(path)
    assert [words(words.idx2word[i]) for i in range(len(words))] == list(range(len(words)))


KINDS = st.sampled_from(["<f4", "|O", "<f2", ">f8", "|V0", "<U0", "<M8[s]"])
SHAPES = st.lists(NUMBERS, max_size=4).map(tuple)
HEADERS = st.builds(
    lambda *values: repr(dict(zip(("descr", "fortran_order", "shape"), values))),
    st.one_of(KINDS, st.text(max_size=5), JSON),
    st.one_of(st.booleans(), JSON),
    st.one_of(SHAPES, JSON),
)


def array_with_header(version, header):
    text = header.encode("utf-8", "surrogatepass") + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(64)


ARRAYS = st.builds(array_with_header, st.integers(1, 4), st.one_of(HEADERS, st.text(max_size=40)))
OPTIONS = st.builds(argparse.Namespace, embed_size=st.integers())
PLAIN = st.recursive(st.one_of(JSON, st.just(torch.ones(2, 2)), OPTIONS), nested, max_leaves=8)
KEYS = st.sampled_from(["epoch", "model", "best_rsum", "opt", "Eiters", "format", "saved", "further", "vocab", "rng"])
CHECKPOINTS = st.builds(
    lambda changes, model: saved(lambda file: torch.save({**state(model()), **changes}, file)),
    st.dictionaries(KEYS, PLAIN, max_size=3),
    st.sampled_from([gsmn, vsrn]),
)


def read_checkpoint(path):
    found = checkpoint.load_checkpoint(path)
    assert found["opt"].model in ("gsmn", "vsrn") and found["epoch"] + found["Eiters"] is not None
    checkpoint.check_vocab(found, vocab.Vocabulary(found.get("vocab") or ()))


def damaged_checkpoint(zipped):
    whole = state(gsmn(), vocab=list(vocab.SPECIAL))
    return damaged(saved(lambda file: torch.save(whole, file, _use_new_zipfile_serialization=zipped)))


FILES = {  # name: (contents, reader)
    "header.npy": (ARRAYS, data.open_array),
    "sizes_header.npy": (ARRAYS, data.read_sizes),
    "sizes.npy": (damaged(python2_sizes([item(int16(5), numpy_int64(6))] * 2)), data.read_sizes),
    "tables.json": (VOCABULARIES, read_vocabulary),
    "vocab.json": (damaged(json.dumps(vars(WORDS)).encode()), read_vocabulary),
    "vocab.pkl": (damaged(pickle.dumps(WORDS, 2)), read_vocabulary),
    "contents.pth.tar": (CHECKPOINTS, read_checkpoint),
    "zip.pth.tar": (damaged_checkpoint(True), read_checkpoint),
    "lazily.pth.tar": (damaged_checkpoint(True), lambda path: checkpoint.read_checkpoint(path, True)),
    "older.pth.tar": (damaged_checkpoint(False), read_checkpoint),
}


@pytest.mark.parametrize("name", FILES)
def test_fuzzed_files(tmp_path, name):
    fuzz(tmp_path / name, *FILES[name])


def test_fuzzed_logs(tmp_path):
    """A resumed run goes on from any log, and no line of a step after the resumed one is left."""
    log, path = RunLog(tmp_path), tmp_path / "log.jsonl"
    for step in (1, 2, 3):
        log.validation({"rsum": 1.5}, step, 0)

    def go_on(path):
        log.forget_after(2)
        assert all(json.loads(line)["Eiters"] <= 2 for line in path.read_bytes().splitlines())

    fuzz(path, damaged(path.read_bytes()), go_on)
