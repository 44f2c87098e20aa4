"""Make a small data set of coloured shapes, complete and in the format of docs/method.md, section 1.

    python tools/make_demo.py        # ./demo: data/demo_precomp, vocab, images

The features tell colour, shape and size of what a region shows, with noise, and nothing about where it stands. Beside
the usual files, for train, dev, testall, and test (the first fifth of testall), there are

    SPLIT_imagename.txt   the scenes' pictures in images/
    SPLIT_scenes.json     the truth, which no model reads: the things in each scene; 'twin', the number of the scene
                          that has the two things 'swapped' exchanged, or null; 'facts', what each caption claims;
                          'telling', for each caption whether it is true here and false of the twin

The same flags always give the same bytes. Files of the same names are replaced, others stay as they are.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.start import run

import argparse
from dataclasses import asdict
from itertools import chain

import numpy as np

from files.errors import InputError, reason
from runtime.commandline import Parser, number, whole
from tools.demo_data.captions import Caption, describe
from tools.demo_data.files import write_items, write_lines, write_split
from tools.demo_data.scenes import ATTRIBUTES, Scene, draw, region_boxes, region_features, sample_scenes
from vocab import serialize_vocab, vocab_of_captions

NAME = "demo_precomp"
FOLDS = 5  # testall is evaluated in five folds; test is the first of them


def make_examples(part: int, count: int, opt: argparse.Namespace, start: int = 0):
    """Yield ``count`` times (scene, its twin's number or None, captions, boxes, features), first twins side by side.

    ``start`` is the first one's number. The other parts' sizes have no influence (``part``: 0, 1, folds 2 to 6).
    """
    projection = np.random.default_rng([opt.seed, 99]).normal(0, 1, (len(ATTRIBUTES), opt.img_dim))
    pairs = min(round(count * opt.twins / 2), count // 2)
    for p in range(count - pairs):
        scenes = sample_scenes(np.random.default_rng([opt.seed, part, p, 1]), twins=p < pairs)
        for k, scene in enumerate(scenes):
            rng = np.random.default_rng([opt.seed, part, p, 3 + k])
            captions = describe(scene, np.random.default_rng([opt.seed, part, p, 2]), rng)
            boxes = region_boxes(scene, rng, opt.regions)
            features = region_features(scene, boxes, projection, rng)
            yield scene, start + 2 * p + 1 - k if p < pairs else None, captions, boxes, features


def make_demo(out: Path, opt: argparse.Namespace) -> None:
    """Make the data set in the folder ``out``; opt: the other flags."""
    folder, vocab_path, images = out / "data" / NAME, out / "vocab", out / "images"
    for path in (folder, vocab_path, images):
        path.mkdir(parents=True, exist_ok=True)
    fold = opt.n_testall // FOLDS
    splits = {"train": [*make_examples(0, opt.n_train, opt)], "dev": [*make_examples(1, opt.n_dev, opt)]}
    splits["testall"] = [e for k in range(FOLDS) for e in make_examples(2 + k, fold, opt, start=k * fold)]
    splits["test"] = splits["testall"][:fold]
    known = splits["train"] + splits["dev"]
    vocab = vocab_of_captions([caption.text for _, _, captions, *_ in known for caption in captions])
    serialize_vocab(vocab, vocab_path / f"{NAME}_vocab.json")
    for split, examples in splits.items():
        names = [f"{split.removesuffix('all')}_{i:05d}.png" for i in range(len(examples))]
        scenes, twins, fives, boxes, features = zip(*examples)
        captions, sizes = list(chain(*fives)), [(scene.width, scene.height) for scene in scenes]
        texts, depends = [caption.text for caption in captions], [caption.depends for caption in captions]
        write_split(folder, split, vocab, features, boxes, sizes, texts, depends)
        write_lines(folder / f"{split}_imagename.txt", names)
        write_items(folder / f"{split}_scenes.json", [truth(*of, scenes) for of in zip(names, scenes, twins, fives)])
        for scene, name in zip(scenes, names):
            draw(scene).save(images / name)


def truth(name: str, scene: Scene, twin: int | None, captions: list[Caption], scenes: tuple[Scene]) -> dict:
    """What scenes.json says of one scene."""
    facts = [caption.facts for caption in captions]
    telling = [twin is not None and not scenes[twin].agrees(claims) for claims in facts]
    return {"image": name, **asdict(scene), "twin": twin, "facts": facts, "telling": telling}


def parser() -> Parser:
    result = Parser(description=__doc__.split("\n")[0])
    add = result.add_argument
    add("--out", default="demo", type=Path, help="folder to make")
    add("--n_train", type=whole(), default=400, help="scenes to train on, five captions each")
    add("--n_dev", type=whole(), default=50, help="scenes to validate on")
    add("--n_testall", type=whole(), default=250, help="scenes to test on in five folds; test is the first fifth")
    add("--regions", type=whole(), default=24, help="regions in a scene")
    add("--img_dim", type=whole(), default=64, help="width of a region's features")
    add("--twins", type=number(1), default=0.5, help="share of scenes that have a twin with two things exchanged")
    add("--seed", type=whole(0), default=0, help="another seed, other scenes")
    return result


def main(argv=None) -> None:
    opt = parser().parse_args(argv)
    if opt.n_testall % FOLDS:
        raise InputError(f"--n_testall {opt.n_testall}: must be a multiple of {FOLDS}, the number of folds")
    try:
        make_demo(opt.out, opt)
    except OSError as error:
        raise InputError(f"{error.filename or opt.out}: cannot be written ({reason(error)})") from error
    print(f"made {opt.out}: {opt.n_train} + {opt.n_dev} + {opt.n_testall} scenes (train, dev, testall)")


if __name__ == "__main__":
    run(main)
