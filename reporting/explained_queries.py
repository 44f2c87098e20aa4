"""Pages that explain an evaluation's failures: the true pair beside the best wrong pair.

`explain_queries` writes a folder of pages and a list of them, for the queries with the worst ranks in both directions
and for pairs that the user names; `Explanations` does so for the models of a Report.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import data
from checkpoints.loading import load_model
from files.errors import InputError, warn
from files.writing import atomic_write, make_folder, text_as_name
from reporting.explain_page import ExplainedPair, about_model, explain_page
from reporting.explanation import can_explain, caption_sentence, caption_text, explain_pair
from reporting.image_view import ImageViewer, warn_of_notes
from reporting.rendering import template, text_of_template
from systems.table import inputs_of

LOOKS = {"images": " looks for captions", "captions": " looks for its image"}


class Comparison(NamedTuple):
    """A query and two candidates, to be explained side by side."""

    kind: str  # 'images': an image looks for captions; 'captions': a caption looks for images
    query: int  # number of the image or caption
    true: int  # one of the query's own candidates
    other: int  # the candidate beside it
    rank: int  # of the first own candidate, from 1
    other_is_first: bool = True  # the other is the best of all candidates that are not the query's own

    @property
    def file(self):
        return f"{self.kind}-{self.query}-{self.other}.html"


class WrittenPage(NamedTuple):
    file: str
    query: str  # the caption's text, or the image's number
    beside: str  # the candidate beside the true one
    kind: str
    number: int  # of the query
    rank: int
    bytes: int


class ExplainedModel(NamedTuple):
    """One model's folder of pages."""

    folder: str
    name: str  # of the model
    pages: list  # of WrittenPage

    @property
    def bytes(self):
        return sum(page.bytes for page in self.pages)


# ---- which pairs


def worst_queries(found, kind, count, per):
    """The `count` queries with the largest ranks -> Comparisons, worst first.

    found: reporting.candidates.Found of one direction; kind: 'images' or 'captions'; per: captions of an image.
    Queries of equal rank stand in the order of how far the candidate found first is ahead.
    """
    places = [first_rival(found, kind, q, per) for q in range(len(found.ids))]
    ahead = np.array([found.scores[q, place] for q, place in enumerate(places)]) - found.own_scores.max(1)
    worst = np.lexsort((-ahead, -found.ranks))[:count].tolist()
    return [
        Comparison(kind, q, true_candidate(found, kind, q, per), int(found.ids[q, places[q]]), int(found.ranks[q]))
        for q in worst
    ]


def first_rival(found, kind, query, per):
    """Position in found.ids[query] of the best candidate that is not the query's own."""
    if kind == "images":
        others = found.ids[query] // per != query
    else:
        others = found.ids[query] != query // per
    if not others.any():
        raise InputError("--explain: the split has one image, and nothing to compare it with")
    return int(others.argmax())


def true_candidate(found, kind, query, per):
    """The best of a query's own candidates."""
    return int(query * per + found.own_scores[query].argmax()) if kind == "images" else int(query // per)


def named_pair(text, dataset):
    """IMAGE:CAPTION, from 0 -> (image, caption); InputError for other texts and numbers that the split lacks."""
    image, _, caption = text.partition(":")
    if not (image.isdecimal() and caption.isdecimal()):
        raise InputError(f"--explain_pair {text}: need the numbers IMAGE:CAPTION, from 0, such as 3:17")
    image, caption = int(image), int(caption)
    if image >= dataset.n_images or caption >= len(dataset):
        raise InputError(
            f"--explain_pair {text}: the split {dataset.split} has images 0 to {dataset.n_images - 1} "
            f"and captions 0 to {len(dataset) - 1}"
        )
    return image, caption


def named_comparison(text, dataset, found):
    """IMAGE:CAPTION -> a Comparison of the caption's own image with that image.

    For a pair that belongs together, the other image is the best of the rest.
    """
    image, caption = named_pair(text, dataset)
    per, own, captions = len(dataset) // dataset.n_images, dataset.image_of(caption), found["captions"]
    rank = int(captions.ranks[caption])
    if image != own:
        return Comparison("captions", caption, own, image, rank, False)
    place = first_rival(captions, "captions", caption, per)
    return Comparison("captions", caption, own, int(captions.ids[caption, place]), rank)


# ---- their pages


def explain_queries(folder, model, dataset, found, count, named=(), images=None, title="", folds=1, about="", note=""):
    """Write the pages of the `count` worst queries each way and of the pairs named, and index.html, into a folder.

    folder: two below the report's; model, dataset: what was evaluated; found: {'images': Found, 'captions': Found} of
    its evaluation; named: IMAGE:CAPTION texts; images: folder of picture files, or None; folds: parts of the split that
    were evaluated apart; title, about: the model's name; model, data and split; note: a restriction that each page
    states, or "".  Returns the WrittenPages.
    """
    comparisons = [named_comparison(text, dataset, found) for text in named]
    for kind in ("captions", "images"):
        comparisons += worst_queries(found[kind], kind, count, len(dataset) // dataset.n_images)
    comparisons = list(dict.fromkeys(comparisons))
    folder, viewer, pages, noted = Path(folder), ImageViewer(dataset, images), [], {}
    make_folder(folder)
    for k, comparison in enumerate(tqdm(comparisons, desc="explanations", disable=None, leave=False)):
        query, lead, pairs = compared_pairs(model, dataset, viewer, comparison, folds)
        noted.update({pair.view.number: pair.view._replace(picture=None) for pair in pairs})
        links = links_of(comparisons, k)
        content = explain_page(query + LOOKS[comparison.kind], lead, pairs, about, note, links).encode()
        atomic_write(folder / comparison.file, lambda file, content=content: file.write(content))
        kind, number, rank = comparison.kind, comparison.query, comparison.rank
        pages.append(WrittenPage(comparison.file, query, pairs[1].heading, kind, number, rank, len(content)))
    warn_of_notes(noted.values())
    style = text_of_template("report.css")
    text = template("explanations.html").render(title=title, about=about, pages=pages, style=style)
    atomic_write(folder / "index.html", lambda file: file.write(text.encode()))
    return pages


def links_of(comparisons, k):
    """(text, address) from page k to the report, to its query there, and to the other explanations."""
    one, beside = comparisons[k], {"Previous": k - 1, "Next": k + 1}
    return [
        ("Report", "../../index.html"),
        ("This query in the report", f"../../{one.kind}.html#query={one.query}"),
        ("All explanations", "index.html"),
        *((text, comparisons[n].file) for text, n in beside.items() if 0 <= n < len(comparisons)),
    ]


def compared_pairs(model, dataset, viewer, comparison, folds=1):
    """A Comparison -> (the query, a line about it, [ExplainedPair of the true candidate, of the other])."""
    by_image = comparison.kind == "images"
    roles = {comparison.true: "True", comparison.other: role_of(comparison)}
    view, pairs = cache(viewer), []  # one view for both pairs of an image
    for candidate, role in roles.items():
        image, caption = (comparison.query, candidate) if by_image else (candidate, comparison.query)
        heading = f"{role}: {candidate_name(dataset, by_image, image, caption)}"
        sentence = caption_sentence(dataset, caption)
        explanation = explain_pair(model, dataset, image, sentence)
        pairs.append(ExplainedPair(role, heading, "", view(image), sentence, explanation))
    if by_image:
        query, lead = f"Image {comparison.query}", "The first of its own captions"
    else:
        query = f"“{caption_text(dataset, comparison.query)}”"
        lead = f"Caption {comparison.query}. Its image"
    count = (len(dataset) if by_image else dataset.n_images) // folds
    return query, f"{lead} has rank {comparison.rank:,} of {count:,}.", pairs


def role_of(comparison):
    if not comparison.other_is_first:
        return "Named"
    return "Found first" if comparison.rank > 1 else "Best of the others"


def candidate_name(dataset, by_image, image, caption):
    """A candidate as a heading: an image's number, or a caption's text."""
    if not by_image:
        return f"image {image}"
    owner = dataset.image_of(caption)
    of = "" if owner == image else f", of image {owner}"
    return f"“{caption_text(dataset, caption)}” (caption {caption}{of})"


class Explanations:
    """The part of a Report that explains queries: for each model that can be explained a folder of pages.

    count: worst queries each way; named: IMAGE:CAPTION texts; split; overrides: the evaluation's, to load its models
    again.
    """

    def __init__(self, count, named, split, overrides):
        self.count, self.named, self.split, self.overrides = count, named, split, overrides

    def check(self, dataset):
        """InputError before the evaluation for a named pair that the split does not have."""
        for text in self.named:
            named_pair(text, dataset)

    def write(self, folder, models, images, folds=1):
        """models: [{'path', 'name', 'result', 'images': Found, 'captions': Found}] -> [ExplainedModel].

        The pages of a model stand in folder/name.  Ensembles have none, nor models that do not match words and regions.
        """
        explained = []
        for found in models:
            if "checkpoint" not in found["result"]:
                continue
            model, opt, vocab = load_model(found["path"], **self.overrides)
            if not can_explain(model):
                continue
            dataset = data.open_split(self.split, opt.data_name, vocab, opt)
            place, about = Path(folder) / text_as_name(found["name"]), about_model(found["path"], opt, dataset)
            more = found["name"], folds, about, boxes_note(opt)
            pages = explain_queries(place, model, dataset, found, self.count, self.named, images, *more)
            explained.append(ExplainedModel(place.name, found["name"], pages))
            print(f"Explanations of {found['name']}: {len(pages)} pages, {explained[-1].bytes / 1e6:.1f} MB")
        if not explained:
            warn("--explain: no checkpoint here matches words and regions; nothing to explain")
        return explained


def boxes_note(opt):
    """A sentence where the evaluation has used other boxes than an explanation does, else ''."""
    if inputs_of(opt).boxes != "released":
        return ""
    return (
        "The explanation uses the boxes divided once by the image's size. --boxes released gives the evaluation other "
        "boxes, so its scores may differ from these."
    )


def page_links(explained):
    """ExplainedModels -> {'images': {query: [(model's name, page)]}, 'captions': ...}, for the report's queries."""
    links = {"images": {}, "captions": {}}
    for model in explained:
        for page in model.pages:
            link = (model.name, f"explain/{model.folder}/{page.file}")
            links[page.kind].setdefault(page.number, []).append(link)
    return links
