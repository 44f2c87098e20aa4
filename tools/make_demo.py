"""Make a small data set of coloured shapes, complete and in the format of docs/method.md, section 1.

    python tools/make_demo.py        # ./demo: data/demo_precomp, vocab, images, README.txt

The same flags always give the same bytes. A Ctrl-C leaves everything as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.openmp  # noqa: F401, before torch

from files.errors import InputError, reason, run
from tools.demo_data.captions import ParsedCaption, describe, fact_holds
from tools.demo_data.scenes import Scene, draw, make_projection, region_boxes, region_features, sample_scenes
from vocab import build_vocab, encode, serialize_vocab

NAME = "demo_precomp"
FOLDS = 5  # testall is evaluated in five folds; test is the first of them
TITLE = "Demo data for image-text matching: scenes of coloured shapes"
OURS = re.compile(  # paths inside the folder
    rf"README\.txt|data|vocab|images|images/(train|dev|test)_\d+\.png|vocab/{NAME}_vocab\.json|data/{NAME}|"
    rf"data/{NAME}/(train|dev|test|testall)_(ims|ims_bbx|ims_size|caps|precaps_stan|imagename|scenes)\.\w+"
)
README = f"""{TITLE}

Made by tools/make_demo.py {{flags}}
The same flags make the same bytes; making it again replaces this folder.

data/{NAME}/SPLIT_FILE, where SPLIT is train, dev, testall, or test (the first fifth of testall):
  ims.npy            (scenes, regions, features) float32: they tell colour, shape and size of what a region
                     shows, with noise, and nothing about where it stands
  ims_bbx.npy        (scenes, regions, 4) float32: the regions' boxes x1 y1 x2 y2 in pixels
  ims_size.npy       (scenes,) with the fields image_w and image_h
  caps.txt           five captions for each scene, one on a line
  precaps_stan.txt   the captions as word ids
  caps.json          their dependencies: pairs [governor, dependent] of word positions from 1, first [0, root]
  imagename.txt      the scenes' pictures in images/
  scenes.json        the truth, which no model reads: the things in each scene; 'twin', the number of the
                     scene that has the two things 'swapped' exchanged, or null; 'facts', what each caption
                     claims; 'telling', for each caption whether it is true here and false of the twin
vocab/{NAME}_vocab.json   the words seen four times or more in train and dev
images/              a picture of each scene
"""


@dataclass
class Example:
    """A scene with all that the files say of it; ``twin`` is the number of its twin in the split."""

    scene: Scene
    twin: int | None
    captions: list[ParsedCaption]
    boxes: np.ndarray  # (regions, 4)
    features: np.ndarray  # (regions, img_dim)


def make_examples(part: int, count: int, opt: argparse.Namespace, start: int = 0):
    """Yield ``count`` examples, twins first and side by side; ``start`` is the first one's number.

    The other parts' sizes have no influence (``part``: train 0, dev 1, folds 2 to 6).
    """
    projection = make_projection(np.random.default_rng([opt.seed, 99]), opt.img_dim)
    pairs = min(round(count * opt.twins / 2), count // 2)
    for p in range(count - pairs):
        scenes = sample_scenes(np.random.default_rng([opt.seed, part, p, 1]), twins=p < pairs)
        for k, scene in enumerate(scenes):
            rng = np.random.default_rng([opt.seed, part, p, 3 + k])
            captions = describe(scene, np.random.default_rng([opt.seed, part, p, 2]), rng)
            boxes = region_boxes(scene, rng, opt.regions)
            features = region_features(scene, boxes, projection, opt.noise, rng)
            twin = start + 2 * p + 1 - k if p < pairs else None
            yield Example(scene, twin, captions, boxes, features)


def record(example: Example, examples: list[Example], name: str) -> dict:
    """What scenes.json says of one example."""
    scene, twin = example.scene, example.twin
    other = None if twin is None else examples[twin].scene
    return {
        "image": name,
        "width": scene.width,
        "height": scene.height,
        "things": [vars(thing) for thing in scene.things],
        "twin": twin,
        "swapped": scene.swapped,
        "facts": [caption.facts for caption in example.captions],
        "telling": [
            other is not None and not all(fact_holds(other, fact) for fact in caption.facts)
            for caption in example.captions
        ],
    }


def write_scenes(folder: Path, split: str, examples: list[Example], names: list[str]) -> None:
    """Write one split, all but the word ids (they need the vocabulary)."""
    scenes, captions = [e.scene for e in examples], [c for e in examples for c in e.captions]
    sizes = np.array([(s.width, s.height) for s in scenes], [("image_w", "<i8"), ("image_h", "<i8")])
    np.save(folder / f"{split}_ims.npy", np.stack([e.features for e in examples]))
    np.save(folder / f"{split}_ims_bbx.npy", np.stack([e.boxes for e in examples]))
    np.save(folder / f"{split}_ims_size.npy", sizes)
    _write_lines(folder / f"{split}_caps.txt", [c.text for c in captions])
    _write_lines(folder / f"{split}_imagename.txt", names)
    _write_json(folder / f"{split}_caps.json", [c.depends for c in captions])
    _write_json(folder / f"{split}_scenes.json", [record(e, examples, n) for e, n in zip(examples, names)])


def write_ids(folder: Path, vocab) -> None:
    """Write the word ids of every split's captions."""
    for captions in sorted(folder.glob("*_caps.txt")):
        texts = captions.read_text(encoding="utf-8").splitlines()
        ids = [",".join(map(str, encode(text, vocab))) for text in texts]
        _write_lines(captions.with_name(captions.name.replace("_caps", "_precaps_stan")), ids)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_json(path: Path, items: list) -> None:
    lines = (json.dumps(item, separators=(",", ":")) for item in items)
    path.write_text("[" + ",\n".join(lines) + "]\n")


def fill(out: Path, opt: argparse.Namespace) -> None:
    """Make everything inside the empty folder ``out``."""
    folder, images = out / "data" / NAME, out / "images"
    for path in (folder, images, out / "vocab"):
        path.mkdir(parents=True)
    fold = opt.n_testall // FOLDS
    parts = {"train": [opt.n_train], "dev": [opt.n_dev], "test": [fold] * FOLDS}
    total, part = opt.n_train + opt.n_dev + opt.n_testall, 0
    bar = tqdm(total=total, desc="scenes", disable=True if opt.quiet else None)
    for split, blocks in parts.items():
        examples: list[Example] = []
        for count in blocks:
            for example in make_examples(part, count, opt, start=len(examples)):
                draw(example.scene).save(images / f"{split}_{len(examples):05d}.png")
                examples.append(example)
                bar.update()
            part += 1
        names = [f"{split}_{i:05d}.png" for i in range(len(examples))]
        if split == "test":
            write_scenes(folder, "testall", examples, names)
            examples, names = examples[:fold], names[:fold]
        write_scenes(folder, split, examples, names)
    bar.close()
    vocab = build_vocab(out / "data", NAME)
    serialize_vocab(vocab, out / "vocab" / f"{NAME}_vocab.json")
    write_ids(folder, vocab)
    flags = " ".join(f"--{k} {v}" for k, v in vars(opt).items() if k not in ("out", "quiet"))
    (out / "README.txt").write_text(README.format(flags=flags))


def check(out: Path, opt: argparse.Namespace) -> None:
    """Refuse flags that make no data set, and an ``out`` that holds anything else than demo data."""
    for name in ("n_train", "n_dev", "n_testall", "regions", "img_dim"):
        if getattr(opt, name) < 1:
            raise InputError(f"--{name} {getattr(opt, name)}: must be 1 or more")
    if opt.n_testall % FOLDS:
        raise InputError(f"--n_testall {opt.n_testall}: must be a multiple of {FOLDS}, the number of folds")
    if not 0 <= opt.twins <= 1:
        raise InputError(f"--twins {opt.twins}: must be from 0 to 1")
    if not 0 <= opt.noise < float("inf") or opt.seed < 0:
        raise InputError(f"--noise {opt.noise} --seed {opt.seed}: neither may be negative or infinite")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: exists and is not a folder; choose another --out")
    others = [path for path in out.rglob("*") if not OURS.fullmatch(path.relative_to(out).as_posix())]
    if others:
        raise InputError(
            f"{min(others)}: no part of the demo data, and making them again would delete it; "
            "move it or choose another --out"
        )


def make_demo(
    out="demo", n_train=400, n_dev=50, n_testall=250, regions=36, img_dim=64, twins=0.5, noise=0.3, seed=0, quiet=False
) -> Path:
    """Make the data set in the folder ``out``, replacing one made before; returns its path.

    Everything is made in a temporary folder beside ``out`` and renamed at the end. Raises InputError
    for flags that cannot be, and when ``out`` holds anything that this did not make.
    """
    opt = argparse.Namespace(**{k: v for k, v in locals().items() if k != "out"})
    out = Path(os.path.abspath(out))
    check(out, opt)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temp:
            fresh, old = Path(temp) / "new", Path(temp) / "old"
            fresh.mkdir()
            fill(fresh, opt)
            _replace(out, fresh, old)
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot be written ({reason(error)})") from error
    return out


def _replace(out: Path, fresh: Path, old: Path) -> None:
    """Put ``fresh`` in the place of ``out``; on any interruption ``out`` is the old or the new one."""
    try:
        if out.exists():
            os.replace(out, old)
        os.replace(fresh, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.replace(old, out)
        raise


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = result.add_argument
    add("--out", default="demo", help="folder to make; one made before is replaced")
    add("--n_train", type=int, default=400, help="scenes to train on, five captions each")
    add("--n_dev", type=int, default=50, help="scenes to validate on")
    add("--n_testall", type=int, default=250, help="scenes to test on in five folds; test is the first fifth")
    add("--regions", type=int, default=36, help="regions in a scene")
    add("--img_dim", type=int, default=64, help="width of a region's features")
    add("--twins", type=float, default=0.5, help="share of scenes that have a twin with two things exchanged")
    add("--noise", type=float, default=0.3, help="deviation of the noise on features")
    add("--seed", type=int, default=0, help="another seed, other scenes")
    add("--quiet", action="store_true", help="no progress bar")
    return result


def main() -> None:
    args = parser().parse_args()
    out = make_demo(**vars(args))
    print(f"made {out}: {args.n_train} + {args.n_dev} + {args.n_testall} scenes (train, dev, testall)")


if __name__ == "__main__":
    run(main)
