"""Pages that explain the score of one pair of image and sentence, or of two pairs side by side.

A page is one HTML file that loads nothing else: its style, script, data and pictures stand inside.
"""

import time
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from model import Explanation
from reporting.explanation import Sentence
from reporting.image_view import ImageView
from reporting.rendering import template

REGION_ROWS = 8  # regions listed in the table
SIDES = ("words", "regions")


class ExplainedPair(NamedTuple):
    """One pair, as a page shows it."""

    name: str  # short, for the heads of columns
    heading: str  # shown above one of two pairs
    facts: str  # a line under the heading, such as the pair's rank
    view: ImageView
    sentence: Sentence
    explanation: Explanation


def explain_page(title, lead, pairs, about="", links=()):
    """A page about one ExplainedPair, or two side by side -> its HTML.

    title, lead: texts above the pairs; about: model, data and split; links: (text, address) of other pages.
    """
    words = numbered_words([pair.sentence for pair in pairs])
    rows = table_rows(pairs, words)
    return template("explain.html").render(
        title=title,
        lead=lead,
        about=about,
        links=links,
        pairs=pairs,
        data=[script_data(pair) for pair in pairs],
        words=words,
        rows=rows,
        largest=max((abs(row.change) for row in rows), default=0) or 1,
        adds=pairs[0].explanation.adds,
        regions_of=regions_of,
        number=number,
    )


def about_model(path, opt, dataset):
    """The line of a page that says which model and which data it shows."""
    return f"Model {path}; data {opt.data_name}, split {dataset.split}; {time.strftime('%Y-%m-%d')}."


def number(value, form=".4f"):
    """A number as text, with the minus sign of pages and none before zero."""
    text = format(value, form)
    return (text if float(text) else format(0, form)).replace("-", "−")


def script_data(pair):
    """The numbers of a pair that explain.js shows."""
    parts = pair.explanation
    return {
        "tokens": pair.sentence.words,
        "score": parts.score,
        "adds": parts.adds,
        "values": {side: rounded(getattr(parts, side), 6) for side in SIDES},
        "attention": {"words": rounded(parts.beta), "regions": rounded(parts.alpha)},
        "edges": rounded(parts.edges),
    }


def rounded(values, digits=4):
    return None if values is None else np.round(np.asarray(values, float), digits).tolist()


def regions_of(view):
    """[(number, x, y, width, height)] in the view's pixels, the smallest last: it lies on top and can be pointed at."""
    left, top, right, bottom = (view.boxes * np.tile(view.size, 2)).T
    width, height = np.maximum(right - left, 0), np.maximum(bottom - top, 0)
    places = np.stack([left, top, width, height], 1).round(1).tolist()
    return [(r, *places[r]) for r in np.argsort(-width * height, kind="stable").tolist()]


def numbered_words(sentences):
    """The numbers of each word in one Sentence or two, in order; -1 where it is not."""
    if len(sentences) == 1:
        return [(w,) for w in range(len(sentences[0].words))]
    numbers, words = [], [sentence.words for sentence in sentences]
    for same, start, end, other_start, other_end in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        left, right = range(start, end), range(other_start, other_end)
        numbers += zip(left, right) if same == "equal" else [*((w, -1) for w in left), *((-1, w) for w in right)]
    return numbers


class Row(NamedTuple):
    """A word or a region in one pair or two; what is in one pair alone counts as 0 in the other."""

    kind: str  # 'words' or 'regions'
    name: str
    numbers: tuple  # in each pair; -1: not there
    values: list  # what it adds to each score, or its cosines
    attended: list  # what a word attends to most in each image: (region, weight), or None

    @property
    def change(self):
        """From the left to the right; of one pair the value itself."""
        return self.values[-1] - (self.values[0] if len(self.values) == 2 else 0)


def table_rows(pairs, words):
    """A Row for each word, then for the regions of the one image that differ most, or are largest in one pair."""
    first, rows = pairs[0].explanation, []
    if first.words is not None:
        rows += [table_row("words", pairs, numbers) for numbers in words]
    if first.regions is not None and pairs[0].view is pairs[-1].view:
        found = [table_row("regions", pairs, (r,) * len(pairs)) for r in range(len(first.regions))]
        rows += sorted(found, key=lambda row: -abs(row.change))[:REGION_ROWS]
    return rows


def table_row(kind, pairs, numbers):
    values = [float(getattr(pair.explanation, kind)[k]) if k >= 0 else 0.0 for pair, k in zip(pairs, numbers)]
    if kind == "regions":
        return Row(kind, f"region {numbers[0]}", numbers, values, [None] * len(pairs))
    name = next(pair.sentence.words[k] for pair, k in zip(pairs, numbers) if k >= 0)
    attended = [most_attended(pair.explanation.beta, k) for pair, k in zip(pairs, numbers)]
    return Row(kind, name, numbers, values, attended)


def most_attended(beta, word):
    if beta is None or word < 0:
        return None
    return int(beta[word].argmax()), float(beta[word].max())
