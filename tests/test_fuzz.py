"""Fuzzing: whatever a data set, a vocabulary, a checkpoint or a log holds, InputError is the only error.

FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py is the long run.
"""

import argparse
import io
import json
import os
import pickle
import shutil
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
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)


def only_input_errors(call, *arguments):
    """Calls; True when it worked, False after an InputError of one line."""
    try:
        call(*arguments)
        return True
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return False


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


# ---- a data set with one file of plausible but wrong content

NUMBERS = st.one_of(st.integers(-3, 30), st.integers(), st.floats())
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
)
PAIRS = st.lists(st.lists(st.lists(NUMBERS, min_size=1, max_size=3), max_size=4), min_size=5, max_size=5)
IDS = st.lists(
    st.lists(st.one_of(st.integers(0, 9), NUMBERS), max_size=6).map(lambda x: ",".join(map(str, x))),
    min_size=4,
    max_size=6,
).map("\n".join)
SIDES = st.integers(0, 5)
ANY_ARRAY = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unicode_string_dtypes()),
    st.one_of(
        st.sampled_from([(1, 4, 8), (5, 4, 8), (1, 4, 4)]),
        st.tuples(SIDES, SIDES, SIDES),
        hnp.array_shapes(min_dims=0, max_side=5),
    ),
)
SIZE_FIELDS = st.tuples(hnp.scalar_dtypes(), hnp.scalar_dtypes()).map(
    lambda kinds: np.dtype([("image_w", kinds[0]), ("image_h", kinds[1])])
)
SIZES = hnp.arrays(SIZE_FIELDS, st.one_of(st.just((1,)), hnp.array_shapes(min_dims=0, max_side=5)))


DATA_FILES = {  # name: what is written there
    "dev_ims.npy": ANY_ARRAY,
    "dev_ims_bbx.npy": ANY_ARRAY,
    "dev_ims_size.npy": st.one_of(SIZES, ANY_ARRAY),
    "dev_precaps_stan.txt": st.one_of(IDS, st.text()),
    "dev_caps.txt": st.lists(st.text(), min_size=5, max_size=6).map("\n".join),
    "dev_caps.json": st.one_of(PAIRS, JSON).map(json.dumps),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), splits={"dev": 1})


@pytest.mark.parametrize("model, name", [*(("gsmn", name) for name in DATA_FILES), ("vsrn", "dev_caps.txt")])
def test_fuzzed_data_sets(tiny, model, name):
    """What a data set accepts can be batched, and read once more for evaluation."""
    words = vocab.load_vocab(tiny.vocab_path, tiny.data_name)
    opt = completed(argparse.Namespace(data_path=tiny.data_path, img_dim=8, model=model, max_len=6, is_sparse=True))
    path = tiny.folder / name
    right = path.read_bytes()

    def read():
        dev = data.PrecompDataset("dev", tiny.data_name, words, opt)
        batch = data.collate([dev[i] for i in range(len(dev))])
        assert torch.isfinite(batch.images).all() and batch.captions.max() < len(words) and batch.captions.min() >= 0
        assert sum(map(len, data.image_loader(dev))) == dev.n_images
        assert dev.captions is None or len(dev.captions) == len(dev)

    @SETTINGS
    @hypothesis.given(DATA_FILES[name])
    def fuzz(content):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if isinstance(content, np.ndarray):
                np.save(path, content)
            else:
                path.write_bytes(content.encode("utf-8", "surrogatepass"))
            only_input_errors(read)

    try:
        fuzz()
    finally:
        path.write_bytes(right)
    read()


@SETTINGS
@hypothesis.given(
    st.dictionaries(st.sampled_from([*vocab.SPECIAL, "a", "b"]), st.one_of(st.integers(0, 6), JSON), max_size=6),
    st.dictionaries(st.sampled_from("0123456"), st.one_of(st.sampled_from([*vocab.SPECIAL, "a"]), JSON), max_size=6),
    JSON,
    st.booleans(),
)
def test_fuzzed_vocabularies(tmp_path_factory, word2idx, idx2word, idx, right):
    if right:  # close to a good one
        words = vocab.Vocabulary([*vocab.SPECIAL, "a"])
        word2idx, idx2word = {**words.word2idx, **word2idx}, {**words.idx2word, **idx2word}
        idx = len(word2idx)
    path = tmp_path_factory.mktemp("vocab") / "x_vocab.json"
    path.write_text(json.dumps({"word2idx": word2idx, "idx2word": idx2word, "idx": idx}))
    if only_input_errors(vocab.deserialize_vocab, path):
        words = vocab.deserialize_vocab(path)
        assert [words(words.idx2word[i]) for i in range(len(words))] == list(range(len(words)))
    shutil.rmtree(path.parent)


HEADERS = st.fixed_dictionaries(
    {
        "descr": st.one_of(
            st.sampled_from(["<f4", "|O", "<f2", ">f8", "|V0", "<U0", "<M8[s]"]), st.text(max_size=5), JSON
        ),
        "fortran_order": st.one_of(st.booleans(), JSON),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4).map(tuple), JSON),
    }
).map(repr)


@SETTINGS
@hypothesis.given(st.one_of(HEADERS, st.text(max_size=40)), st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0"]))
def test_fuzzed_array_headers(tmp_path_factory, header, version):
    text = header.encode("utf-8", "surrogatepass") + b"\n"
    path = tmp_path_factory.getbasetemp() / "header.npy"
    path.unlink(missing_ok=True)
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    path.write_bytes(b"\x93NUMPY" + version + length + text + bytes(64))
    for read in (data.open_array, data.read_sizes):
        only_input_errors(read, path)


# ---- damaged bytes


def checkpoint_bytes(zipped):
    file = io.BytesIO()
    torch.save(state(gsmn(), vocab=list(vocab.SPECIAL)), file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


WORDS = vocab.Vocabulary([*vocab.SPECIAL, "a", "ü"])
FILES = {  # name: (reader, content)
    "sizes.npy": (data.read_sizes, python2_sizes([item(int16(5), numpy_int64(6))] * 2)),
    "vocab.json": (vocab.deserialize_vocab, json.dumps(vars(WORDS)).encode()),
    "vocab.pkl": (vocab.deserialize_vocab, pickle.dumps(WORDS, 2)),
    "zip.pth.tar": (checkpoint.load_checkpoint, checkpoint_bytes(True)),
    "older.pth.tar": (checkpoint.load_checkpoint, checkpoint_bytes(False)),
}


@pytest.mark.parametrize("name", FILES)
def test_fuzzed_bytes(tmp_path, name):
    path, (read, content) = tmp_path / name, FILES[name]
    path.write_bytes(content)
    read(path)

    @hypothesis.settings(SETTINGS, max_examples=3 * EXAMPLES)
    @hypothesis.given(damaged(content))
    def fuzz(changed):
        path.unlink()  # it may be mapped into memory
        path.write_bytes(changed)
        only_input_errors(read, path)
        if path.suffix == ".tar":
            only_input_errors(checkpoint.read_checkpoint, path, True)

    fuzz()


# ---- checkpoints


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 2**62),
        st.floats(),
        st.text(max_size=4),
        st.just(torch.ones(2, 2)),
        st.builds(argparse.Namespace, embed_size=st.integers()),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.sampled_from(["epoch", "model", "best_rsum", "opt", "Eiters", "format", "saved", "further", "vocab", "rng"])


@SETTINGS
@hypothesis.given(st.dictionaries(KEYS, PLAIN, max_size=3), st.sampled_from([gsmn, vsrn]))
def test_fuzzed_checkpoint_contents(tmp_path_factory, changes, model):
    path = tmp_path_factory.getbasetemp() / "contents.pth.tar"
    torch.save({**state(model()), **changes}, path)
    if only_input_errors(checkpoint.load_checkpoint, path):
        found = checkpoint.load_checkpoint(path)
        assert found["opt"].model in ("gsmn", "vsrn") and found["epoch"] + found["Eiters"] is not None
        only_input_errors(checkpoint.check_vocab, found, vocab.Vocabulary(found.get("vocab") or ()))


# ---- logs


def test_fuzzed_logs(tmp_path_factory):
    """A resumed run goes on from any log, and no line of a step after the resumed one is left."""
    folder = tmp_path_factory.mktemp("log")
    log = RunLog(folder)
    for step in (1, 2, 3):
        log.validation({"rsum": 1.5}, step, 0)
    lines = folder / "log.jsonl"

    @SETTINGS
    @hypothesis.given(damaged(lines.read_bytes()))
    def fuzz(line_bytes):
        lines.write_bytes(line_bytes)
        log.forget_after(2)
        assert all(json.loads(line)["Eiters"] <= 2 for line in lines.read_bytes().splitlines())

    fuzz()
