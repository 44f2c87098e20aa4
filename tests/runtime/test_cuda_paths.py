"""Every path that a GPU takes, on a stand-in for one: no mix of devices, no hidden wait, few kernels.

tests/helpers/cuda_stand_in.py says what the stand-in sees and what it cannot see.
"""

import itertools

import pytest
import torch
from cuda_stand_in import StandIn
from tiny import flags, names, same_state, stop_after

import data
import evaluation
import train
from checkpoints import checkpoint
from files.errors import InputError
from model import build_model
from modules.losses import observed
from runtime.transfer import on_device
from systems.options import train_options
from systems.vsrn import EncoderRegions
from tools.measuring.work import VOCABULARY, caption_lengths, random_batch
from training import global_batch
from training.health import GuardedAdam
from vocab import load_vocab

GSMN = "--embed_size 16 --word_dim 8 --num_block 4 --feat_dim 4 --hid_dim 8 --bi_gru"
VSRN = "--model vsrn --embed_size 16 --word_dim 8 --dim_hidden 8 --dim_word 8 --max_len 12"
STEPS = {
    "GSMN, hardest negatives": f"{GSMN} --max_violation",
    "GSMN, sparse, neighbours": f"{GSMN} --is_sparse --propagation neighbors",
    "GSMN, tiles computed twice": f"{GSMN} --sim_memory 1",
    "GSMN, bfloat16": f"{GSMN} --amp bf16 --boxes none",
    "GSMN, in parts": f"{GSMN} --accumulate 3",
    "VSRN, Flickr30K's variant": f"{VSRN} --vsrn_variant f30k",
    "VSRN, LSTM, both directions": f"{VSRN} --rnn_type lstm --bidirectional 1 --num_layers 2",
    "VSRN, order": f"{VSRN} --measure order --use_abs",
    "VSRN, bfloat16": f"{VSRN} --amp bf16",
    "VSRN, in parts": f"{VSRN} --accumulate 3",
}


def prepared(tiny, more):
    """Complete flags and the vocabulary of the tiny data."""
    opt = train_options([*more.split(), *tiny.args, "--workers=0", "--device=cpu", "--batch_size=24"])[0]
    words = load_vocab(opt.vocab_path, opt.data_name)
    opt.vocab_size = len(words)
    torch.manual_seed(0)
    return opt, words


def clean(gpu):
    assert not gpu.mixes and not gpu.copies and not gpu.halves, (gpu.mixes, gpu.copies, gpu.halves)


@pytest.mark.parametrize("kind", STEPS)
def test_a_training_step_waits_for_nothing(tiny_data, kind):
    opt, words = prepared(tiny_data, STEPS[kind])
    with StandIn() as gpu:
        loader = data.get_loaders(opt.data_name, words, 24, 0, opt)[0]
        net = build_model(opt).to("cuda:0")
        optimizer = GuardedAdam(net.parameters(), 1e-3)
        replica = global_batch.training_module(net, opt.accumulate)
        for _, batch in zip(range(2), on_device(loader, "cuda:0")):
            gpu.clear()
            figures = train.train_step(replica, optimizer, batch, 2.0)
            figures |= observed(net.last_scores)
        clean(gpu)
        assert not gpu.waits, gpu.waits
        assert gpu.launches > 100
        most = 6 if opt.accumulate == 1 else 6 * 2 * opt.accumulate  # parts are encoded twice
        assert len(gpu.sent) <= (30 if "tiles" in kind else most)  # and each block's captions are sent twice
        assert all(x.device.type == "cuda" and x.item() == x.item() for x in figures.values())


PUBLISHED = {  # kernels of a step, batch of 64; VSRN's cell is one of CUDA's, but several here
    "dense": ("--max_violation", 700),
    "sparse, neighbours": ("--max_violation --propagation neighbors --is_sparse", 700),
    "vsrn": ("--model vsrn --max_violation --vsrn_variant f30k --dim_hidden 16 --dim_word 16", 1430),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_kernels_of_a_published_batch(kind):
    """Their number depends on the batch and its captions' lengths, not on widths, which are small here."""
    more, most = PUBLISHED[kind]
    opt = train_options([*more.split(), "--embed_size=16", "--img_dim=8", "--device=cpu"])[0]
    opt.vocab_size = VOCABULARY
    batch = random_batch(opt, caption_lengths(64))
    with StandIn() as gpu:
        net = build_model(opt).to("cuda:0")
        optimizer = GuardedAdam(net.parameters(), 1e-3)
        for there in on_device([batch, batch], "cuda:0"):
            gpu.clear()
            train.train_step(net, optimizer, there, 2.0)
            observed(net.last_scores)
        clean(gpu)
        assert not gpu.waits and gpu.launches <= most, (gpu.waits, gpu.launches)


@pytest.mark.parametrize("variant", ["f30k", "coco"])
def test_a_process_without_images_starts_no_recurrent_layer(variant):
    """A batch may be smaller than the number of GPUs."""
    with StandIn() as gpu:
        encoder = EncoderRegions(8, 16, variant).to("cuda:0").eval()
        features, regions = encoder(torch.zeros(0, 3, 8).to("cuda:0"))
        assert features.shape == (0, 16) and regions.shape == (0, 3, 16) and not gpu.mixes
        assert "cudnn_rnn" not in gpu.operators
        encoder(torch.zeros(1, 3, 8).to("cuda:0"))
        assert "cudnn_rnn" in gpu.operators


@pytest.mark.parametrize("kind", ["GSMN, sparse, neighbours", "VSRN, order"])
def test_evaluation_in_blocks(tiny_data, kind, monkeypatch):
    """A wait for each batch and each block, a few copies for the tiles of a block, the CPU's similarities."""
    opt, words = prepared(tiny_data, STEPS[kind] + " --sim_memory=0.5" * ("GSMN" in kind))
    net = build_model(opt).eval()
    loader = data.get_test_loader("dev", opt.data_name, words, 8, 0, opt)
    expected = evaluation.shard_xattn(net, *evaluation.encode_data(net, loader))
    blocks, similarity = [], net.similarity
    monkeypatch.setattr(net, "similarity", lambda *some: blocks.append(1) or similarity(*some))
    with StandIn() as gpu:
        net.to("cuda:0")
        gpu.clear()
        encoded = evaluation.encode_data(net, loader)
        assert len(gpu.waits) == 2, gpu.waits  # 10 images, 50 captions: a batch of each
        sims = evaluation.shard_xattn(net, *encoded)
        assert len(gpu.waits) == 2 + len(blocks) and len(gpu.sent) <= 20 * len(blocks), (gpu.waits, gpu.sent)
        clean(gpu)
    torch.testing.assert_close(torch.as_tensor(sims), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


# ---- whole runs


def on_gpu(tiny, folder, *more, epochs=2):
    """A run of train.py with --device cuda."""
    arguments = flags(tiny, folder, *more, epochs=epochs)
    arguments[arguments.index("--device") + 1] = "cuda"
    train.main(arguments)
    return folder / "ck"


def test_resumed_is_uninterrupted_on_a_gpu(tiny_data, tmp_path, monkeypatch):
    """Random states of the device included; between two lines of log nothing waits."""
    more = ["--model", "vsrn", "--log_step", 3]
    with StandIn() as gpu:
        loop = train.train
        monkeypatch.setattr(train, "train", lambda training: gpu.clear() or loop(training))  # without the set-up
        whole = on_gpu(tiny_data, tmp_path / "whole", *more)
        clean(gpu)
        monkeypatch.undo()
        in_training = [line for line in gpu.waits if "evaluation.py" not in line and "item" not in line]
        assert len(in_training) <= 14 // 3 + 2 + 4, in_training  # 14 steps, 2 ends of epochs
    with StandIn():
        stop_after(monkeypatch, steps=10)
        with pytest.raises(SystemExit):
            on_gpu(tiny_data, tmp_path / "parts", *more)
        monkeypatch.undo()
    with StandIn():
        parts = on_gpu(tiny_data, tmp_path / "parts", *more, "--resume", tmp_path / "parts/ck")
    same_state(whole / "checkpoint_1.pth.tar", parts / "checkpoint_1.pth.tar")
    assert checkpoint.load_checkpoint(whole / "checkpoint_1.pth.tar")["rng"]["cuda"]


def test_a_loss_that_is_not_finite_stops_at_the_next_look_and_leaves_no_trace(tiny_data, tmp_path, monkeypatch):
    """The weights break before step 2; the host looks after step 5.  Nothing is updated in between."""
    step, seen = train.train_step, []
    steps = itertools.count()

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
    with (
        StandIn(),
        pytest.raises(InputError, match=r"(nan|inf) at step 2, first in the weights img_enc.fc"),
    ):
        on_gpu(tiny_data, tmp_path, "--log_step", 5)
    assert len(seen) == 3 and not names(tmp_path / "ck")
    for later in seen[1:]:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(seen[0], later))


# ---- the stand-in sees what it is for


def test_the_stand_in_sees_mixes_waits_and_copies():
    with StandIn() as gpu:
        a, host = torch.ones(3, 4).to("cuda"), torch.ones(3, 4)
        _ = a + host
        assert len(gpu.mixes) == 1 and "test_cuda_paths.py" in gpu.mixes[0]
        gpu.clear()
        _ = a * 2 + torch.tensor(1.0)  # a number of the host is no mix
        assert not gpu.mixes and gpu.launches == 2
        waits = [
            a.sum().item, lambda: bool(a.any()), a.cpu, a.nonzero, lambda: a[a > 0], a.tolist,
            lambda: a.to("cpu", non_blocking=True),
        ]  # fmt: skip
        for number, wait in enumerate(waits, 1):
            wait()
            assert len(gpu.waits) == number, (number, gpu.waits)
        assert not gpu.copies
        copies = [
            lambda: host.to("cuda", non_blocking=True), lambda: a.copy_(host), lambda: a[torch.tensor([0, 1])],
            lambda: torch.tensor([1], device="cuda"), lambda: host.pin_memory().to("cuda"),
        ]  # fmt: skip
        for number, copy in enumerate(copies, 1):
            copy()
            assert len(gpu.copies) == number, (number, gpu.copies)
        waited = len(gpu.waits)
        host.pin_memory().to("cuda", non_blocking=True)
        assert len(gpu.sent) == 1 and len(gpu.copies) == len(copies) and len(gpu.waits) == waited
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()


def test_the_stand_in_sees_the_way_back_and_a_recurrent_layer_in_float16():
    torch.manual_seed(0)
    with StandIn() as gpu:
        rnn, x = torch.nn.GRU(3, 4).to("cuda"), torch.rand(5, 2, 3).to("cuda")
        weight = torch.ones(4, device="cuda", requires_grad=True)
        gpu.clear()
        (rnn(x)[0] * weight).sum().backward()
        assert gpu.operators["cudnn_rnn"] == gpu.operators["cudnn_rnn_backward"] == 1 and not gpu.halves
        assert weight.grad.device.type == "cuda" and rnn.weight_ih_l0.grad.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16):
            rnn(x)
        assert len(gpu.halves) == 1
