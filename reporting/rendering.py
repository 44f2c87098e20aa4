"""Pages from the templates in templates/, and the charts in them."""

import math
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
PAGES = jinja2.Environment(  # a value that is not given is an error
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
template = PAGES.get_template
LEFT, TOP, WIDTH, HEIGHT = 66, 14, 318, 190  # of a chart's axes within 400 x 250


def chart(title, lines, ticks, unit, top=None):
    """A chart from 0 up, as figures.html draws it.

    lines: {name: [(x, y)]}; ticks: {x from 0 on: text}, the last x being where the chart ends; unit: of x; top: the
    highest y, by default a round number above the lines.
    """
    end, top = max(ticks), top or round_above(max(y for line in lines.values() for _, y in line))

    def across(x):
        return f"{LEFT + WIDTH * x / end:.1f}"

    def down(y):
        return f"{TOP + HEIGHT * (1 - max(y, 0) / top):.1f}"

    return {
        "title": title,
        "unit": unit,
        "across": [(across(x), text) for x, text in ticks.items()],
        "down": [(down(top * part), f"{top * part:.4g}") for part in (0, 0.25, 0.5, 0.75, 1)],
        "lines": [(name, " ".join(f"{across(x)},{down(y)}" for x, y in line)) for name, line in lines.items()],
    }


def round_above(value):
    """The lowest number at least as high that has round quarters; 1 for numbers that are not positive."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(part * power for part in (1, 2, 3, 4, 6, 8, 10) if part * power >= value * (1 - 1e-9))
