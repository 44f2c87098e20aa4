"""Several processes, and micro-batches, compute what one process computes with the whole batch.

Training is compared in double precision, where rounding leaves nothing to argue about.
"""

import datetime
import os
import signal
import socket
import sys
from argparse import Namespace

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from forked import Forked, all_ended

import data
import evaluation
import train
from checkpoints.checkpoint import load_checkpoint
from files.errors import InputError
from model import build_model
from runtime import distributed
from runtime.batches import with_shares
from training import global_batch
from training.health import GuardedAdam

SIZES = (2, 4)
STEPS = 12
BATCH = 6  # of 20 captions: 6, 6, 6 and 2, so shares differ, and some of four processes have none

GSMN = "--embed_size 16 --word_dim 8 --num_block 4 --feat_dim 4 --hid_dim 8 --lambda_softmax 9 --bi_gru"
VSRN = "--model vsrn --embed_size 16 --word_dim 8 --dim_hidden 8 --dim_word 8 --max_len 12 --input_dropout_p 0"
RUNS = {
    "dense": GSMN,
    "sparse": f"{GSMN} --is_sparse --max_violation",
    "neighbors": f"{GSMN} --propagation neighbors --max_violation",
    "vsrn": f"{VSRN} --max_violation",
}
ALL_SIZES = ("sparse", "vsrn")  # the others with two processes only, for the time it takes


def flags(run, folder):
    tiny = [f"--data_path={folder}/data", f"--vocab_path={folder}/vocab", "--data_name=tiny_precomp", "--img_dim=8"]
    return [*RUNS[run].split(), *tiny, "--device=cpu", f"--batch_size={BATCH}"]


def prepared(run, folder):
    """Complete flags and the vocabulary."""
    return tiny.prepared(Namespace(args=flags(run, folder)))


def trained(run, folder, accumulate=1):
    """STEPS steps of this process among the others -> (losses, weights and statistics, all flat)."""
    opt, vocab = prepared(run, folder)
    loader, _ = data.get_loaders(opt.data_name, vocab, BATCH, 0, opt, distributed.size(), distributed.rank())
    train.seed_everything(3)
    opt.data_name = "f30k_precomp"  # VSRN's encoder ends in a BatchNorm there
    model = build_model(opt).double()
    for name, weight in model.named_parameters():
        if name.endswith("W.1.weight"):
            torch.nn.init.ones_(weight)  # starts at 0, which would hide the relations
    # BatchNorm over a few rows is chaotic: with VSRN even another order of a batch's rows grows from 1e-16 to 1e-3
    # within 20 steps of 0.005
    optimizer = GuardedAdam(model.parameters(), 0.001 if run == "vsrn" else 0.005)
    replica, losses = global_batch.training_module(model, accumulate), []
    for epoch in range(STEPS // len(loader)):
        loader.batch_sampler.set_epoch(epoch)
        for batch in with_shares(loader):
            batch = batch._replace(images=batch.images.double())
            losses.append(train.train_step(replica, optimizer, batch, 2.0))
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    return np.array(
        [[value.item() for name, value in figures.items() if name.startswith(("Le", "loss"))] for figures in losses]
    ), weights


def main(folder):
    """One of several processes: all runs, evaluation; what the main process has seen goes to files.  Then one dies."""
    with distributed.process_group():
        for run in RUNS if distributed.size() == 2 else ALL_SIZES:
            save(run, *trained(run, folder), folder)
        if distributed.size() == 2:
            for run in ("dense", "vsrn"):
                save(f"{run} accumulated", *trained(run, folder, accumulate=2), folder)
        for run in ("sparse", "vsrn"):
            sims = similarities(run, folder)
            if distributed.is_main():
                np.save(f"{folder}/sims {run}-{distributed.size()}.npy", sims)
        lose_one()


def similarities(run, folder):
    """The matrix of the dev split and an untrained model."""
    opt, vocab = prepared(run, folder)
    train.seed_everything(4)
    model = build_model(opt)
    loader = data.get_test_loader("dev", opt.data_name, vocab, BATCH, 0, opt)
    sims = evaluation.score_all(model, *evaluation.encode_split(model, loader))
    assert all(np.array_equal(sims, other) for other in gathered(sims))
    return sims


def gathered(thing):
    """[the thing of every process], on all of them."""
    things = [thing] * distributed.size()
    if distributed.size() > 1:
        dist.all_gather_object(things, thing)
    return things


def lose_one():
    """The last process dies, while the others wait in an exchange with it."""
    if distributed.rank() == distributed.size() - 1:
        os._exit(3)
    distributed.barrier()


def save(run, losses, weights, folder):
    for other, _ in gathered((weights, None)):
        for name in weights:  # every process has the same, to the last bit
            assert np.array_equal(other[name], weights[name]), name
    if distributed.is_main():
        np.savez(f"{folder}/{run}-{distributed.size()}.npz", losses=losses, **weights)


def start(size, function, folder, only=None, rank="RANK"):
    """function(folder) in `size` processes that find one another by the variable `rank`; only: one of them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Forked(folder / f"said {function.__name__} {k} of {size}", {**common, rank: str(k)}, function, folder)
        for k in range(size)
        if only in (None, k)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny.make_tiny(folder, splits={"train": 4, "dev": 4})
    groups = [start(size, main, folder) for size in SIZES]
    for group in groups:
        *mourners, dead = all_ended(group)
        assert dead[0] == 3, dead[1]
        assert {code for code, _ in mourners} <= {1, 2}, mourners
        (folder / f"said-{len(group)}").write_text("".join(text for _, text in mourners))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("run", [*RUNS, "dense accumulated"])
def test_processes_train_as_one(folder, run):
    """With micro-batches, too."""
    losses, weights = trained(run.split()[0], folder)
    first, last = losses[:4, 0].sum(), losses[-4:, 0].sum()  # of an epoch
    assert len(losses) == STEPS and (last < first or run == "vsrn")  # whose rate is too small to learn in three epochs
    for size in SIZES if run in ALL_SIZES else [2]:
        found = np.load(folder / f"{run}-{size}.npz")
        # rounding (1e-16) grows with every step: Adam turns a gradient's last digits into steps of full size
        np.testing.assert_allclose(found["losses"][:5], losses[:5], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["losses"], losses, rtol=2e-6, atol=1e-9)
        for name, value in weights.items():
            if not name.endswith("W.0.bias"):  # before a BatchNorm: its gradient is rounding, which Adam scales up
                np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_a_part_without_a_pair_in_any_process(folder):
    """The last batch has a pair for each process, in two parts.  BatchNorm, over the pairs of a part, gets none."""
    found = np.load(folder / "vsrn accumulated-2.npz")
    assert all(np.isfinite(found[name]).all() for name in found.files)
    assert np.ptp(found["img_enc.Rs_GCN_1.W.1.running_var"]) > 0


@pytest.mark.parametrize("run", ["sparse", "vsrn"])
def test_processes_evaluate_as_one(folder, run):
    sims = similarities(run, folder)
    for size in SIZES:
        np.testing.assert_allclose(np.load(folder / f"sims {run}-{size}.npy"), sims, atol=1e-6)
    assert not list(folder.glob(".sims*"))


def test_a_death_ends_the_others_with_a_message(folder):
    for size in SIZES:
        said = (folder / f"said-{size}").read_text()
        assert all(f"error: process {rank} of {size}" in said for rank in range(size - 1)), said


def stop_by_signal(folder):
    """One of two processes that train; the second one gets SIGTERM during the second step."""
    tiny.at_step(1, lambda: distributed.rank() == 1 and signal.raise_signal(signal.SIGTERM))
    train.main(whole_run(folder, "parts"))


def whole_run(folder, name, *more):
    more = ["--workers=1", "--num_epochs=2", "--seed=5", "--learning_rate=0.001", *more]
    return [*flags("dense", folder), f"--logger_name={folder}/{name}", f"--model_name={folder}/{name}", *more]


def test_a_signal_to_one_stops_all_and_one_alone_goes_on(folder):
    for code, said in all_ended(start(2, stop_by_signal, folder)):
        assert code == 128 + signal.SIGTERM, said
    assert len([*(folder / "parts").glob("*.pth.tar")]) == 1
    train.main(whole_run(folder, "parts", f"--resume={folder}/parts"))
    train.main(whole_run(folder, "whole"))
    parts, whole = (load_checkpoint(folder / name / "checkpoint_1.pth.tar") for name in ("parts", "whole"))
    for a, b in zip(parts["model"], whole["model"]):
        for name in a:
            if name != "out_2.bias":  # a constant added to all scores: its gradient is 0 but for rounding
                torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ---- an environment that torchrun did not make ----


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables that the processes are found by, and no others."""
    for name in (*distributed.RANKS, *distributed.LOCAL_RANKS, "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK is None.* unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is None"),
        ({"WORLD_SIZE": "2", "SLURM_PROCID": "2", "MASTER_ADDR": "127.0.0.1"}, "RANK is 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "MASTER_PORT is 99999"),
    ],
)
def test_an_environment_without_sense_is_one_line(environment, variables, message):
    environment(variables)
    with pytest.raises(InputError, match=message), distributed.process_group():
        pass


@pytest.mark.parametrize(
    "variables, gpus, expected",
    [
        ({"RANK": "5", "LOCAL_RANK": "1"}, 4, 1),  # torchrun
        ({"RANK": "5", "SLURM_LOCALID": "2"}, 4, 2),
        ({"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}, 4, 3),  # mpirun
        ({"RANK": "5"}, 4, 1),
        ({"RANK": "5"}, 0, 0),
    ],
)
def test_the_local_rank_has_a_default(monkeypatch, environment, variables, gpus, expected):
    environment(variables)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert distributed.local_rank() == expected


def join_alone(folder):
    """The only process of a run of two."""
    distributed.JOIN_NOTICE, distributed.JOIN_LIMIT = 0.5, datetime.timedelta(seconds=3)
    with distributed.process_group():
        pass


def test_nobody_to_meet_is_said_and_ends(tmp_path):
    processes = [start(2, join_alone, tmp_path, only=rank)[0] for rank in (0, 1)]  # two ports
    for rank, (code, said) in enumerate(all_ended(processes)):
        notice, error = said.find(f"process {rank} of 2"), said.find(f"error: process {rank} of 2")
        assert code == 2 and 0 <= notice < error, said


def test_slurm_needs_neither_rank_nor_local_rank_and_leaving_never_hangs(tmp_path):
    for code, said in all_ended(start(2, meet_and_leave_often, tmp_path, rank="SLURM_PROCID")):
        assert code == 0, said


def meet_and_leave_often(folder):
    """gloo's thread gets the GIL only where the main thread gives it up.

    Torch 2.6 destroys a group with the GIL held; without start_group's care it waits for ever within eight rounds.
    """
    with distributed.process_group():
        assert distributed.largest(distributed.rank()) == 1 and distributed.local_device("cpu") == "cpu"
        number = distributed.rank()
    sys.setswitchinterval(1)
    for i in range(20):
        distributed.start_group(dist.FileStore(f"{folder}/store{i}", 2), number, 2)
        distributed.leave()


@pytest.mark.parametrize("error, code", [(InputError, 2), (KeyError, 1), (KeyboardInterrupt, 130)])
def test_every_fault_has_the_exit_code_of_one_process(monkeypatch, error, code):
    ends = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "check_environment", lambda count: None)
    monkeypatch.setattr(distributed, "join", lambda count: None)
    monkeypatch.setattr(distributed.atexit, "register", lambda *end: ends.append(end))
    with pytest.raises(error), distributed.process_group():
        raise error("a fault")
    assert ends == [(distributed.end_at_once, code)]


# ---- micro-batches in one process


def model_and_batch(data_set, flags):
    opt, words = tiny.prepared(data_set, *flags.split(), "--batch_size=7")
    train.seed_everything(1)
    return build_model(opt), next(iter(data.get_loaders(opt.data_name, words, 7, 0, opt)[0]))


def gradients(model, replica, batch):
    """Losses and gradients, from the same random state."""
    model.zero_grad()
    torch.manual_seed(2)
    losses = replica(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found, expected, atol):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("parts", [2, 3, 9])  # 9 parts of 7 pairs: two are empty
@pytest.mark.parametrize("flags", [f"{GSMN} --is_sparse --propagation neighbors", VSRN])
def test_parts_have_the_gradient_of_the_whole(tiny_data, flags, parts):
    model, batch = model_and_batch(tiny_data, flags)
    batch = batch._replace(images=batch.images.double())
    model = model.double().eval()  # BatchNorm's statistics are those of a part, so not here
    if "vsrn" in flags:
        assert not model.img_enc.Rs_GCN_1.W[1].training
    whole, expected = gradients(model, model, batch)
    losses, found = gradients(model, global_batch.training_module(model, parts), batch)
    same(losses, whole, 1e-10)
    same(found, expected, 1e-10)


def test_dropout_is_the_same_in_both_encodings(tiny_data):
    """The loss that is seen is the one whose gradient is taken: a finite difference along it agrees."""
    model, batch = model_and_batch(tiny_data, VSRN.replace("--input_dropout_p 0", "--input_dropout_p 0.5"))
    batch = batch._replace(images=batch.images.double())
    model = model.double()
    replica = global_batch.training_module(model, 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _, found = gradients(model, replica, batch)
    tracked = model.img_enc.Rs_GCN_1.W[1].num_batches_tracked
    assert tracked == before["img_enc.Rs_GCN_1.W.1.num_batches_tracked"] + 3  # once for each part, not twice
    step, weight = 1e-6, model.caption_model.encoder.vid2hid.weight
    direction = found["caption_model.encoder.vid2hid.weight"]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        torch.manual_seed(2)
        values.append(sum(replica(batch).values()).item())
        with torch.no_grad():
            weight -= sign * step * direction
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(direction.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("flags", [GSMN, pytest.param(VSRN, marks=pytest.mark.slow)])
def test_compiled_encoders_agree(tiny_data, flags):
    """Tracing and names, without a C++ compiler: torch's own backend compiles for half a minute and more."""
    plain, batch = model_and_batch(tiny_data, flags)
    compiled, _ = model_and_batch(tiny_data, flags)
    compiled.compile_parts(backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    whole, expected = gradients(plain, plain, batch)
    losses, found = gradients(compiled, compiled, batch)
    same(losses, whole, 2e-6)
    same(found, expected, 2e-6)
