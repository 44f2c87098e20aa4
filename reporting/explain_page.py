"""Pages that explain the score of one pair of image and sentence, or of two pairs side by side.

A page is one HTML file that loads nothing else: its style, script, data and pictures stand inside.
"""

import base64
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from reporting.explanation import Explanation, Sentence
from reporting.image_view import ImageView
from reporting.rendering import fitted_page, picture_address, template, text_of_template

PICTURE_SIDES = (960, 720, 540, 400, 300, 200, 0)  # pixels of the longer side that are tried; 0: no pictures
REGION_ROWS = 8  # regions listed in the table of differences


class ExplainedPair(NamedTuple):
    """One pair, as a page shows it."""

    heading: str
    facts: str  # a line under the heading, such as the pair's rank
    view: ImageView
    sentence: Sentence
    explanation: Explanation


def explain_page(title, lead, pairs, note=""):
    """A page about one ExplainedPair, or two side by side -> its HTML, of a bounded size.

    title, lead and note: texts above the pairs; note: a restriction, or "".

    Pictures shrink until the page fits; where none fits, the spatial kernels are left out.  InputError where even
    that is too large, and without jinja2.
    """
    form = template("explain.html")
    style = text_of_template("report.css") + text_of_template("explain.css")
    views, sentences = unique(pair.view for pair in pairs), unique(pair.sentence for pair in pairs)
    common = {
        "title": title, "lead": lead, "note": note, "pairs": pairs, "views": views, "sentences": sentences,
        "style": style, "script": text_of_template("explain.js"),
        "difference": difference(*pairs) if len(pairs) == 2 else None,
    }  # fmt: skip

    def render(size):
        side, with_kernels = size
        data = page_data(pairs, views, sentences, side, with_kernels)
        return form.render(common, data=data, with_kernels=with_kernels)

    sizes = [(side, with_kernels) for with_kernels in (True, False) for side in PICTURE_SIDES]
    return fitted_page(render, sizes, f"the page of {len(views[0].boxes)} regions")


def unique(items):
    """The different objects among items, in their order."""
    return list({id(item): item for item in items}.values())


def position(items, item):
    return next(k for k, other in enumerate(items) if other is item)


# ---- what the page's script draws


def page_data(pairs, views, sentences, side, with_kernels):
    """Images, captions and pairs as plain values; side: longest side of the pictures in pixels, 0 for none."""
    of_view = {id(pair.view): pair.explanation for pair in pairs}
    of_sentence = {id(pair.sentence): pair.explanation for pair in pairs}
    return {
        "images": [image_data(view, of_view[id(view)], side, with_kernels) for view in views],
        "captions": [
            {
                "tokens": sentence.words,
                "edges": of_sentence[id(sentence)].pairs,
                "word_edges": rounded(of_sentence[id(sentence)].word_edges),
            }
            for sentence in sentences
        ],
        "pairs": [
            {
                "image": position(views, pair.view),
                "caption": position(sentences, pair.sentence),
                "score": pair.explanation.score,
                **{name: rounded(getattr(pair.explanation, name), 6) for name in ("regions", "words")},
                **{name: rounded(getattr(pair.explanation, name)) for name in ("alpha", "beta")},
                **{name: rounded(getattr(pair.explanation, name), 3) for name in ("region_match", "word_match")},
            }
            for pair in pairs
        ],
        "aligned": aligned_words(*sentences) if len(sentences) == 2 else None,
    }


def image_data(view, explanation, side, with_kernels):
    return {
        "picture": picture_address(view.picture, side),
        "size": [int(x) for x in view.size],
        "boxes": rounded(view.boxes),
        "kernels": packed(explanation.kernels) if with_kernels else None,
    }


def rounded(values, digits=4):
    return np.round(np.asarray(values, float), digits).tolist()


def packed(kernels):
    """Weights (8, R, R) in 0 ... 1 as base64 of 16-bit integers, low byte first."""
    return base64.b64encode(np.round(kernels * 65535).astype("<u2").tobytes()).decode()


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

    name: str
    numbers: tuple  # in the left and the right pair; -1: not there
    added: tuple  # to the two scores
    change: float  # right minus left
    attended: tuple  # what a word attends to most in either image: (region, weight), or None


def difference(left, right):
    """Two pairs -> what each word and region changes between them: {'score', 'words', 'regions', 'rows', ...}."""
    parts = {
        name: float(getattr(right.explanation, name).sum() - getattr(left.explanation, name).sum())
        for name in ("words", "regions")
    }
    rows = word_rows(left, right)
    regions = region_rows(left, right) if left.view is right.view else []
    largest = max((abs(row.change) for row in (*rows, *regions)), default=0) or 1
    score = right.explanation.score - left.explanation.score
    return {**parts, "score": score, "rows": rows, "region_rows": regions, "largest": largest}


def word_rows(left, right):
    """A ChangeRow for each word, in the left sentence's order; words of the right one alone stand where they occur."""
    same = left.sentence is right.sentence
    to_right = range(len(left.sentence.words)) if same else aligned_words(left.sentence, right.sentence)[0]
    rows, done = [], 0
    for w, other in enumerate(to_right):
        if other >= 0:
            rows += [word_row(left, right, -1, k) for k in range(done, other)]
            done = other + 1
        rows.append(word_row(left, right, w, other))
    return [*rows, *(word_row(left, right, -1, k) for k in range(done, len(right.sentence.words)))]


def word_row(left, right, *numbers):
    pairs = list(zip((left, right), numbers))
    name = next(pair.sentence.words[w] for pair, w in pairs if w >= 0)
    added = tuple(float(pair.explanation.words[w]) if w >= 0 else 0.0 for pair, w in pairs)
    attended = tuple(most_attended(pair.explanation.beta[w]) if w >= 0 else None for pair, w in pairs)
    return ChangeRow(name, numbers, added, added[1] - added[0], attended)


def most_attended(weights):
    return int(weights.argmax()), float(weights.max())


def region_rows(left, right):
    """A ChangeRow for each of the regions of one image that differ most between two sentences."""
    change = right.explanation.regions - left.explanation.regions
    return [
        ChangeRow(f"region {r}", (r, r), (float(left.explanation.regions[r]), float(right.explanation.regions[r])),
            float(change[r]), (None, None))
        for r in np.argsort(-abs(change), kind="stable")[:REGION_ROWS].tolist()
    ]  # fmt: skip
