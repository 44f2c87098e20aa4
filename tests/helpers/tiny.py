"""What the tests share: reference data, a tiny data set, small models, checkpoints and runs of train.py."""

import itertools
import json
import os
import signal
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluation
import train
import vocab
from checkpoints import checkpoint
from data import PrecompDataset
from files.errors import InputError
from model import build_model
from modules.sides import CaptionSide, ImageSide
from reporting import pages
from reporting.outputs import provenance
from systems.options import completed, train_options
from tools.make_demo import write_split
from training.logger import tensorboard

# ---- reference data

SHARED = Path(os.environ.get("GSMN_SHARED", Path(__file__).resolve().parents[3] / "shared"))
OWN_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "gsmn"


def shared(path):
    """A file or folder of the shared reference data; the test is skipped where there is none."""
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is not here")
    return SHARED / path


def golden(name):
    """Numbers of the released GSMN: the full set where it is, else the part kept in tests/golden."""
    return SHARED / "golden/gsmn" / name if (SHARED / "golden/gsmn").exists() else OWN_GOLDEN / name


def golden_or_skip(name):
    return golden(name) if golden(name).exists() else shared(f"golden/gsmn/{name}")


def dataset(split, is_sparse=True):
    """A split of the golden data."""
    words = vocab.deserialize_vocab(golden("f30k_precomp_vocab.json"))
    opt = completed(Namespace(data_path=golden("."), img_dim=64, is_sparse=is_sparse))
    return PrecompDataset(split, "f30k_precomp", words, opt)


# ---- a data set that can be learnt

COLOURS = ("red", "green", "blue", "white")
THINGS = ("dog", "car", "ball", "house")
TEMPLATES = (
    "a {} {} .",
    "there is a {} {} on the grass .",
    "it's the {} one , a {} .",
    "a picture of a {} {} .",
    "the {} {} stands alone",
)
SPLITS = {"train": 40, "dev": 10, "test": 10, "testall": 10}
NAME = "tiny_precomp"


def make_tiny(root, regions=4, width=8, splits=SPLITS):
    """A complete data set of a few images in root/data/tiny_precomp, its vocabulary in root/vocab.

    The features say colour and thing.
    Returns a namespace: data_path, vocab_path, data_name, img_dim, folder, and args, the flags that scripts need.
    """
    flags = {
        "data_path": str(root / "data"),
        "vocab_path": str(root / "vocab"),
        "data_name": NAME,
        "img_dim": width,
    }
    folder = root / "data" / NAME
    folder.mkdir(parents=True)
    (root / "vocab").mkdir()
    captions = [text.format(colour, thing) for text in TEMPLATES for colour in COLOURS for thing in THINGS]
    words = vocab.vocab_of_captions(captions)
    vocab.serialize_vocab(words, root / "vocab" / f"{NAME}_vocab.json")
    for seed, (split, n) in enumerate(splits.items()):
        _write_split(folder, split, n, regions, width, words, np.random.default_rng(seed))
    args = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return Namespace(**flags, folder=folder, args=args)


def _write_split(folder, split, n, regions, width, words, rng):
    colours, things = rng.integers(0, 4, n), rng.integers(0, 4, n)
    features = rng.normal(0, 0.1, (n, regions, width))
    features[np.arange(n), :, colours] += 1
    features[np.arange(n), :, 4 + things] += 1
    corners = np.sort(rng.uniform(0, 100, (n, regions, 2, 2)), axis=2)
    captions = [text.format(COLOURS[c], THINGS[t]) for c, t in zip(colours, things) for text in TEMPLATES]
    counts = [len(vocab.tokenize(text)) for text in captions]
    write_split(
        folder,
        split,
        words,
        features,
        boxes=corners.reshape(n, regions, 4),
        sizes=[(200 + i, 100 + i) for i in range(n)],
        captions=captions,
        depends=[[[k, k + 1] for k in range(count)] for count in counts],  # each word on the one before it
    )


def dataset_of(tiny, split="test", **options):
    words = vocab.load_vocab(tiny.vocab_path, tiny.data_name)
    opt = completed(Namespace(data_path=tiny.data_path, img_dim=tiny.img_dim), **options)
    return PrecompDataset(split, options.get("data_name", tiny.data_name), words, opt)


def prepared(tiny, *flags):
    """Complete flags of train.py for a data set, and its vocabulary."""
    opt, _ = train_options([*tiny.args, "--workers=0", "--device=cpu", *flags])
    words = vocab.load_vocab(opt.vocab_path, opt.data_name)
    opt.vocab_size = len(words)
    return opt, words


def picture_folder(tiny, root, size=lambda i: (200 + i, 100 + i), count=6):
    """Picture files for the test split, half of each black and half white; size: of picture i, as in the data."""
    root.mkdir()
    for i in range(count):
        w, h = size(i)
        picture = Image.new("RGB", (w, h), "black")
        picture.paste("white", (w // 2, 0, w, h))
        picture.save(root / f"{i}.png")
    (tiny.folder / "test_imagename.txt").write_text("".join(f"{i}.png\n" for i in range(count)))
    return str(root)


# ---- flags and models with random weights

SMALL = "--embed_size 16 --word_dim 8 --batch_size 32 --learning_rate 0.01 --workers 0 --log_step 5 --device cpu"
SIZES = {  # flags of train.py for a small model
    "gsmn": f"{SMALL} --num_block 4 --feat_dim 4 --hid_dim 8 --bi_gru",
    "scan": f"{SMALL} --model scan --bi_gru",
    "vsepp": f"{SMALL} --model vsepp",
    "vsrn": f"{SMALL} --model vsrn --dim_hidden 8 --dim_word 8 --max_len 12",
}
VSRN = {"model": "vsrn"}  # for write_model


def small_opt(model="gsmn", **changes):
    """The flags of a small model for images of 8 numbers a region and 20 words, and changes to them."""
    opt, _ = train_options([*SIZES[model].split(), "--img_dim", "8", "--data_name", NAME])
    vars(opt).update({"vocab_size": 20, **changes})
    return opt


def pair_scores(net, regions, words, boxes, depends, lengths):
    """GSMN's visual and textual scores of all pairs."""
    return net.pair_scores(ImageSide(regions, boxes), CaptionSide(words, lengths, depends))


def random_case(regions=5, lengths=(3, 1, 7, 3, 2), images=4, width=16, seed=0):
    """Unit vectors of images (images, regions, width) and captions, boxes, dependencies and lengths."""
    rng = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=rng), dim=-1)

    words = [unit(n, width) for n in lengths]
    corners = torch.rand(images, regions, 4, generator=rng)
    depends = [[[0, 1]] + [[j, (j * 2 + 1) % (n + 1)] for j in range(n)] + [[0, 0]] for n in lengths]
    return unit(images, regions, width), words, corners, depends, list(lengths)


def write_model(tiny, path, **changes):
    """A checkpoint of random weights for the tiny data -> the model in it, its opt and vocabulary.

    changes: values of opt other than small_opt's, `model` among them.
    """
    words = vocab.load_vocab(tiny.vocab_path, tiny.data_name)
    own = {"data_path": tiny.data_path, "vocab_path": tiny.vocab_path, "vocab_size": len(words), "embed_size": 32}
    opt = small_opt(**{**own, **changes})
    torch.manual_seed(0)
    net = build_model(opt).eval()
    checkpoint.save_checkpoint(state(net.state_list(), opt=opt, vocab=list(words.word2idx)), path)
    return net, opt, words


def similarities(net, dataset):
    """Those of an evaluation: (images, captions)."""
    loader = torch.utils.data.DataLoader(dataset)
    return evaluation.score_all(net, *evaluation.encode_split(net, loader))


# ---- checkpoints


def gsmn(seed=0):
    """State dicts with a few of GSMN's names."""
    rng = torch.Generator().manual_seed(seed)
    names = [
        ["fc.weight", "fc.bias"],
        ["embed.weight", "rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse"],
        ["mean_rho", "graph_convolution_3.params.0.weight", "out_1.weight_g", "out_1.weight_v"],
        ["graph_convolution_3.params", "out_2.bias", "out_2.weight_g", "out_2.weight_v"],
    ]
    return [OrderedDict((name, torch.randn(3, 4, generator=rng)) for name in part) for part in names]


def vsrn():
    """The same for VSRN, with a vocabulary of 7 words."""
    parts = {"Rs_GCN_1.g.weight": torch.ones(2, 2, 1)}, {"embed.weight": torch.ones(7, 2)}
    return [OrderedDict(part) for part in parts]


def state(model=None, **changes):
    """What a checkpoint holds; model: its state dicts."""
    opt = Namespace(data_name="f30k_precomp", embed_size=4, bi_gru=True, learning_rate=0.0002)
    return {"epoch": 1, "model": model or gsmn(), "best_rsum": 2.5, "opt": opt, "Eiters": 3, **changes}


def same(a, b):
    """Equal in types, names, order and values, bit for bit."""
    assert type(a) is type(b)
    if torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, Namespace):
        same(vars(a), vars(b))
    else:
        assert a == b or (a != a and b != b)


def same_weights(a, b):
    a, b = (checkpoint.load_checkpoint(path)["model"] for path in (a, b))
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b) for name in x)


def same_state(a, b):
    """Two checkpoints agree bit for bit in all that a run depends on."""
    a, b = checkpoint.load_checkpoint(a), checkpoint.load_checkpoint(b)
    for key in ("model", "further", "optimizer", "rng", "epoch", "step", "Eiters", "best_rsum", "vocab"):
        same(a[key], b[key])


def same_runs(a, b, last="checkpoint_1.pth.tar"):
    """Two runs end in the same state, have the same best model and show the same curves."""
    for name in (last, "model_best.pth.tar"):
        same_state(Path(a) / "ck" / name, Path(b) / "ck" / name)
    assert points(Path(a) / "log") == points(Path(b) / "log")


def message(call, *arguments, error=InputError):
    """The one line that a call refuses its arguments with."""
    with pytest.raises(error) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- runs of train.py


def flags(tiny, folder, *more, epochs=2):
    """The command line of a small run."""
    places = f"--num_epochs {epochs} --logger_name {folder}/log --model_name {folder}/ck"
    return [
        *tiny.args,
        *SIZES[next((name for name in SIZES if name in more), "gsmn")].split(),
        *places.split(),
        *map(str, more),
    ]


def run(tiny, folder, *more, epochs=2):
    train.main(flags(tiny, folder, *more, epochs=epochs))
    return Path(folder) / "ck"


def names(folder):
    """The files of a folder that are not hidden, as the lock is."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def at_step(number, do, patch=setattr):
    """do() happens before a training step, numbered from 0.  patch: as monkeypatch.setattr."""
    step, numbers = train.train_step, itertools.count()

    def stepping(*arguments):
        if next(numbers) == number:
            do()
        return step(*arguments)

    patch(train, "train_step", stepping)


def stop_after(monkeypatch, steps):
    """SIGTERM arrives during the given step."""
    at_step(steps - 1, lambda: signal.raise_signal(signal.SIGTERM), monkeypatch.setattr)


def validations(folder):
    """The lines of log.jsonl that are validations."""
    return [row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "rsum" in row]


def points(folder):
    """(tag, step, value) of what TensorBoard shows of a run, but for times."""
    return [point for point in all_points(folder) if "time" not in point[0] and point[0] != "pairs_per_second"]


def all_points(folder):
    event, found = tensorboard().event_pb2.Event, []
    for path in sorted(Path(folder).glob("events*")):
        for one in map(event.FromString, event_records(path)):
            if one.session_log.status == one.session_log.START:
                found = [point for point in found if point[1] < one.step]  # what a resumed run has left behind
            found += [(value.tag, one.step, value.simple_value) for value in one.summary.value]
    return sorted(found)


def event_records(path):
    """The events of an event file: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    content = path.read_bytes()
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        if len(content) < end + 4:  # cut off
            return
        yield content[12:end]
        content = content[end + 4 :]


# ---- reports of made-up models


def random_sims(n, seed=0, per=5):
    rng = np.random.default_rng(seed)
    sims = rng.normal(size=(n, n * per)).astype(np.float32)
    sims[np.arange(n * per) // per, np.arange(n * per)] += 1
    return sims


def write_report(tiny, folder, n_models=1, images=None, split="test", sims=None):
    """A report of made-up models -> their similarities."""
    made = dataset_of(tiny, split)
    site = pages.Report(folder, images)
    site.check(made)
    sims = sims or [random_sims(made.n_images, seed) for seed in range(n_models)]
    if len(sims) > 1:
        sims.append(sum(sims) / len(sims))
    for k, one in enumerate(sims):
        path = "ensemble" if k and k == len(sims) - 1 else f"runs/{'abc'[k]}/model_best.pth.tar"
        about = {"model": path, "provenance": provenance(made)}
        site.add({**about, "full": evaluation.metrics(one)}, {"full": [one]})
    site.write()
    return sims
