"""The published recipes, number by number: whole trainings beside a plain loop, initial values, defaults."""

import copy
import json
import math
from fnmatch import fnmatch

import numpy as np
import plain
import pytest
import torch
from tiny import SIZES, flags, make_tiny, names, run, small_opt

import train
from checkpoints.checkpoint import load_checkpoint
from model import build_model
from reporting.run_page import read_log
from systems.options import defaults, train_options

# ---- initial values

# of every weight: (lowest, highest) of a uniform distribution, the deviation of a normal one, or the value of all;
# --img_dim 24 --embed_size 16 --word_dim 8 --num_block 4 --hid_dim 16 --dim_hidden 12
INITIAL = {
    "img_enc.fc.weight": (-math.sqrt(6 / 40), math.sqrt(6 / 40)),
    "img_enc.fc.bias": 0,
    "txt_enc.embed.weight": (-0.1, 0.1),
    "txt_enc.rnn.*": (-1 / 4, 1 / 4),
    # GSMN
    "*.conv_weights.*": (-1 / 2, 1 / 2),
    "*.mean_theta": (-math.pi, math.pi),
    "*.mean_rho": (0, 1),
    "*.precision_*": (0, 1),
    "*.params": (-1, 1),
    "*.out_?.weight_v": (-1 / 4, 1 / 4),
    "*.out_?.bias": (-1 / 4, 1 / 4),
    # VSRN
    "img_enc.img_rnn.*": (-1 / 4, 1 / 4),
    "img_enc.Rs_GCN_?.W.1.*": 0,
    "img_enc.Rs_GCN_?.*": (-1 / 4, 1 / 4),
    "img_enc.bn.weight": 1,
    "img_enc.bn.bias": 0,
    "*.vid2hid.weight": math.sqrt(2 / 28),
    "*.vid2hid.bias": (-1 / 4, 1 / 4),
    "*coder.rnn.*": (-math.sqrt(1 / 12), math.sqrt(1 / 12)),
    "*.embedding.weight": 1.0,
    "*.attention.linear1.*": (-math.sqrt(1 / 24), math.sqrt(1 / 24)),
    "*.attention.linear2.weight": (-math.sqrt(1 / 12), math.sqrt(1 / 12)),
    "*.out.weight": math.sqrt(2 / 32),
    "*.out.bias": (-math.sqrt(1 / 12), math.sqrt(1 / 12)),
}
WEIGHT_NORM = {"img_enc.fc.*": (-math.sqrt(1 / 24), math.sqrt(1 / 24)), **INITIAL}  # SCAN's, torch's initial values
BUILT = {
    "gsmn": {"hid_dim": 16},
    "scan": {"precomp_enc_type": "weight_norm"},
    "vsepp": {},
    "vsrn": {"dim_hidden": 12, "vsrn_variant": "f30k"},
}


@pytest.mark.parametrize("model", SIZES)
def test_initial_values(model):
    """Of 30 models with different seeds.  A weight-normalised layer starts as the plain one: its g is the norm of v."""
    torch.manual_seed(0)
    nets = [build_model(small_opt(model, img_dim=24, **BUILT[model])) for _ in range(30)]
    for name in dict(nets[0].named_parameters()):
        weights = [net.get_parameter(name).detach() for net in nets]
        if name.endswith("weight_g"):
            norms = [net.get_parameter(name[:-1] + "v").norm(dim=1 if weights[0].dim() else None) for net in nets]
            torch.testing.assert_close(torch.stack(weights).flatten(), torch.stack(norms).flatten())
            continue
        table = WEIGHT_NORM if model == "scan" else INITIAL
        starts_as(next(start for pattern, start in table.items() if fnmatch(name, pattern)), weights, name)


def starts_as(start, weights, name):
    values = torch.stack(weights).flatten()
    if isinstance(start, int):
        assert (values == start).all(), name
        return
    low, high = start if isinstance(start, tuple) else (-math.inf, math.inf)
    spread = (high - low) / math.sqrt(12) if isinstance(start, tuple) else start
    few = 5 / math.sqrt(len(values))  # what chance may do to a mean and a deviation
    assert low <= values.min() and values.max() <= high, name
    assert values.std().item() == pytest.approx(spread, rel=few), name
    assert values.mean().item() == pytest.approx((low + high) / 2 if isinstance(start, tuple) else 0, abs=few * spread)
    assert len({weight.flatten()[0].item() for weight in weights}) == len(weights), name


# ---- defaults

SHARED = """
    data_path ./data/, data_name precomp, vocab_path ./vocab/, margin 0.2, num_epochs 30, batch_size 128, word_dim 300,
    grad_clip 2.0, num_layers 1, learning_rate 0.0002, lr_update 15, workers 10, resume , max_violation False,
    img_dim 2048, no_imgnorm False,
    loss triplet, warmup_sum 0, skip_twins False, accumulate 1, seed 0, save_every 0, keep 0, device None,
    amp off, tf32 False, compile False, deterministic False"""
WORDS = "bi_gru False, no_txtnorm False, lambda_softmax 9.0, sim_memory 0"
VECTORS = "measure cosine, use_abs False, logger_name runs/runX, model_name , log_step 10, val_step 500"
PICTURES = "crop_size 224, finetune False, cnn_type vgg19, use_restval False, reset_train False, no_pretrained False"
LOG = "logger_name ./runs/runX/log, model_name ./runs/runX/checkpoint"
DEFAULTS = {
    "gsmn": f"""{SHARED}, {WORDS}, {LOG}, embed_size 1024, log_step 100, val_step 15000, select rsum, feat_dim 16,
        num_block 16, hid_dim 32, out_dim 1, is_sparse False, propagation self, boxes normalized, kernel auto""",
    "scan": f"""{SHARED}, {WORDS}, {LOG}, embed_size 1024, log_step 10, val_step 500, select rsum, lambda_lse 6.0,
        raw_feature_norm clipped_l2norm, agg_func LogSumExp, cross_attn t2i, precomp_enc_type basic""",
    "vsepp": f"{SHARED}, {VECTORS}, {PICTURES}, embed_size 1024, select rsum",
    "vsrn": f"""{SHARED}, {VECTORS}, {PICTURES}, embed_size 2048, select r1r5, dim_vid 2048, dim_hidden 512,
        bidirectional 0, input_dropout_p 0.2, rnn_type gru, rnn_dropout_p 0.5, dim_word 300, max_len 60,
        vsrn_variant auto, chrono_init 0""",
}


@pytest.mark.parametrize("model", SIZES)
def test_defaults(model):
    """Those of the published code, then ours."""
    found = {name: str(value) for name, value in defaults(model).items() if name != "model"}
    words = (text.split() for text in DEFAULTS[model].split(","))
    assert found == {name: " ".join(value) for name, *value in words}


# ---- a whole training, computed a second time

RUNS = {
    "vsepp": "--measure order --use_abs --skip_twins",
    "gsmn": "--max_violation --warmup_sum 1",
    "gsmn sparse": "--is_sparse --propagation neighbors",
    "scan": "--max_violation",
    "vsrn": "--input_dropout_p 0 --vsrn_variant f30k --max_violation",
    "vsrn coco": "--input_dropout_p 0 --max_len 5",
}
RECIPE = """--batch_size 8 --learning_rate 0.001 --lr_update 1 --grad_clip 0.5 --margin 0.3 --seed 7
    --log_step 1 --val_step 2 --save_every 4 --keep 2"""
# their true gradient is 0, and Adam makes whole steps of its rounding
NOISE = ("out_2.bias", "W.0.bias")


def read(folder, split):
    """Features, word ids, boxes and dependency pairs of a split's captions."""
    ids = [list(map(int, line.split(","))) for line in (folder / f"{split}_precaps_stan.txt").read_text().splitlines()]
    sizes = np.array(np.load(folder / f"{split}_ims_size.npy").tolist())  # (images, 2)
    boxes = np.load(folder / f"{split}_ims_bbx.npy") / np.tile(sizes, 2)[:, None]
    images = [np.load(folder / f"{split}_ims.npy"), boxes.astype(np.float32)]
    features, boxes = (torch.from_numpy(x).double().repeat_interleave(5, 0) for x in images)
    return features, ids, boxes, json.loads((folder / f"{split}_caps.json").read_text())


def batch_of(split, rows):
    features, ids, boxes, depends = split
    return features[rows], [ids[i] for i in rows], boxes[rows], [depends[i] for i in rows]


def plain_training(net, opt, folder, orders):
    """The losses and rates of every step, [(step, rsum, r1r5)] of every validation, the best model's weights."""
    train_split, dev = read(folder, "train"), read(folder, "dev")
    adam = torch.optim.Adam(net.parameters(), foreach=False)
    steps, validations, best, best_weights = [], [], -1, None
    for epoch, order in enumerate(orders):
        for group in adam.param_groups:
            group["lr"] = 0.001 * 0.1**epoch
        hardest = opt.max_violation and epoch >= opt.warmup_sum
        for number, rows in enumerate(order, 1):
            net.train()
            batch = batch_of(train_split, rows)
            kinds = [(i // 5, train_split[1][i]) for i in rows]
            twins = [[opt.skip_twins and a == b for b in kinds] for a in kinds]
            scores, regions = plain.SCORES[opt.model](net, opt, *batch)
            losses = [plain.triplet(scores, 0.3, hardest, twins)]
            losses += [] if regions is None else [plain.caption_loss(net.caption_model, regions, batch[1])]
            adam.zero_grad()
            sum(losses).backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            assert norm > 0.5
            adam.step()
            steps.append([loss.item() for loss in (sum(losses), *losses)] + [0.001 * 0.1**epoch])
            if len(steps) % 2 == 0 or number == len(order):
                r1, r5, r10, r1i, r5i, r10i = plain_recalls(net.eval(), opt, dev)
                validations.append((len(steps), r1 + r5 + r10 + r1i + r5i + r10i, r1 + r5 + r1i + r5i))
                score = validations[-1][2 if opt.model == "vsrn" else 1]
                if score > best:
                    best, best_weights = score, copy.deepcopy(net.state_dict())
    return steps, validations, best_weights


@torch.no_grad()
def plain_recalls(net, opt, split):
    images, captions = batch_of(split, range(0, len(split[1]), 5)), batch_of(split, range(len(split[1])))
    sims, _ = plain.SCORES[opt.model](net, opt, images[0], captions[1], images[2], captions[3])
    return plain.recalls(sims.float())


def in_double(training):
    """The model, its features and boxes in double precision."""
    model = training.model.double()
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and not name.endswith(NOISE))
        if name.endswith("W.1.weight"):
            torch.nn.init.ones_(weight)  # starts at 0, which would hide the relations
    twin = copy.deepcopy(model)
    model.img_enc.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    for loader in (training.loader, training.val_loader):
        if loader.dataset.boxes is not None:
            loader.dataset.boxes = loader.dataset.boxes.astype(np.float64)
    return twin


def repeat_captions(folder):
    """The second caption of each image says what the first says."""
    for name in ("train_caps.txt", "train_precaps_stan.txt"):
        lines = (folder / name).read_text().splitlines(True)
        lines[1::5] = lines[::5]
        (folder / name).write_text("".join(lines))


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_training_is_that_of_a_plain_loop(tmp_path, name):
    """Every loss, rate and validation, the last weights and the best: two epochs of 8, 8 and 4 pairs."""
    data = make_tiny(tmp_path, splits={"train": 4, "dev": 6})
    repeat_captions(data.folder)
    opt, given = train_options(flags(data, tmp_path, "--model", name.split()[0], *f"{RUNS[name]} {RECIPE}".split()))
    training = train.set_up(opt, given)
    assert training.optimizer.param_groups[0]["lr"] == 0.001
    twin, sampler, orders = in_double(training), training.loader.batch_sampler, []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    train.train(training)
    steps, validations, best = plain_training(twin, opt, data.folder, orders)
    logged, validated = read_log(tmp_path / "log/log.jsonl")
    found = [[*{"loss": 0, **row["losses"]}.values(), row["lr"]] for row in logged]
    np.testing.assert_allclose(found, steps, rtol=1e-10)
    assert [row["Eiters"] for row in validated] == [2, 3, 4, 6] and [row["epoch"] for row in validated] == [0, 0, 1, 1]
    figures = [(row["Eiters"], row["rsum"], row["r1r5"]) for row in validated]
    assert figures == [pytest.approx(row) for row in validations]
    same_weights(training.model.state_dict(), twin.state_dict())
    assert names(tmp_path / "ck") == ["checkpoint_1.pth.tar", "checkpoint_1_1.pth.tar", "model_best.pth.tar"]
    saved = load_checkpoint(tmp_path / "ck/model_best.pth.tar")
    parts = {**dict(zip(twin.parts, saved["model"])), **saved["further"]}
    same_weights({f"{part}.{key}": value for part in parts for key, value in parts[part].items()}, best)


def same_weights(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


def test_an_equal_score_does_not_replace_the_best(tiny_data, tmp_path, monkeypatch):
    scores = iter([10.0, 20.0, 20.0, 15.0])
    monkeypatch.setattr(train, "validate", lambda *_: {"rsum": next(scores), "r1r5": 0.0})
    folder = run(tiny_data, tmp_path, "--batch_size", 200, epochs=4)
    best = load_checkpoint(folder / "model_best.pth.tar")
    assert (best["best_epoch"], best["best_rsum"], best["Eiters"]) == (1, 20, 2)
