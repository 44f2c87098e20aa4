"""VSRN against the numbers that the publicly released code itself computed."""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import shared
from torch.nn.utils.rnn import pad_sequence

from systems.options import completed
from systems.vsrn import VSRN

DATA_SETS = ("f30k_precomp", "coco_precomp")
LOSSES = [(mode, loss) for mode in ("eval_all", "bn_train") for loss in ("sum", "max")]
SMALL = Path(__file__).parent / "golden" / "vsrn_small.npz"


def close(ours, theirs, atol=0.0, rtol=0.0):
    np.testing.assert_allclose(np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol, atol)


def padded(ids):
    return pad_sequence([torch.tensor(x) for x in ids], batch_first=True), [len(x) for x in ids]


@functools.cache
def golden(data_set, name):
    path = shared(f"golden/vsrn/{data_set}/{name}")
    return json.loads(path.read_text()) if name.endswith("json") else dict(np.load(path))


def split(data_set, name):
    """Images (20, 36, 64), ids of 100 captions padded, their lengths."""
    images = torch.from_numpy(np.load(shared(f"golden/vsrn/data/{data_set}/{name}_ims.npy")))
    return images, *padded(golden(data_set, "pipeline.json")[name]["target_ids"])


def released(data_set, number, **changed):
    path = shared(f"golden/vsrn/{data_set}/checkpoint{number}.pth.tar")
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(path, weights_only=True)
    net = VSRN(completed(checkpoint["opt"], model="vsrn", **changed))
    net.load_state_dict(checkpoint["model"])
    return net.eval()


@torch.no_grad()
def encode(net, data_set):
    images, ids, lengths = split(data_set, "test")
    img_emb, regions = net.img_enc(images)
    return img_emb, net.txt_enc(ids, lengths), regions


def start(data_set, mode, max_violation, dtype=torch.float32):
    """The model of the training golden before its first step."""
    opt = argparse.Namespace(**{**golden(data_set, "init_opt.json"), "max_violation": max_violation})
    opt = completed(opt, model="vsrn")
    net = VSRN(opt)
    state = golden(data_set, "init_state.npz")
    net.load_state_dict({k.replace("/", "."): torch.from_numpy(v) for k, v in state.items()})
    return net.to(dtype).train(mode == "bn_train")


def both_losses(net, batch):
    """Retrieval loss and caption loss of images, ids, lengths, labels, masks."""
    images, ids, lengths, labels, masks = batch
    img_emb, cap_emb, regions = net.forward_emb(images, ids, lengths)
    scores = net.forward_sim(img_emb, cap_emb)
    return net.forward_loss(scores), net.caption_loss(regions, labels, masks)


def label_log_probs(net, regions, labels):
    """log p of all labels[:, 1:-1]."""
    everything = torch.ones_like(labels[:, 1:-1], dtype=torch.bool)
    log_probs, where = net.caption_model.needed_log_probs(regions, labels, everything)
    return torch.zeros(everything.shape).index_put(where, log_probs)


def fixed_batch(data_set, dtype=torch.float32):
    batch = {k: torch.from_numpy(v) for k, v in golden(data_set, "batch.npz").items()}
    return (
        batch["images"].to(dtype),
        batch["targets"],
        batch["lengths"],
        batch["caption_labels"],
        batch["caption_masks"].to(dtype),
    )


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("number", [1, 2])
def test_released_embeddings(data_set, number):
    expected = golden(data_set, "expected_test.npz")
    net = released(data_set, number)
    img_emb, cap_emb, regions = encode(net, data_set)
    close(img_emb.repeat_interleave(5, 0), expected[f"img_embs_{number}"], 5e-6)
    close(cap_emb, expected[f"cap_embs_{number}"], 5e-6)
    close(regions, expected[f"GCN_img_emd_{number}"], 5e-6 if data_set == "f30k_precomp" else 1e-4)
    close(net.forward_sim(img_emb, cap_emb), expected[f"sims_{number}"], 1e-5)

    img_emb = encode(released(data_set, number, no_imgnorm=True), data_set)[0]
    close(img_emb.repeat_interleave(5, 0), expected[f"img_embs_{number}_no_imgnorm"], 5e-6)

    net = released(data_set, number, use_abs=True, measure="order")
    img_emb, cap_emb, _ = encode(net, data_set)
    close(img_emb.repeat_interleave(5, 0), expected[f"img_embs_{number}_use_abs"], 5e-6)
    close(cap_emb, expected[f"cap_embs_{number}_use_abs"], 5e-6)
    close(net.forward_sim(img_emb, cap_emb), expected[f"order_sims_{number}"], 1e-5)


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("mode", ["eval_all", "bn_train"])
def test_released_batch(data_set, mode):
    """Embeddings of a batch, log-probabilities of all its label words, BatchNorm's statistics afterwards."""
    expected = golden(data_set, "expected_batch.npz")
    net = start(data_set, mode, False)
    images, ids, lengths, labels, _ = fixed_batch(data_set)
    with torch.no_grad():
        img_emb, cap_emb, regions = net.forward_emb(images, ids, lengths)
        log_probs = label_log_probs(net, regions, labels)
    close(img_emb, expected[f"{mode}_img_emb"], 5e-6)
    close(cap_emb, expected[f"{mode}_cap_emb"], 5e-6)
    close(regions, expected[f"{mode}_GCN_img_emd"], 5e-6 if data_set == "f30k_precomp" else 1e-4)
    close(log_probs, expected[f"{mode}_seq_logprob_of_label"], 5e-6)
    if mode == "bn_train":
        buffers = dict(net.img_enc.named_buffers())
        assert len(buffers) == (15 if data_set == "f30k_precomp" else 12)
        for name, buffer in buffers.items():
            close(buffer, expected[f"bn_train_buffer_after_one_forward/{name}"], 5e-6, rtol=2e-5)


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("mode, loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_released_losses_and_gradients(data_set, mode, loss, dtype):
    expected = golden(data_set, "expected_losses.json")[f"{mode}/{loss}"]
    exact = dtype == torch.float64
    if exact:
        expected = expected["float64"]
    net = start(data_set, mode, loss == "max", dtype)
    retrieval, caption = both_losses(net, fixed_batch(data_set, dtype))
    (retrieval + caption).backward()
    tolerance = {"rtol": 1e-11} if exact else {"atol": 2e-4}
    close(retrieval.item(), expected["retrieval_loss"], **tolerance)
    close(caption.item(), expected["caption_loss"], **tolerance)
    if not exact:
        close((retrieval + caption).item(), expected["total_loss"], 2e-4)
        total = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
        close(total, expected["total_grad_norm_each_param_once"], rtol=2e-4)
    norms = {name.replace(".", "/", 1): p.grad.norm().item() for name, p in net.named_parameters()}
    assert norms.keys() == expected["grad_norms"].keys()
    for name, norm in norms.items():
        if not (mode == "bn_train" and name.endswith("W.0.bias")):  # its true gradient is 0
            close(norm, expected["grad_norms"][name], rtol=1e-10 if exact else 2e-4)


@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("loss", ["sum", "max"])
def test_released_ten_steps(data_set, loss):
    """The losses before each of ten updates, in double precision."""
    net = start(data_set, "bn_train", loss == "max", torch.float64)
    images, ids, lengths = split(data_set, "train")
    text = golden(data_set, "pipeline.json")["train"]
    labels, masks = torch.tensor(text["caption_label"]), torch.tensor(text["caption_mask"]).double()
    optimizer, rows = torch.optim.Adam(net.parameters(), lr=2e-4), []
    for order in golden(data_set, "batch.npz")["batch_order_sorted"]:
        take = torch.from_numpy(order).long()
        pictures, length = images[take // 5].double(), [lengths[i] for i in order]
        losses = both_losses(net, (pictures, ids[take], length, labels[take], masks[take]))
        optimizer.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        rows.append([x.item() for x in (*losses, sum(losses))])
    close(rows, golden(data_set, "expected_steps_float64.json")[f"{loss}_unique"], 1e-6)


def test_released_numbers_without_the_shared_data():
    """Four captions of the same reference data travel with the tests (Flickr30K variant)."""
    kept = dict(np.load(SMALL))
    opt = json.loads(str(kept["opt"]))
    net = VSRN(completed(argparse.Namespace(**opt), model="vsrn")).eval()
    state = {k.removeprefix("state/"): torch.from_numpy(v) for k, v in kept.items() if k.startswith("state/")}
    net.load_state_dict({k.replace("/", "."): v for k, v in state.items()})
    ids, labels = torch.from_numpy(kept["targets"]).long(), torch.from_numpy(kept["labels"]).long()
    with torch.no_grad():
        img_emb, cap_emb, regions = net.forward_emb(torch.from_numpy(kept["images"]), ids, kept["lengths"])
        log_probs = label_log_probs(net, regions, labels)
    close(img_emb, kept["img_emb"], 5e-6)
    close(cap_emb, kept["cap_emb"], 5e-6)
    close(regions[0], kept["regions_0"], 5e-6)
    close(log_probs, kept["log_probs"], 5e-6)
