"""Small scenes of coloured shapes: sampling, drawing, and the regions a detector would give.

Pixel coordinates throughout, origin top left, boxes x1 y1 x2 y2.
"""

from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from PIL import Image, ImageDraw

COLOURS = "red orange yellow green blue purple pink black".split()
SIZES = {"small": 0.48, "medium": 0.7, "big": 0.96}  # side of a thing, as a part of its cell
BACKGROUND = (238, 243, 248)
GRID = 3  # things stand in different cells of a GRID x GRID board
MARGIN = 8  # pixels of background round the board
CLEAR = 1.4  # captions name a relation only when one axis outweighs the other by this factor
NOISE = 0.3  # deviation of the noise on features
ZOOM = 4  # pictures are drawn so many times as large and reduced
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _corners(count: int, *radii: float) -> np.ndarray:
    """Corners (count, 2) round the origin, from the top on; the radii take turns."""
    angles = 2 * np.pi * np.arange(count) / count
    return np.column_stack([np.sin(angles), -np.cos(angles)]) * np.resize(radii, (count, 1))


OUTLINES = {  # stretched over the thing's box
    "circle": _corners(60, 1),
    "square": np.array([[0, 0], [1, 0], [1, 1], [0, 1]]),
    "triangle": _corners(3, 1),
    "star": _corners(10, 1, 0.45),
    "diamond": _corners(4, 1),
    "hexagon": _corners(6, 1),
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

    def boxes(self) -> np.ndarray:
        return np.array([thing.box for thing in self.things])  # (things, 4)

    def relation(self, a: int, b: int) -> str | None:
        """Where thing a stands, seen from thing b: left, right, above, below, or None when unclear."""
        x1, y1, x2, y2 = (u - v for u, v in zip(self.things[a].box, self.things[b].box))
        dx, dy = x1 + x2, y1 + y2  # twice the way from b's centre to a's
        if abs(dx) > CLEAR * abs(dy):
            return "left" if dx < 0 else "right"
        if abs(dy) > CLEAR * abs(dx):
            return "above" if dy < 0 else "below"
        return None

    def agrees(self, facts: list[tuple[str, int, int]]) -> bool:
        """Whether all claims (relation, a, b) are true."""
        return all(self.relation(a, b) == relation for relation, a, b in facts)

    def clear_pairs(self) -> list[tuple[int, int]]:
        return [pair for pair in permutations(range(len(self.things)), 2) if self.relation(*pair)]


def _place(kinds, sites, width: int, height: int) -> tuple[Thing, ...]:
    """Put (shape, colour, size) k on site k = (column, row, jitter x, jitter y), jitter in -1..1."""
    cell = (np.array([width, height]) - 2 * MARGIN) / GRID
    sides = np.array([[SIZES[size]] for _, _, size in kinds]) * cell.min()  # (things, 1)
    centres = MARGIN + cell * (sites[:, :2] + 0.5) + sites[:, 2:] * (cell - sides) / 2
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1).round(2).tolist()
    return tuple(Thing(*kind, tuple(box)) for kind, box in zip(kinds, boxes))


def sample_scenes(rng: np.random.Generator, twins: bool) -> list[Scene]:
    """One scene, or with ``twins`` two: the same things on the same sites, two of them exchanged.

    The exchanged two stand in a clear relation to each other in both scenes (the opposite one).
    """
    while True:
        size, count = rng.integers((240, 200), (321, 261)).tolist(), rng.integers(3, 5)
        looks = rng.permutation([*product(OUTLINES, COLOURS)])[:count].tolist()  # no two things look alike
        kinds = [(*look, str(rng.choice([*SIZES]))) for look in looks]
        cells = rng.permutation([*np.ndindex(GRID, GRID)])[:count]
        sites = np.column_stack([cells, rng.uniform(-1, 1, (count, 2))])
        scene = Scene(*size, _place(kinds, sites, *size))
        pairs = scene.clear_pairs()
        if pairs and not twins:
            return [scene]
        if pairs:
            a, b = pairs[rng.integers(len(pairs))]
            sites[[a, b]] = sites[[b, a]]
            scene = replace(scene, swapped=(a, b))
            other = replace(scene, things=_place(kinds, sites, *size))
            if other.relation(a, b) == OPPOSITE[scene.relation(a, b)]:
                return [scene, other]


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of its own size."""
    picture = Image.new("RGB", (scene.width * ZOOM, scene.height * ZOOM), BACKGROUND)
    for thing in scene.things:
        outline = OUTLINES[thing.shape]  # (corners, 2)
        unit = (outline - outline.min(0)) / np.ptp(outline, 0)
        low, high = np.reshape(thing.box, (2, 2)) * ZOOM
        ImageDraw.Draw(picture).polygon([*map(tuple, low + unit * (high - low))], fill=thing.colour)
    return picture.reduce(ZOOM)


def region_boxes(scene: Scene, rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes as of a detector, (count, 4) float32 in pixels, inside the picture, in random order.

    Four loose boxes of each thing and random places; when ``count`` is small the first of these are kept.
    """
    loose = np.tile(scene.boxes(), (4, 1))
    loose += rng.normal(0, 0.08, loose.shape) * (loose[:, 2:3] - loose[:, :1])
    shares = rng.uniform(0.12, 0.6, (count, 2))  # of the picture's sides
    low = rng.uniform(0, 1 - shares)
    size = (scene.width, scene.height) * 2
    found = np.concatenate([loose, np.concatenate([low, low + shares], 1) * size])[:count]
    return np.clip(rng.permutation(found), 0, size).astype(np.float32)


def region_features(scene: Scene, boxes: np.ndarray, projection: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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
