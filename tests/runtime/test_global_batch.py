"""Micro-batches in one process: the gradient of the whole batch, the same dropout in both encodings."""

import pytest
import torch
from test_distributed import GSMN, VSRN
from tiny import prepared

import data
import train
from model import build_model
from training import global_batch


def model_and_batch(tiny, flags):
    opt, words = prepared(tiny, *flags.split(), "--batch_size=7")
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
