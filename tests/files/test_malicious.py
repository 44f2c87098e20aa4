"""Files that attack: each is refused with the name of what it wanted, and nothing of it runs."""

import argparse
import pickle
import time
import zipfile

import numpy as np
import pickle_samples as samples
import pytest
import torch
from pickle_samples import ATTACKS, Raw, RawPickler

import vocab
from checkpoints import checkpoint
from files import pickles
from files.arrays import open_array, read_sizes
from files.errors import InputError

attacks = pytest.mark.parametrize("title", ATTACKS)


@pytest.fixture
def marker(tmp_path, request):
    """A file that every attack would create; it must not be there in the end."""
    path = tmp_path / "marker"
    yield path
    if "Popen" in request.node.name or "guard" in request.node.name:
        time.sleep(0.05)  # a process would run on
    assert not path.exists()


def refused(read, path, wanted):
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert wanted in message and str(path) in message and "\n" not in message


@attacks
def test_attacks_are_real(title, tmp_path):
    """Python's own unpickler falls for all of them."""
    marker = tmp_path / "marker"
    code = ATTACKS[title][1](marker)
    try:
        pickle.loads(b"\x80\x02" + code + b".")
    except RuntimeError:
        assert title == "torch.load inside"  # has run by then
    for _ in range(200):  # Popen does not wait
        if marker.exists():
            return
        time.sleep(0.01)
    pytest.fail("the attack does nothing")


PLACES = {
    "the whole file": lambda bad: bad,
    "a flag in opt": lambda bad: state(opt=argparse.Namespace(embed_size=bad)),
    "a weight": lambda bad: state(model=[{"fc.weight": bad}, {}, {}, {}]),
    "the optimiser": lambda bad: state(optimizer={"state": {0: {"exp_avg": [bad]}}}),
    "a word": lambda bad: state(vocab=[*vocab.SPECIAL, bad]),
}


def state(**changes):
    model = [{"fc.weight": torch.ones(2, 2)}, {"embed.weight": torch.ones(3, 2)}, {}, {}]
    return {"epoch": 1, "model": model, "opt": argparse.Namespace(embed_size=2), "Eiters": 1, **changes}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", PLACES)
@attacks
def test_checkpoint(title, place, legacy, tmp_path, marker):
    wanted, attack = ATTACKS[title]
    path = tmp_path / "model_best.pth.tar"
    samples.torch_save(PLACES[place](Raw(attack(marker))), path, legacy)
    refused(checkpoint.load_checkpoint, path, wanted)
    refused(checkpoint.load_checkpoint, tmp_path, wanted)


def test_without_attack_these_files_load(tmp_path):
    """So it is the attack that is refused above, not the way the files are made."""
    for legacy in (False, True):
        samples.torch_save(PLACES["a word"](Raw(samples.text("dog"))), tmp_path / "x", legacy)
        assert checkpoint.load_checkpoint(tmp_path / "x")["vocab"] == [*vocab.SPECIAL, "dog"]


@attacks
def test_resume_passes_over_an_attack(title, tmp_path, marker):
    checkpoint.save_checkpoint(state(), tmp_path / "checkpoint_0.pth.tar")
    bad = Raw(ATTACKS[title][1](marker))
    samples.torch_save(state(saved=1e12, vocab=[bad]), tmp_path / "checkpoint_1.pth.tar")
    said = []
    assert checkpoint.newest(tmp_path, said.append).name == "checkpoint_0.pth.tar"
    assert len(said) == 1 and ATTACKS[title][0] in said[0]


@attacks
def test_plain_pickle_as_checkpoint(title, tmp_path, marker):
    path = tmp_path / "x.pth.tar"
    path.write_bytes(b"\x80\x02" + ATTACKS[title][1](marker) + b".")
    refused(checkpoint.load_checkpoint, path, ATTACKS[title][0])


@attacks
def test_second_pickle_in_the_zip(title, tmp_path, marker):
    path = tmp_path / "x.pth.tar"
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02" + ATTACKS[title][1](marker) + b".")
    refused(checkpoint.load_checkpoint, path, ATTACKS[title][0])


def test_second_content_in_the_zip(tmp_path, marker):
    """Two records of one name, one of them harmless: whichever a reader takes."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        for first in (True, False):
            path = tmp_path / f"{first}.pth.tar"
            bad = b"\x80\x02" + samples.system(marker) + b"."
            with zipfile.ZipFile(path, "w") as archive:
                for content in (bad, b"\x80\x02}.")[:: 1 if first else -1]:
                    archive.writestr("x/data.pkl", content)
                archive.writestr("x/version", "3\n")
            refused(checkpoint.load_checkpoint, path, "os.system")


def test_storage_type_that_is_a_function(tmp_path, marker):
    """Tensors are named by a tuple with a storage class in it."""
    for number, storage in enumerate([samples.name("os", "system"), samples.system(marker)]):
        pid = b"(" + samples.text("storage") + storage + samples.text("0") + samples.text("cpu") + b"K\x01tQ"
        path = tmp_path / f"{number}.pth.tar"
        samples.torch_save(state(extra=Raw(pid)), path)
        refused(checkpoint.load_checkpoint, path, "os.system")


def test_allowed_class_called_with_an_attack(tmp_path, marker):
    path = tmp_path / "x.pth.tar"
    samples.torch_save(state(opt=Raw(samples.call("argparse", "Namespace", samples.system(marker)))), path)
    refused(checkpoint.load_checkpoint, path, "os.system")


@pytest.mark.parametrize("name", ["collections.OrderedDict.fromkeys", "argparse.Namespaces", "xtorch.FloatStorage"])
def test_names_that_resemble_allowed_ones(name, tmp_path):
    path = tmp_path / "x.pth.tar"
    samples.torch_save(state(extra=Raw(samples.name(*name.split(".", 1)))), path)
    refused(checkpoint.load_checkpoint, path, name)


def test_attack_after_the_end(tmp_path, marker):
    """What follows a pickle's end is never read as one."""
    path = tmp_path / "x.pth.tar"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    with open(path, "ab") as file:
        file.write(b"\x80\x02" + samples.system(marker) + b".")
    assert checkpoint.load_checkpoint(path)["epoch"] == 1


def test_weights_only_is_the_second_guard(tmp_path, marker, monkeypatch):
    """Were the look beforehand fooled, torch would still refuse every attack, whatever its default."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(pickles, "refuse_code", lambda file, path: None)
    for number, (_, attack) in enumerate(ATTACKS.values()):
        for legacy in (False, True):
            path = tmp_path / f"{number}{legacy}.pth.tar"
            samples.torch_save(state(extra=Raw(attack(marker))), path, legacy)
            with pytest.raises(InputError):
                checkpoint.load_checkpoint(path)


# ---- the other files that are pickles


@attacks
@pytest.mark.parametrize("place", ["the whole file", "the class", "word2idx", "a word"])
def test_vocabulary(title, place, tmp_path, marker):
    wanted, attack = ATTACKS[title]
    bad = attack(marker)
    vocabulary = samples.name("__main__", "Vocabulary") + b")\x81"
    content = {
        "the whole file": bad,
        "the class": bad + b"}b",
        "word2idx": vocabulary + b"}" + samples.text("word2idx") + bad + b"sb",
        "a word": vocabulary + b"}" + samples.text("word2idx") + b"}" + bad + b"K\x00ssb",
    }[place]
    path = tmp_path / "tiny_vocab.pkl"
    path.write_bytes(b"\x80\x02" + content + b".")
    refused(vocab.deserialize_vocab, path, wanted)


@attacks
def test_image_sizes(title, tmp_path, marker):
    wanted, attack = ATTACKS[title]
    path = tmp_path / "train_ims_size.npy"
    sizes = np.empty(2, object)
    sizes[:] = [{"image_w": 10, "image_h": Raw(attack(marker))}, Raw(attack(marker))]
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        RawPickler(file, 3).dump(sizes)
    refused(read_sizes, path, wanted)


@attacks
def test_features(title, tmp_path, marker):
    """Plain arrays have no pickle to run: an object array is refused whole."""
    path = tmp_path / "train_ims.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        file.write(b"\x80\x02" + ATTACKS[title][1](marker) + b".")
    with pytest.raises(InputError):
        open_array(path)


# ---- no code, but a key that takes for ever: 40 pairs, each twice the one before

ENDLESS = b"})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(200, 240)) + b"Ns"
REUSED = "uses tuples again more than 16 times"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_endless_key_in_a_checkpoint(legacy, tmp_path):
    samples.torch_save(state(more=Raw(ENDLESS)), tmp_path / "x.pth.tar", legacy)
    refused(checkpoint.load_checkpoint, tmp_path / "x.pth.tar", REUSED)


@pytest.mark.parametrize("bad", [ENDLESS, b"})" + b"2\x86" * 40 + b"Ns"], ids=["memo", "dup"])
def test_endless_key_in_a_vocabulary(bad, tmp_path):
    (tmp_path / "x_vocab.pkl").write_bytes(bad + b".")
    refused(vocab.deserialize_vocab, tmp_path / "x_vocab.pkl", REUSED)


def test_endless_key_in_image_sizes(tmp_path):
    np.save(tmp_path / "sizes.npy", np.array([{}], object), allow_pickle=True)
    header = (tmp_path / "sizes.npy").read_bytes()[:128]
    (tmp_path / "sizes.npy").write_bytes(header + ENDLESS + b".")
    refused(read_sizes, tmp_path / "sizes.npy", REUSED)


def test_a_few_tuples_used_again(tmp_path):
    pair = (1, 2)
    samples.torch_save(state(more={pair: [pair] * 10}), tmp_path / "x.pth.tar")
    assert checkpoint.load_checkpoint(tmp_path / "x.pth.tar")["more"] == {pair: [pair] * 10}
