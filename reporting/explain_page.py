"""Pages that explain the score of one pair of image and sentence, or of two pairs side by side.

A page is one HTML file that loads nothing else: its style, script, data and pictures stand inside.
"""

import time
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from reporting.explanation import Explanation, Sentence
from reporting.image_view import ImageView
from reporting.rendering import fitted_page, picture_address, template, text_of_template

PICTURE_SIDES = (960, 720, 540, 400, 300, 200, 0)  # pixels of the longer side that are tried; 0: no pictures
REGION_ROWS = 8  # regions listed in the table of differences
SIDES = ("words", "regions")


class ExplainedPair(NamedTuple):
    """One pair, as a page shows it."""

    name: str  # short, for the heads of columns
    heading: str
    facts: str  # a line under the heading, such as the pair's rank
    view: ImageView
    sentence: Sentence
    explanation: Explanation


def explain_page(title, lead, pairs, about="", note="", links=()):
    """A page about one ExplainedPair, or two side by side -> its HTML, of a bounded size.

    title, lead: texts above the pairs; about: model, data and split; note: a restriction; links: (text, address) of
    other pages.  Pictures shrink until the page fits.  InputError where none fits, and without jinja2.
    """
    form = template("explain.html")
    views = list({id(pair.view): pair.view for pair in pairs}.values())  # one, or two different ones
    common = {
        "title": title, "lead": lead, "about": about, "note": note, "links": links, "pairs": pairs, "number": number,
        "style": text_of_template("report.css") + text_of_template("explain.css"),
        "script": text_of_template("explain.js"), "difference": difference(*pairs) if len(pairs) == 2 else None,
    }  # fmt: skip
    return fitted_page(
        lambda side: form.render(common, data=page_data(pairs, views, side)), PICTURE_SIDES,
        f"the page of {len(views[0].boxes)} regions",
    )  # fmt: skip


def about_model(path, opt, dataset):
    """The line of a page that says which model and which data it shows."""
    return f"Model {path}; data {opt.data_name}, split {dataset.split}; {time.strftime('%Y-%m-%d')}."


def number(value, form=".4f"):
    """A number as text, with the minus sign of pages and none before zero."""
    text = format(value, form)
    return (text if float(text) else format(0, form)).replace("-", "−")


# ---- what the page's script draws


def page_data(pairs, views, side):
    """Images and pairs as plain values; side: longest side of the pictures in pixels, 0 for none."""
    return {
        "images": [
            {"picture": picture_address(view.picture, side), "size": [int(x) for x in view.size],
             "boxes": rounded(view.boxes)}
            for view in views
        ],
        "pairs": [
            {
                "image": next(k for k, view in enumerate(views) if view is pair.view),
                "tokens": pair.sentence.words,
                "score": pair.explanation.score,
                "adds": {side: rounded(getattr(pair.explanation, side), 6) for side in SIDES},
                "attention": {"words": rounded(pair.explanation.beta), "regions": rounded(pair.explanation.alpha)},
                "edges": rounded(pair.explanation.edges),
            }
            for pair in pairs
        ],
        "aligned": aligned_words(*(pair.sentence for pair in pairs)) if len(pairs) == 2 else None,
    }  # fmt: skip


def rounded(values, digits=4):
    return None if values is None else np.round(np.asarray(values, float), digits).tolist()


def aligned_words(left, right):
    """For each word of either Sentence the number of the same word in the other, or -1: two lists."""
    blocks = SequenceMatcher(None, left.words, right.words, autojunk=False).get_matching_blocks()
    pairs = [(a + k, b + k) for a, b, size in blocks for k in range(size)]
    to_right, to_left = dict(pairs), {b: a for a, b in pairs}
    return [
        [to_right.get(w, -1) for w in range(len(left.words))],
        [to_left.get(w, -1) for w in range(len(right.words))],
    ]


# ---- two pairs


class ChangeRow(NamedTuple):
    """A word or a region in both pairs; what is in one pair alone adds 0 to the other."""

    kind: str  # 'words' or 'regions'
    name: str
    numbers: tuple  # in the left and the right pair; -1: not there
    added: tuple  # to the two scores
    attended: tuple  # what a word attends to most in either image: (region, weight), or None

    @property
    def change(self):
        return self.added[1] - self.added[0]


def difference(left, right):
    """Two pairs -> what changes from the left to the right: {'score', 'words', 'regions', 'rows', 'largest'}.

    'words' and 'regions' are the changes of the score by them, None where they add nothing to this system's score.
    """
    found = {side: change_of(side, left.explanation, right.explanation) for side in SIDES}
    rows = [] if found["words"] is None else word_rows(left, right)
    if found["regions"] is not None and left.view is right.view:
        rows += region_rows(left.explanation, right.explanation)
    largest = max((abs(row.change) for row in rows), default=0) or 1
    return {**found, "score": right.explanation.score - left.explanation.score, "rows": rows, "largest": largest}


def change_of(side, left, right):
    if getattr(left, side) is None:
        return None
    return float(getattr(right, side).sum() - getattr(left, side).sum())


def word_rows(left, right):
    """A ChangeRow for each word, in the left sentence's order; words of the right one alone stand where they occur."""
    rows, done = [], 0
    for w, other in enumerate(aligned_words(left.sentence, right.sentence)[0]):
        if other >= 0:
            rows += [word_row(left, right, -1, k) for k in range(done, other)]
            done = other + 1
        rows.append(word_row(left, right, w, other))
    return [*rows, *(word_row(left, right, -1, k) for k in range(done, len(right.sentence.words)))]


def word_row(left, right, *numbers):
    pairs = list(zip((left, right), numbers))
    name = next(pair.sentence.words[w] for pair, w in pairs if w >= 0)
    added = tuple(float(pair.explanation.words[w]) if w >= 0 else 0.0 for pair, w in pairs)
    attended = tuple(most_attended(pair.explanation.beta, w) for pair, w in pairs)
    return ChangeRow("words", name, numbers, added, attended)


def most_attended(beta, word):
    if beta is None or word < 0:
        return None
    return int(beta[word].argmax()), float(beta[word].max())


def region_rows(left, right):
    """A ChangeRow for each of the regions of one image that differ most between two sentences."""
    worst = np.argsort(-abs(right.regions - left.regions), kind="stable")[:REGION_ROWS].tolist()
    return [
        ChangeRow("regions", f"region {r}", (r, r), (float(left.regions[r]), float(right.regions[r])), (None, None))
        for r in worst
    ]
