"""A system is one file and one entry in the table: a toy goes through every command, and nothing names a system."""

import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import toy
import with_toy
from forked import Forked, all_ended
from tiny import SIZES, dataset_of, small_opt, write_model

from checkpoints.checkpoint import load_checkpoint
from checkpoints.loading import load_model
from files import features
from model import build_model
from reporting import ranks
from reporting.metrics import METRICS
from systems.options import train_options
from systems.table import SYSTEMS, system_of

ROOT = Path(__file__).parents[1]
SYSTEMS.pop("toy")  # importing toy.py adds it; only the processes of these tests shall know it
with_toy.LOSSES.pop("infonce")


def ended(tmp_path, function, *arguments, processes=1):
    """What a function of with_toy.py prints, after it has ended with exit code 0 in every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    made = [
        Forked(tmp_path / f"said-{rank}", {**shared, "RANK": str(rank)} if processes > 1 else {}, function, *arguments)
        for rank in range(processes)
    ]
    for code, said in all_ended(made):
        assert code == 0, said
    return said


def test_a_toy_trains_resumes_and_is_evaluated(tiny_data, tmp_path):
    for name, epochs in (("whole", 2), ("parts", 1)):
        ended(tmp_path, with_toy.train_with, *with_toy.flags(tiny_data, tmp_path / name), "--num_epochs", epochs)
    ended(tmp_path, with_toy.train_with, "--resume", tmp_path / "parts/ck", "--num_epochs", 2)
    both = with_toy.flags(tiny_data, tmp_path / "both")
    ended(tmp_path, with_toy.train_with, *both, "--num_epochs", 1, processes=2)
    assert (tmp_path / "both/ck/checkpoint_0.pth.tar").exists()
    whole, parts = (tmp_path / name / "ck/checkpoint_1.pth.tar" for name in ("whole", "parts"))
    ended(tmp_path, with_toy.compare, whole, parts)
    write_model(tiny_data, tmp_path / "gsmn.pth.tar")
    said = ended(tmp_path, with_toy.evaluate_all, tiny_data, str(whole), str(tmp_path / "gsmn.pth.tar"), tmp_path)
    assert said.count("rsum: ") == 4 and "image 3 " in said
    assert '"ensemble"' in (tmp_path / "both.json").read_text()
    assert (tmp_path / "report/index.html").exists()


@pytest.mark.parametrize("more", [(), ("--accumulate", "3")], ids=["whole", "accumulated"])
def test_gradients_of_a_loss_are_those_of_one_process(tiny_data, tmp_path, more):
    for processes in (1, 2):
        ended(tmp_path, with_toy.first_gradients, tiny_data, tmp_path / str(processes), *more, processes=processes)
    one, two = (torch.tensor(torch.load(tmp_path / f"{n}.norms")).double() for n in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=0)
    assert one[-1] != 0.3  # the temperature is trained


@pytest.mark.parametrize("model", SIZES)
def test_every_weight_is_in_a_checkpoint(tiny_data, tmp_path, model):
    net, _, _ = write_model(tiny_data, tmp_path / "x.pth.tar", model=model)
    found = load_checkpoint(tmp_path / "x.pth.tar")
    assert len(found["model"]) == len(net.parts)
    with pytest.raises(ValueError, match=f"{len(net.parts) - 1} state dicts"):
        net.load_state_dict(found["model"][1:])
    found["model"][0].popitem()
    with pytest.raises(RuntimeError, match="Missing"):
        net.load_state_dict(found["model"])
    net.lost = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="lost"):
        net.further_parts()


VECTORS = {"gsmn": (False, False), "scan": (False, False), "vsepp": (True, True), "vsrn": (True, True)}


@pytest.mark.parametrize("model", SIZES)
def test_what_flags_make_of_a_model(model):
    """One vector an image, an inner product as similarity; the precision of products."""
    for tf32 in (True, False):
        net = build_model(small_opt(model, tf32=tf32))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    assert (net.one_vector, net.inner_product) == VECTORS[model]
    assert not build_model(small_opt(model, measure="order")).inner_product


KINDS = {
    "": "GSMN, dense",
    "--is_sparse --propagation neighbors --boxes none": "GSMN, sparse, --propagation neighbors, --boxes none",
    "--model scan --cross_attn i2t --agg_func Mean": "SCAN, i2t Mean",
    "--model vsepp": "VSE++",
    "--model vsepp --data_name f8k": "VSE++, on pictures, vgg19",
    "--model vsrn --data_name f30k": "VSRN, on pictures, vgg19",
    "--model vsrn --data_name f30k_precomp": "VSRN, --vsrn_variant f30k (BatchNorm at the end)",
    "--model vsrn": "VSRN, --vsrn_variant coco (norm over the regions at the start)",
}


@pytest.mark.parametrize("flags", KINDS)
def test_what_kind_of_model_flags_make(flags):
    opt, _ = train_options(flags.split())
    assert system_of(opt).kind(opt) == KINDS[flags]


TESTS_A_NAME = re.compile(rf"""(==|!=|\bin\b|\bcase\b)[ (\[{{]*(["'])({"|".join(SYSTEMS)})\2""")


def test_nothing_tests_the_name_of_a_system():
    product = [path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith(("tests", "."))]
    assert len(product) > 80
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in product
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if TESTS_A_NAME.search(line)
    ]
    assert places == []


# ---- docs/extend.md

PAGE = (ROOT / "docs/extend.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_the_page_shows_what_the_tests_run():
    assert EXAMPLES["A system"] == Path(toy.__file__).read_text()
    loss = EXAMPLES["A loss"]
    assert loss[loss.index("class InfoNCE") :] in Path(with_toy.__file__).read_text()


def test_a_text_encoder(tiny_data, tmp_path, monkeypatch):
    for name in SYSTEMS:
        monkeypatch.setitem(SYSTEMS, name, SYSTEMS[name])  # restores the table
    module = ModuleType("systems.gsmn_lstm")
    exec(EXAMPLES["A text encoder"], module.__dict__)
    monkeypatch.setitem(sys.modules, "systems.gsmn_lstm", module)
    monkeypatch.setitem(SIZES, "gsmn_lstm", SIZES["gsmn"] + " --model gsmn_lstm")
    try:
        write_model(tiny_data, tmp_path / "x.pth.tar", model="gsmn_lstm")
        net, opt, _ = load_model(tmp_path / "x.pth.tar", device="cpu")
        assert opt.model == "gsmn_lstm" and isinstance(net.txt_enc.rnn, torch.nn.LSTM)
        assert net.encode_captions(torch.tensor([[1, 5, 2]]), [3]).shape == (1, 3, opt.embed_size)
    finally:
        SYSTEMS.pop("gsmn_lstm")


def test_a_data_format(tiny_data, monkeypatch):
    monkeypatch.setattr(features, "FORMATS", dict(features.FORMATS))
    exec(EXAMPLES["A data format"], {})
    before = dataset_of(tiny_data, "dev")
    path = tiny_data.folder / "dev_ims.npy"
    torch.save(torch.from_numpy(np.load(path)), path.with_suffix(".pt"))
    path.unlink()
    after = dataset_of(tiny_data, "dev")
    assert after.features_file.suffix == ".pt"
    assert all(torch.equal(before[i].image, after[i].image) for i in range(len(before)))


def test_a_metric():
    sims = np.zeros((20, 100))
    sims[np.arange(100) // 5, np.arange(100)] = 1
    exec(EXAMPLES["A metric"], {})
    try:
        assert ranks.metrics(sims)["r20"] == 100.0
    finally:
        METRICS.pop()
