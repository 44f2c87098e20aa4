"""Paths that a GPU takes: no mix of devices, no look at a number before the log needs it, runs that resume.

Without a GPU torch's meta device stands for one: it refuses tensors of the host beside its own, and has no numbers to
look at.  The tests that need a GPU are skipped.
"""

import itertools

import pytest
import torch
from tiny import SIZES, flags, names, prepared, same_state, stop_after

import data
import evaluation
import train
from checkpoints import checkpoint
from files.errors import InputError
from model import build_model
from modules.losses import observed
from runtime.transfer import send_batch
from systems.options import train_options
from systems.vsrn import EncoderRegions
from tools.benchmark import VOCABULARY, random_batch
from training import global_batch
from training.health import GuardedAdam

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GSMN, VSRN = SIZES["gsmn"], SIZES["vsrn"]
STEPS = {
    "GSMN, hardest negatives": f"{GSMN} --max_violation",
    "GSMN, sparse, neighbours": f"{GSMN} --is_sparse --propagation neighbors",
    "GSMN, tiles computed twice": f"{GSMN} --sim_memory 1",
    "GSMN, bfloat16": f"{GSMN} --amp bf16 --boxes none",
    "GSMN, in parts": f"{GSMN} --accumulate 3",
    "VSRN, Flickr30K's variant": f"{VSRN} --vsrn_variant f30k",
    "VSRN, LSTM, both directions": f"{VSRN} --rnn_type lstm --bidirectional 1",
    "VSRN, order": f"{VSRN} --measure order --use_abs",
    "VSRN, in parts": f"{VSRN} --accumulate 3",
    "SCAN": SIZES["scan"],
}


class Sgd(torch.optim.SGD):
    """An optimiser that the meta device has too."""

    def guard(self, *numbers):
        torch.stack(numbers).sum()


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_and_an_evaluation_mix_no_devices_and_look_at_no_number(kind, monkeypatch):
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **how: autocast("cpu", *args, **how))
    opt = train_options([*STEPS[kind].split(), "--img_dim=8"])[0]
    opt.vocab_size = VOCABULARY
    batch = random_batch(opt, (5, 4, 2, 2), regions=6)
    host, card = build_model(opt).eval(), build_model(opt).to("meta")
    step = global_batch.training_module(card, opt.accumulate)
    figures = train.train_step(step, Sgd(card.parameters(), 1e-3), send_batch(batch, "meta"), 2.0)
    figures |= observed(card.last_scores)
    assert all(value.device.type == "meta" for value in figures.values())
    with torch.no_grad():
        images, captions = (side.on("meta") for side in host.encode_sides(batch))
        assert card.eval().similarity(images, captions).device.type == "meta"


@pytest.mark.parametrize("variant", ["f30k", "coco"])
def test_a_process_without_images_starts_no_recurrent_layer(variant, monkeypatch):
    """A batch may be smaller than the number of GPUs, and cuDNN's GRU fails on an empty batch."""
    encoder = EncoderRegions(8, 16, variant).eval()
    monkeypatch.setattr(torch.nn.GRU, "forward", lambda *args: pytest.fail("a recurrent layer has started"))
    features, regions = encoder(torch.zeros(0, 3, 8))
    assert features.shape == (0, 16) and regions.shape == (0, 3, 16)


def test_a_loss_that_is_not_finite_stops_at_the_next_look_and_leaves_no_trace(tiny_data, tmp_path, monkeypatch):
    """The weights break before step 2; the host looks after step 5, as on a GPU.  Nothing is updated in between."""
    step, seen, steps = train.train_step, [], itertools.count()

    def breaking(net, optimizer, *others):
        number = next(steps)
        if number == 2:
            net.img_enc.fc.bias.data[1] = float("inf")
        result = step(net, optimizer, *others)
        if number >= 2:
            state = [x.clone() for s in optimizer.state.values() for x in s.values()]
            seen.append([x.detach().clone() for x in net.parameters()] + state)
        return result

    monkeypatch.setattr(train, "train_step", breaking)
    report = train.report_steps
    monkeypatch.setattr(train, "report_steps", lambda run, bar: run.progress.Eiters % 5 or report(run, bar))
    with pytest.raises(InputError, match=r"(nan|inf) at step 2, first in the weights img_enc.fc"):
        train.main(flags(tiny_data, tmp_path))
    assert len(seen) == 3 and not names(tmp_path / "ck")
    for later in seen[1:]:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(seen[0], later))


# ---- on a GPU


@needs_gpu
@pytest.mark.parametrize("kind", STEPS)
def test_a_training_step_waits_for_nothing(tiny_data, kind):
    opt, words = prepared(tiny_data, *STEPS[kind].split())
    loader = data.get_loaders(opt.data_name, words, 24, 0, opt)[0]
    net = build_model(opt).to("cuda")
    optimizer, replica = GuardedAdam(net.parameters(), 1e-3), global_batch.training_module(net, opt.accumulate)
    try:
        for number, batch in zip(range(2), loader):
            batch = send_batch(batch, "cuda")
            torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first step loads libraries
            train.train_step(replica, optimizer, batch, 2.0)
            observed(net.last_scores)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("kind", ["GSMN, sparse, neighbours", "VSRN, order"])
def test_an_evaluation_is_that_of_the_cpu(tiny_data, kind):
    opt, words = prepared(tiny_data, *STEPS[kind].split())
    net = build_model(opt).eval()
    loader = data.get_test_loader("dev", opt.data_name, words, 8, 0, opt)
    expected, found = (
        torch.as_tensor(evaluation.score_all(net.to(device), *evaluation.encode_split(net, loader)))
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_gpu
def test_resumed_is_uninterrupted_on_a_gpu(tiny_data, tmp_path, monkeypatch):
    """Random states of the device included."""

    def on_gpu(folder, *more):
        arguments = flags(tiny_data, folder, "--model", "vsrn", "--deterministic", *more)
        arguments[arguments.index("--device") + 1] = "cuda"
        train.main(arguments)
        return folder / "ck" / "checkpoint_1.pth.tar"

    whole = on_gpu(tmp_path / "whole")
    stop_after(monkeypatch, steps=10)
    with pytest.raises(SystemExit):
        on_gpu(tmp_path / "parts")
    monkeypatch.undo()
    same_state(whole, on_gpu(tmp_path / "parts", "--resume", tmp_path / "parts/ck"))
    assert checkpoint.load_checkpoint(whole)["rng"]["cuda"]
