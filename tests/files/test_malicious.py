"""Files that attack: each is refused in one line, and nothing of it runs."""

import contextlib
import functools
import itertools
import pickle
import zipfile

import numpy as np
import pickle_samples as samples
import pytest
import torch
from pickle_samples import ATTACKS, Raw, RawPickler
from tiny import message, state

import vocab
from checkpoints.checkpoint import load_checkpoint
from files import pickles
from files.arrays import read_sizes
from files.errors import InputError

# In a checkpoint torch itself refuses these, which use no operation GLOBAL, and gives no name
NAMELESS = {"method of a class", "stack_global", "stack_global from the memo", "inst"}


@pytest.fixture
def marker(tmp_path):
    """A file that every attack would create; it must not be there in the end."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("title", ATTACKS)
def test_attacks_are_real(title, tmp_path):
    """Python's own unpickler falls for all of them."""
    with contextlib.suppress(RuntimeError):  # of torch.load inside; the attack has run by then
        pickle.loads(b"\x80\x02" + ATTACKS[title][1](tmp_path / "marker") + b".")
    assert (tmp_path / "marker").exists()


# ---- every attack in every file


def in_zip(code, path):
    samples.torch_save(state(vocab=[*vocab.SPECIAL, Raw(code)]), path)


def in_older_format(code, path):
    samples.torch_save(state([{"fc.weight": Raw(code)}, {}, {}, {}]), path, legacy=True)


def plain_pickle(code, path):
    path.write_bytes(b"\x80\x02" + code + b".")


def second_pickle(code, path):
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02" + code + b".")


def second_content(code, path, order=1):
    """Two records of one name, one of them harmless: whichever a reader takes."""
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for content in (b"\x80\x02}.", b"\x80\x02" + code + b".")[::order]:
            archive.writestr("x/data.pkl", content)


def in_vocabulary(code, path):
    holder = samples.name("__main__", "Vocabulary") + b")\x81}" + samples.text("word2idx")
    path.write_bytes(b"\x80\x02" + holder + b"}" + code + b"K\x00ssb.")


def in_sizes(code, path):
    sizes = np.empty(2, object)
    sizes[:] = [{"image_w": 10, "image_h": Raw(code)}, Raw(code)]
    object_array(lambda file: RawPickler(file, 3).dump(sizes), 2, path)


def object_array(write, count, path):
    with open(path, "wb") as file:
        file.write(samples.header("|O", (count,)))
        write(file)


FILES = {  # writer of an attack's operations: reader
    in_zip: load_checkpoint,
    in_older_format: load_checkpoint,
    plain_pickle: load_checkpoint,
    second_pickle: load_checkpoint,
    second_content: load_checkpoint,
    functools.partial(second_content, order=-1): load_checkpoint,
    in_vocabulary: vocab.deserialize_vocab,
    in_sizes: read_sizes,
}


@pytest.mark.parametrize("write", FILES)
@pytest.mark.parametrize("title", ATTACKS)
def test_refused(title, write, tmp_path, marker):
    wanted, attack = ATTACKS[title]
    path = tmp_path / ("x_vocab.pkl" if write is in_vocabulary else "x.pth.tar")
    write(attack(marker), path)
    found = message(FILES[write], path)
    assert path.name in found
    assert title in NAMELESS or wanted in found


def test_weights_only_is_the_second_guard(tmp_path, marker, monkeypatch):
    """Were the look beforehand fooled, torch would still refuse every attack, whatever its default."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(pickles, "look_through", lambda *_: None)
    for (_, attack), legacy in itertools.product(ATTACKS.values(), (False, True)):
        samples.torch_save(state(extra=Raw(attack(marker))), tmp_path / "x", legacy)
        with pytest.raises(InputError):
            load_checkpoint(tmp_path / "x")


# ---- forms that only a checkpoint has, and pickles without code that take for ever

PAIRS = b"".join(b"q%ch%c\x86" % (n, n) for n in range(200, 240))  # each twice the one before
HARMFUL = {
    "storage type that is a function": lambda marker: storage(samples.name("os", "system")),
    "storage type that is called": lambda marker: storage(samples.system(marker)),
    "allowed class of an attack": lambda marker: samples.call("argparse", "Namespace", samples.system(marker)),
    "name beyond an allowed one": lambda marker: samples.name("collections", "OrderedDict.fromkeys"),
    "longer name": lambda marker: samples.name("argparse", "Namespaces"),
    "longer module": lambda marker: samples.name("xtorch", "FloatStorage"),
    "key of pairs": lambda marker: b"})" + PAIRS + b"Ns",
    "key of pairs behind a pop": lambda marker: b"})" + PAIRS.replace(b"q", b"N0q") + b"Ns",
    "key of doubles": lambda marker: b"})" + b"2\x86" * 40 + b"Ns",
    "key too deep for the stack": lambda marker: b"})" + b"\x85" * 200_000 + b"Ns",
    "keys of one hash": lambda marker: b"}(" + b"".join(multiple(n) + b"N" for n in range(1, 100_000)) + b"u",
    "too many operations": lambda marker: b"]" + b"(" * 50_000,
    "memory only claimed": lambda marker: samples.call("builtins", "bytearray", b"\x8a\x06" + b"\xff" * 5 + b"\x00"),
}


def storage(kind):
    """Tensors are named by a tuple with a storage class in it."""
    return b"(" + samples.text("storage") + kind + samples.text("0") + samples.text("cpu") + b"K\x01tQ"


def multiple(n):
    """A multiple of the modulus of Python's hashes."""
    return b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "older"])
@pytest.mark.parametrize("case", HARMFUL)
def test_harmful_checkpoint(case, legacy, tmp_path, marker, monkeypatch):
    if case == "too many operations":
        monkeypatch.setattr(pickles, "OPERATIONS", 50_000)
    samples.torch_save(state(extra=Raw(HARMFUL[case](marker))), tmp_path / "x.pth.tar", legacy)
    assert "x.pth.tar: refused" in message(load_checkpoint, tmp_path / "x.pth.tar")


def test_endless_keys_in_other_files(tmp_path):
    code = HARMFUL["key of pairs"](None)
    (tmp_path / "x_vocab.pkl").write_bytes(code + b".")
    object_array(lambda file: file.write(code + b"."), 1, tmp_path / "sizes.npy")
    for read, name in ((vocab.deserialize_vocab, "x_vocab.pkl"), (read_sizes, "sizes.npy")):
        assert "refused" in message(read, tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_few_tuples_used_again(legacy, tmp_path):
    """Without an attack, the files that are made here load."""
    pair = (1, 2)
    samples.torch_save(state(more={pair: [pair] * 10, "text": Raw(samples.text("dog"))}), tmp_path / "x", legacy)
    assert load_checkpoint(tmp_path / "x")["more"] == {pair: [pair] * 10, "text": "dog"}
