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

import json
import re
from dataclasses import asdict, dataclass, replace
from itertools import chain, permutations, product

import numpy as np
from PIL import Image, ImageDraw

from files.errors import InputError, reason
from runtime.commandline import Parser, number, whole
from vocab import encode, serialize_vocab, vocab_of_captions

NAME = "demo_precomp"
FOLDS = 5  # testall is evaluated in five folds; test is the first of them


def parser():
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


# ---- scenes: pixel coordinates throughout, origin top left, boxes x1 y1 x2 y2

COLOURS = "red orange yellow green blue purple pink black".split()
SIZES = {"small": 0.48, "medium": 0.7, "big": 0.96}  # side of a thing, as a part of its cell
BACKGROUND = (238, 243, 248)
GRID = 3  # things stand in different cells of a GRID x GRID board
MARGIN = 8  # pixels of background round the board
CLEAR = 1.4  # captions name a relation only when one axis outweighs the other by this factor
NOISE = 0.3  # deviation of the noise on features
ZOOM = 4  # pictures are drawn so many times as large and reduced


def corners(count, *radii):
    """Corners (count, 2) round the origin, from the top on; the radii take turns."""
    angles = 2 * np.pi * np.arange(count) / count
    return np.column_stack([np.sin(angles), -np.cos(angles)]) * np.resize(radii, (count, 1))


OUTLINES = {  # stretched over the thing's box
    "circle": corners(60, 1),
    "square": np.array([[0, 0], [1, 0], [1, 1], [0, 1]]),
    "triangle": corners(3, 1),
    "star": corners(10, 1, 0.45),
    "diamond": corners(4, 1),
    "hexagon": corners(6, 1),
}
ATTRIBUTES = [*COLOURS, *OUTLINES, *SIZES, "background"]


@dataclass(frozen=True)
class Thing:
    """One coloured shape; ``box`` is x1, y1, x2, y2 in pixels."""

    shape: str
    colour: str
    size: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """Three or four things on a canvas. ``swapped``: the two things its twin scene has exchanged."""

    width: int
    height: int
    things: tuple[Thing, ...]
    swapped: tuple[int, int] | None = None

    def boxes(self):
        return np.array([thing.box for thing in self.things])  # (things, 4)

    def relation(self, a, b):
        """Where thing a stands, seen from thing b: left, right, above, below, or None when unclear."""
        x1, y1, x2, y2 = (u - v for u, v in zip(self.things[a].box, self.things[b].box))
        dx, dy = x1 + x2, y1 + y2  # twice the way from b's centre to a's
        if abs(dx) > CLEAR * abs(dy):
            return "left" if dx < 0 else "right"
        if abs(dy) > CLEAR * abs(dx):
            return "above" if dy < 0 else "below"
        return None

    def agrees(self, facts):
        """Whether all claims (relation, a, b) are true."""
        return all(self.relation(a, b) == relation for relation, a, b in facts)

    def clear_pairs(self):
        return [pair for pair in permutations(range(len(self.things)), 2) if self.relation(*pair)]


def placed(kinds, sites, width, height):
    """Things (shape, colour, size) k on site k = (column, row, jitter x, jitter y), jitter in -1..1."""
    cell = (np.array([width, height]) - 2 * MARGIN) / GRID
    sides = np.array([[SIZES[size]] for _, _, size in kinds]) * cell.min()  # (things, 1)
    centres = MARGIN + cell * (sites[:, :2] + 0.5) + sites[:, 2:] * (cell - sides) / 2
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1).round(2).tolist()
    return tuple(Thing(*kind, tuple(box)) for kind, box in zip(kinds, boxes))


def sample_scenes(rng, twins):
    """One scene, or with ``twins`` two: two things are exchanged, whose clear relation is the opposite in the other."""
    while True:
        size, count = rng.integers((240, 200), (321, 261)).tolist(), rng.integers(3, 5)
        looks = rng.permutation([*product(OUTLINES, COLOURS)])[:count].tolist()  # no two things look alike
        kinds = [(*look, str(rng.choice([*SIZES]))) for look in looks]
        cells = rng.permutation([*np.ndindex(GRID, GRID)])[:count]
        sites = np.column_stack([cells, rng.uniform(-1, 1, (count, 2))])
        scene = Scene(*size, placed(kinds, sites, *size))
        pairs = scene.clear_pairs()
        if pairs and not twins:
            return [scene]
        if pairs:
            a, b = pairs[rng.integers(len(pairs))]
            sites[[a, b]] = sites[[b, a]]
            scene = replace(scene, swapped=(a, b))
            other = replace(scene, things=placed(kinds, sites, *size))
            if other.relation(a, b) == scene.relation(b, a):  # the opposite
                return [scene, other]


def draw(scene):
    """The scene as an RGB picture of its own size."""
    picture = Image.new("RGB", (scene.width * ZOOM, scene.height * ZOOM), BACKGROUND)
    for thing in scene.things:
        outline = OUTLINES[thing.shape]  # (corners, 2)
        unit = (outline - outline.min(0)) / np.ptp(outline, 0)
        low, high = np.reshape(thing.box, (2, 2)) * ZOOM
        ImageDraw.Draw(picture).polygon([*map(tuple, low + unit * (high - low))], fill=thing.colour)
    return picture.reduce(ZOOM)


def region_boxes(scene, rng, count):
    """(count, 4) float32 in pixels, in random order: four loose boxes of each thing, then random places."""
    loose = np.tile(scene.boxes(), (4, 1))
    loose += rng.normal(0, 0.08, loose.shape) * (loose[:, 2:3] - loose[:, :1])
    shares = rng.uniform(0.12, 0.6, (count, 2))  # of the picture's sides
    low = rng.uniform(0, 1 - shares)
    size = (scene.width, scene.height) * 2
    found = np.concatenate([loose, np.concatenate([low, low + shares], 1) * size])[:count]
    return np.clip(rng.permutation(found), 0, size).astype(np.float32)


def region_features(scene, boxes, projection, rng):
    """Features of the boxes: (R, 4) -> (R, F) float32.

    A mixture of the things in the box: colour always, shape and size as far as the box shows them,
    background for the rest, all sent through ``projection`` (attributes, F), and noise, half as much
    again for each thing as a whole. No trace of position or relation.
    """
    things = scene.boxes()  # (T, 4)
    low, high = np.maximum(boxes[:, None, :2], things[:, :2]), np.minimum(boxes[:, None, 2:], things[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)  # (R, T) pixels
    fills = np.sqrt(shared / np.clip((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1, None)[:, None])
    shows = shared / (things[:, 2:] - things[:, :2]).prod(-1)  # the part of the thing that the box shows
    codes = np.zeros((len(boxes), len(projection)))
    for k, thing in enumerate(scene.things):
        codes[:, ATTRIBUTES.index(thing.colour)] += fills[:, k]
        for name in (thing.shape, thing.size):
            codes[:, ATTRIBUTES.index(name)] += fills[:, k] * shows[:, k]
    codes[:, -1] = 1 - np.clip((fills**2).sum(1), 0, 1)
    own = rng.normal(0, NOISE / 2, (len(things), projection.shape[1]))
    features = codes @ projection + fills @ own
    return (features + rng.normal(0, NOISE, features.shape)).astype(np.float32)


# ---- captions with their dependency trees, as Stanford's parser would give them

PLACES = {"left": "to the left (of {})", "right": "to the right (of {})", "above": "above {}", "below": "below {}"}
PAIRS = ("({a}) is ({place})", "{a} ({place})", "there is {a} ({place})", "({place}) is ({a})")
LISTS = ("{}", "there are {}", "a picture (of {})", "we see ({})")


def parse(brackets):
    """A caption with brackets -> the caption, its dependencies.

    In '(the star) is (above a circle) (.)' the last word of a phrase that stands in no inner bracket governs the
    phrase's other words and the inner phrases. So prepositions depend on their noun, copulas on their predicate, and
    'and' on the first of its parts.
    """
    words, heads = [], {}

    def phrase(tokens):
        """Reads up to the end of a phrase; returns the position of its head."""
        own, inner = [], []
        for token in tokens:
            if token == ")":
                break
            if token == "(":
                inner.append(phrase(tokens))
            else:
                words.append(token)
                own.append(len(words))
        *others, head = own
        heads.update(dict.fromkeys(others + inner, head))
        return head

    root = phrase(iter(re.findall(r"[()]|[^\s()]+", brackets)))
    return " ".join(words), [[0, root], *([heads[k], k] for k in sorted(heads))]


class Speaker:
    """Says things about one scene; all methods but the first two return (caption with brackets, facts)."""

    def __init__(self, scene, rng):
        self.scene, self.rng = scene, rng

    def pick(self, choices):
        return choices[self.rng.integers(len(choices))]

    def noun(self, k, articles=("a", "the")):
        """Thing k as a noun phrase that fits no other thing of the scene."""
        thing, article = self.scene.things[k], self.pick(articles)
        size = thing.size if thing.size != "medium" and self.rng.uniform() < 0.3 else ""
        words = f"{size} {thing.colour} {thing.shape}".split()
        return " ".join(["an" if article == "a" and words[0][0] in "aeiou" else article, *words])

    def relate(self, a, *others):
        """Thing a in relation to one or more others."""
        facts = [(self.scene.relation(a, other), a, other) for other in others]
        first, *more = (PLACES[relation].format(self.noun(other)) for relation, _, other in facts)
        place = first + "".join(f" (and) ({other})" for other in more)
        form = PAIRS[0] if more else self.pick(PAIRS)
        return form.format(a=self.noun(a), place=place), facts

    def listing(self):
        """All things in any order: no relation."""
        first, *middle, last = (self.noun(k, ["a"]) for k in self.rng.permutation(len(self.scene.things)))
        text = first + "".join(f" (,) ({noun})" for noun in middle) + f" (and) ({last})"
        return self.pick(LISTS).format(text), []

    def relations(self):
        """Of three things, if there are such relations, else of two."""
        pairs = self.scene.clear_pairs()
        return self.relate(*self.pick([(a, b, c) for a, b in pairs for d, c in pairs if a == d and b != c] or pairs))


def describe(scene, pair_rng, rng):
    """Five different captions of a scene -> [(text, dependencies, facts)], in random order.

    dependencies: pairs [governor, dependent] of word positions from 1, [0, root] first. facts: what a caption claims,
    (relation, a, b) with numbers of things. Two captions tell one relation, which in twins is that of the exchanged
    things and so false of the twin; one tells two relations, two list the things. ``pair_rng`` words the first two:
    equal generators give twins the same sentences but for the relation. ``rng`` words and orders the rest.
    """
    same, free = Speaker(scene, pair_rng), Speaker(scene, rng)
    a, b = scene.swapped or same.pick(scene.clear_pairs())
    first, second = (lambda: same.relate(a, b)), (lambda: same.relate(b, a))
    captions = {}
    for count, kind in enumerate((first, second, free.listing, free.relations, free.listing), 1):
        while len(captions) < count:
            brackets, facts = kind()
            text, depends = parse(f"{brackets} (.)")
            captions.setdefault(text, (text, depends, facts))
    return [list(captions.values())[k] for k in rng.permutation(len(captions))]


# ---- files


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_items(path, items):
    """A JSON list, one item on a line."""
    path.write_text("[" + ",\n".join(json.dumps(item, separators=(",", ":")) for item in items) + "]\n")


def write_split(folder, split, vocab, features, boxes, sizes, captions, depends):
    """Write SPLIT_ims.npy, SPLIT_ims_bbx.npy, SPLIT_ims_size.npy, SPLIT_caps.txt, SPLIT_caps.json and the word ids.

    features: (images, regions, numbers); boxes: (images, regions, 4) in pixels; sizes: (width, height) of each image;
    depends: of each caption [governor, dependent] pairs of word positions from 1, with 0 for ROOT.
    """
    sizes = np.array([tuple(size) for size in sizes], [("image_w", "<i8"), ("image_h", "<i8")])
    for name, array in (("ims", features), ("ims_bbx", boxes)):
        np.save(folder / f"{split}_{name}.npy", np.asarray(array, np.float32))
    np.save(folder / f"{split}_ims_size.npy", sizes)
    write_lines(folder / f"{split}_caps.txt", captions)
    write_lines(folder / f"{split}_precaps_stan.txt", [",".join(map(str, encode(text, vocab))) for text in captions])
    write_items(folder / f"{split}_caps.json", depends)


def make_examples(part, count, opt, start=0):
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


def make_demo(opt):
    """Make the data set in the folder ``opt.out``."""
    folder, vocab_path, images = opt.out / "data" / NAME, opt.out / "vocab", opt.out / "images"
    for path in (folder, vocab_path, images):
        path.mkdir(parents=True, exist_ok=True)
    fold = opt.n_testall // FOLDS
    splits = {"train": [*make_examples(0, opt.n_train, opt)], "dev": [*make_examples(1, opt.n_dev, opt)]}
    splits["testall"] = [e for k in range(FOLDS) for e in make_examples(2 + k, fold, opt, start=k * fold)]
    splits["test"] = splits["testall"][:fold]
    known = splits["train"] + splits["dev"]
    vocab = vocab_of_captions([text for _, _, captions, *_ in known for text, *_ in captions])
    serialize_vocab(vocab, vocab_path / f"{NAME}_vocab.json")
    for split, examples in splits.items():
        names = [f"{split.removesuffix('all')}_{i:05d}.png" for i in range(len(examples))]
        scenes, twins, fives, boxes, features = zip(*examples)
        texts, depends, _ = zip(*chain(*fives))
        sizes = [(scene.width, scene.height) for scene in scenes]
        write_split(folder, split, vocab, features, boxes, sizes, texts, depends)
        write_lines(folder / f"{split}_imagename.txt", names)
        truth = []
        for name, scene, twin, five in zip(names, scenes, twins, fives):
            facts = [claims for _, _, claims in five]
            telling = [twin is not None and not scenes[twin].agrees(claims) for claims in facts]
            truth.append({"image": name, **asdict(scene), "twin": twin, "facts": facts, "telling": telling})
            draw(scene).save(images / name)
        write_items(folder / f"{split}_scenes.json", truth)


def main(argv=None):
    opt = parser().parse_args(argv)
    if opt.n_testall % FOLDS:
        raise InputError(f"--n_testall {opt.n_testall}: must be a multiple of {FOLDS}, the number of folds")
    try:
        make_demo(opt)
    except OSError as error:
        raise InputError(f"{error.filename or opt.out}: cannot be written ({reason(error)})") from error
    print(f"made {opt.out}: {opt.n_train} + {opt.n_dev} + {opt.n_testall} scenes (train, dev, testall)")


if __name__ == "__main__":
    run(main)
