"""Pages that explain the score of one pair of image and sentence, or of two pairs side by side.

A page is one HTML file that loads nothing else: its style, script, data and pictures stand inside.
"""

import time
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from modules.explanation import Explanation
from reporting.explanation import Sentence
from reporting.image_view import ImageView
from reporting.rendering import fitted_page, picture_address, template, text_of_template

PICTURE_SIDES = (960, 720, 540, 400, 300, 200, 0)  # pixels of the longer side that are tried; 0: no pictures
REGION_ROWS = 8  # regions listed in the table
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
    form, rows = template("explain.html"), table_rows(pairs)
    views = list({id(pair.view): pair.view for pair in pairs}.values())  # one, or two different ones
    common = {
        "title": title, "lead": lead, "about": about, "note": note, "links": links, "pairs": pairs, "number": number,
        "style": text_of_template("report.css") + text_of_template("explain.css"),
        "script": text_of_template("explain.js"), "rows": rows, "adds": pairs[0].explanation.adds,
        "largest": max((abs(row.change) for row in rows), default=0) or 1, "changes": changes(pairs),
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
                "adds": pair.explanation.adds,
                "values": {side: rounded(getattr(pair.explanation, side), 6) for side in SIDES},
                "attention": {"words": rounded(pair.explanation.beta), "regions": rounded(pair.explanation.alpha)},
                "edges": rounded(pair.explanation.edges),
            }
            for pair in pairs
        ],
        "words": numbered_words([pair.sentence for pair in pairs]),
    }  # fmt: skip


def rounded(values, digits=4):
    return None if values is None else np.round(np.asarray(values, float), digits).tolist()


def numbered_words(sentences):
    """The numbers of each word in one Sentence or two, in order; -1 where it is not."""
    if len(sentences) == 1:
        return [(w,) for w in range(len(sentences[0].words))]
    numbers, words = [], [sentence.words for sentence in sentences]
    for same, start, end, other_start, other_end in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        left, right = range(start, end), range(other_start, other_end)
        numbers += zip(left, right) if same == "equal" else [*((w, -1) for w in left), *((-1, w) for w in right)]
    return numbers


# ---- the table of words and regions


class Row(NamedTuple):
    """A word or a region in one pair or two; what is in one pair alone counts as 0 in the other."""

    kind: str  # 'words' or 'regions'
    name: str
    numbers: tuple  # in each pair; -1: not there
    values: tuple  # what it adds to each score, or its cosines
    attended: tuple  # what a word attends to most in each image: (region, weight), or None

    @property
    def change(self):
        """From the left to the right; of one pair the value itself."""
        return self.values[-1] - (self.values[0] if len(self.values) == 2 else 0)


def changes(pairs):
    """{'score', 'words', 'regions': how much it changes from the left pair to the right}, or None for one pair.

    Words and regions are left out where their numbers do not add up to the score.
    """
    if len(pairs) == 1:
        return None
    left, right = (pair.explanation for pair in pairs)
    sides = [side for side in SIDES if left.adds and getattr(left, side) is not None]
    found = {side: float(getattr(right, side).sum() - getattr(left, side).sum()) for side in sides}
    return {"score": right.score - left.score, **found}


def table_rows(pairs):
    """A Row for each word, then for the regions of the one image that differ most, or are largest in one pair."""
    parts, rows = [pair.explanation for pair in pairs], []
    if parts[0].words is not None:
        rows = [word_row(pairs, numbers) for numbers in numbered_words([pair.sentence for pair in pairs])]
    if parts[0].regions is not None and pairs[0].view is pairs[-1].view:
        values = zip(*(part.regions.tolist() for part in parts))
        found = [
            Row("regions", f"region {r}", (r,) * len(pairs), one, (None,) * len(pairs)) for r, one in enumerate(values)
        ]
        rows += sorted(found, key=lambda row: -abs(row.change))[:REGION_ROWS]
    return rows


def word_row(pairs, numbers):
    name = next(pair.sentence.words[w] for pair, w in zip(pairs, numbers) if w >= 0)
    values = tuple(float(pair.explanation.words[w]) if w >= 0 else 0.0 for pair, w in zip(pairs, numbers))
    attended = tuple(most_attended(pair.explanation.beta, w) for pair, w in zip(pairs, numbers))
    return Row("words", name, numbers, values, attended)


def most_attended(beta, word):
    if beta is None or word < 0:
        return None
    return int(beta[word].argmax()), float(beta[word].max())
