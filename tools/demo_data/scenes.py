"""Small scenes of coloured shapes: sampling, drawing, and the regions a detector would give.

Pixel coordinates throughout, origin top left, boxes x1 y1 x2 y2. Everything random comes from the
numpy generator passed in, so a scene depends on its seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 137, 36),
    "yellow": (247, 210, 52),
    "green": (52, 160, 84),
    "blue": (44, 98, 204),
    "purple": (132, 66, 176),
    "pink": (245, 140, 190),
    "black": (42, 44, 52),
}
SIZES = {"small": 0.48, "medium": 0.7, "big": 0.96}  # side of a thing, as a part of its cell
BACKGROUNDS = ((238, 243, 248), (246, 241, 232), (237, 245, 238), (245, 238, 244), (240, 240, 240))
GRID = 3  # things stand in different cells of a GRID x GRID board
MARGIN = 8  # pixels of background round the board
CLEAR = 1.4  # captions name a relation only when one axis outweighs the other by this factor
ZOOM = 4  # pictures are drawn so many times as large and reduced
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

TURN = np.linspace(0, 2 * np.pi, 60, endpoint=False)
STAR = np.where(np.arange(10) % 2, 0.45, 1) * np.exp(1j * np.pi * (np.arange(10) / 5 - 0.5))
OUTLINES = {  # corners (x, y), stretched over the thing's box
    "circle": (np.cos(TURN), np.sin(TURN)),
    "square": ([0, 1, 1, 0], [0, 0, 1, 1]),
    "triangle": ([1, 2, 0], [0, 1, 1]),
    "star": (STAR.real, STAR.imag),
    "diamond": ([1, 2, 1, 0], [0, 1, 2, 1]),
    "heart": (
        16 * np.sin(TURN) ** 3,
        -13 * np.cos(TURN) + 5 * np.cos(2 * TURN) + 2 * np.cos(3 * TURN) + np.cos(4 * TURN),
    ),
    "cross": ([1, 2, 2, 3, 3, 2, 2, 1, 1, 0, 0, 1], [0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 1, 1]),
}
SHAPES = tuple(OUTLINES)


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
    background: tuple[int, int, int]
    things: tuple[Thing, ...]
    swapped: tuple[int, int] | None = None

    def relation(self, a: int, b: int) -> str | None:
        """Where thing a stands, seen from thing b: left, right, above, below, or None when unclear."""
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = self.things[a].box, self.things[b].box
        dx, dy = (ax1 + ax2) / 2 - (bx1 + bx2) / 2, (ay1 + ay2) / 2 - (by1 + by2) / 2
        if abs(dx) > CLEAR * abs(dy):
            return "left" if dx < 0 else "right"
        if abs(dy) > CLEAR * abs(dx):
            return "above" if dy < 0 else "below"
        return None

    def clear_pairs(self) -> list[tuple[int, int]]:
        return [pair for pair in permutations(range(len(self.things)), 2) if self.relation(*pair)]

    def betweens(self) -> list[tuple[int, int, int]]:
        """All (a, b, c) with thing a between b and c: b, a, c in one direction, each pair clear."""
        return [
            (a, b, c)
            for b, a, c in permutations(range(len(self.things)), 3)
            if self.relation(b, a) and self.relation(b, a) == self.relation(a, c) == self.relation(b, c)
        ]


def _place(kinds, sites, width: int, height: int) -> tuple[Thing, ...]:
    """Put (shape, colour, size) k on site k = (column, row, jitter x, jitter y), jitter in -1..1."""
    cell_w, cell_h = (width - 2 * MARGIN) / GRID, (height - 2 * MARGIN) / GRID
    things = []
    for (shape, colour, size), (column, row, jx, jy) in zip(kinds, sites):
        side = SIZES[size] * min(cell_w, cell_h)
        x = MARGIN + cell_w * (column + 0.5) + jx * (cell_w - side) / 2
        y = MARGIN + cell_h * (row + 0.5) + jy * (cell_h - side) / 2
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        things.append(Thing(shape, colour, size, tuple(round(v, 2) for v in box)))
    return tuple(things)


def sample_scenes(rng: np.random.Generator, twins: bool) -> list[Scene]:
    """One scene, or with ``twins`` two: the same things on the same sites, two of them exchanged.

    The exchanged two stand in a clear relation to each other in both scenes (the opposite one).
    """
    while True:
        width, height = int(rng.integers(240, 321)), int(rng.integers(200, 261))
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        count = int(rng.integers(3, 5))
        looks = rng.choice(len(SHAPES) * len(COLOURS), count, replace=False)  # no two things look alike
        kinds = [
            (SHAPES[k // len(COLOURS)], list(COLOURS)[k % len(COLOURS)], list(SIZES)[rng.integers(3)]) for k in looks
        ]
        cells = rng.choice(GRID * GRID, count, replace=False)
        sites = [(int(c) % GRID, int(c) // GRID, *rng.uniform(-1, 1, 2)) for c in cells]
        scene = Scene(width, height, background, _place(kinds, sites, width, height))
        pairs = scene.clear_pairs()
        if not twins and pairs:
            return [scene]
        if pairs:
            a, b = pairs[rng.integers(len(pairs))]
            sites[a], sites[b] = sites[b], sites[a]
            scene = replace(scene, swapped=(a, b))
            other = replace(scene, things=_place(kinds, sites, width, height))
            if other.relation(a, b) == OPPOSITE[scene.relation(a, b)]:
                return [scene, other]


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of its own size."""
    picture = Image.new("RGB", (scene.width * ZOOM, scene.height * ZOOM), scene.background)
    for thing in scene.things:
        outline = np.transpose(OUTLINES[thing.shape]).astype(float)  # (corners, 2)
        unit = (outline - outline.min(0)) / np.ptp(outline, 0)
        low, high = np.reshape(thing.box, (2, 2)) * ZOOM
        ImageDraw.Draw(picture).polygon([*map(tuple, low + unit * (high - low))], fill=COLOURS[thing.colour])
    return picture.reduce(ZOOM)


def _jittered(box, rng) -> list[float]:
    x1, y1, x2, y2 = box
    dx, dy = rng.normal(0, 0.08, 2) * (x2 - x1)
    gx, gy = rng.uniform(-0.08, 0.16, 2) * (x2 - x1)
    return [x1 + dx - gx, y1 + dy - gy, x2 + dx + gx, y2 + dy + gy]


def _within(box, rng, low: float, high: float) -> list[float]:
    """A random box inside ``box`` whose sides are low..high of it."""
    x1, y1, x2, y2 = box
    w, h = rng.uniform(low, high, 2) * (x2 - x1, y2 - y1)
    x, y = x1 + rng.uniform() * (x2 - x1 - w), y1 + rng.uniform() * (y2 - y1 - h)
    return [x, y, x + w, y + h]


def region_boxes(scene: Scene, rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes as of a detector, (count, 4) float32 in pixels, inside the picture, in random order.

    Of each thing four loose boxes and two of a part, unions of two things, the whole picture, and
    random places; when ``count`` is small the first in this list are kept.
    """
    boxes = [thing.box for thing in scene.things]
    whole = (0, 0, scene.width, scene.height)
    found = [_jittered(box, rng) for _ in range(4) for box in boxes]
    pairs = [(boxes[i], boxes[j]) for i in range(len(boxes)) for j in range(i)]
    for one, other in (pairs[k] for k in rng.permutation(len(pairs))[:4]):
        found.append([*np.minimum(one, other)[:2], *np.maximum(one, other)[2:]])
    found += [whole] + [_within(box, rng, 0.35, 0.7) for _ in range(2) for box in boxes]
    found += [_within(whole, rng, 0.12, 0.45) for _ in range(count)]
    kept = np.array(found[:count])[rng.permutation(count)]
    return np.clip(kept, 0, (scene.width, scene.height) * 2).astype(np.float32)


def region_features(
    scene: Scene, boxes: np.ndarray, projection: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Features of the boxes: (R, 4) -> (R, F) float32.

    A mixture of the things in the box: colour always, shape and size as far as the box shows them,
    background for the rest, all sent through ``projection`` (attributes, F), and noise of the given
    deviation, half as much again for each thing as a whole. No trace of position or relation.
    """
    things = np.array([thing.box for thing in scene.things])  # (T, 4)
    low = np.maximum(boxes[:, None, :2], things[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], things[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)  # (R, T) pixels
    fills = np.sqrt(shared / np.clip((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1, None)[:, None])
    shows = shared / (things[:, 2:] - things[:, :2]).prod(-1)  # the part of the thing that the box shows
    attributes = [*COLOURS, *SHAPES, *SIZES]
    codes = np.zeros((len(boxes), len(projection)))
    for k, thing in enumerate(scene.things):
        codes[:, attributes.index(thing.colour)] += fills[:, k]
        for name in (thing.shape, thing.size):
            codes[:, attributes.index(name)] += fills[:, k] * shows[:, k]
    codes[:, -1] = 1 - np.clip((fills**2).sum(1), 0, 1)
    own = rng.normal(0, noise / 2, (len(scene.things), projection.shape[1]))
    features = codes @ projection + fills @ own + rng.normal(0, noise, (len(boxes), projection.shape[1]))
    return features.astype(np.float32)


def make_projection(rng: np.random.Generator, img_dim: int) -> np.ndarray:
    """The fixed random projection, (attributes, img_dim): colours, shapes, sizes, background."""
    return rng.normal(0, 1, (len(COLOURS) + len(SHAPES) + len(SIZES) + 1, img_dim))
