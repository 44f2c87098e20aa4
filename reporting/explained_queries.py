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
from reporting.explanation import caption_sentence, caption_text, explain_pair
from reporting.image_view import ImageViewer, warn_of_notes
from reporting.rendering import template, text_of_template
from systems.table import inputs_of

LOOKS = {"images": " looks for captions", "captions": " looks for its image"}
BOXES_NOTE = (
    "The explanation uses the boxes divided once by the image's size. --boxes released gives the evaluation other "
    "boxes, so its scores may differ from these."
)


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

    @property
    def role(self):
        """What the other candidate is."""
        if not self.other_is_first:
            return "Named"
        return "Found first" if self.rank > 1 else "Best of the others"


# ---- which pairs


def worst_queries(found, kind, count, per):
    """The `count` queries with the largest ranks -> Comparisons, worst first.

    found: reporting.candidates.Found of one direction; kind: 'images' or 'captions'; per: captions of an image.
    Queries of equal rank stand in the order of how far the candidate found first is ahead.
    """
    places = [first_rival(found, kind, q, per) for q in range(len(found.ids))]
    ahead = np.array([found.scores[q, place] for q, place in enumerate(places)]) - found.own_scores.max(1)
    worst = np.lexsort((-ahead, -found.ranks))[:count].tolist()
    true = [q * per + int(found.own_scores[q].argmax()) if kind == "images" else q // per for q in worst]
    return [Comparison(kind, q, t, int(found.ids[q, places[q]]), int(found.ranks[q])) for q, t in zip(worst, true)]


def first_rival(found, kind, query, per):
    """Position in found.ids[query] of the best candidate that is not the query's own."""
    ids = found.ids[query]
    others = ids // per != query if kind == "images" else ids != query // per
    if not others.any():
        raise InputError("--explain: the split has one image, and nothing to compare it with")
    return int(others.argmax())


def named_pair(text, dataset):
    """IMAGE:CAPTION, from 0 -> (image, caption); InputError for other texts and numbers that the split lacks."""
    image, _, caption = text.partition(":")
    numbers = [int(part) if part.isdecimal() else -1 for part in (image, caption)]
    if not (0 <= numbers[0] < dataset.n_images and 0 <= numbers[1] < len(dataset)):
        raise InputError(
            f"--explain_pair {text}: need IMAGE:CAPTION, such as 3:17; the split {dataset.split} has images 0 to "
            f"{dataset.n_images - 1} and captions 0 to {len(dataset) - 1}"
        )
    return numbers


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
    states, or "".  Returns for each page its Comparison, the query and the candidate beside the true one, in words.
    """
    comparisons = [named_comparison(text, dataset, found) for text in named]
    for kind in ("captions", "images"):
        comparisons += worst_queries(found[kind], kind, count, len(dataset) // dataset.n_images)
    folder, viewer, pages, noted = Path(folder), ImageViewer(dataset, images), [], {}
    make_folder(folder)
    for comparison in tqdm(dict.fromkeys(comparisons), desc="explanations", disable=None, leave=False):
        query, lead, pairs = compared_pairs(model, dataset, viewer, comparison, folds)
        noted.update({pair.view.number: pair.view._replace(picture=None) for pair in pairs})
        links = [
            ("Report", "../../index.html"),
            ("This query in the report", f"../../{comparison.kind}.html#query={comparison.query}"),
            ("All explanations", "index.html"),
        ]
        content = explain_page(query + LOOKS[comparison.kind], lead, pairs, about, note, links).encode()
        atomic_write(folder / comparison.file, lambda file, content=content: file.write(content))
        pages.append((comparison, query, pairs[1].heading))
    warn_of_notes(noted.values())
    style = text_of_template("report.css")
    text = template("explanations.html").render(title=title, about=about, pages=pages, style=style)
    atomic_write(folder / "index.html", lambda file: file.write(text.encode()))
    return pages


def compared_pairs(model, dataset, viewer, comparison, folds=1):
    """A Comparison -> (the query, a line about it, [ExplainedPair of the true candidate, of the other])."""
    by_image, view, pairs = comparison.kind == "images", cache(viewer), []  # one view for both pairs of an image
    for candidate, role in ((comparison.true, "True"), (comparison.other, comparison.role)):
        image, caption = (comparison.query, candidate) if by_image else (candidate, comparison.query)
        name = f"image {image}"
        if by_image:
            name = f"“{caption_text(dataset, caption)}” (caption {caption} of image {dataset.image_of(caption)})"
        sentence = caption_sentence(dataset, caption)
        explanation = explain_pair(model, dataset, image, sentence)
        pairs.append(ExplainedPair(role, f"{role}: {name}", "", view(image), sentence, explanation))
    number, rank = comparison.query, f"has rank {comparison.rank:,} of"
    if by_image:
        return f"Image {number}", f"The first of its own captions {rank} {len(dataset) // folds:,}.", pairs
    query = f"“{caption_text(dataset, number)}”"
    return query, f"Caption {number}. Its image {rank} {dataset.n_images // folds:,}.", pairs


class Explanations(NamedTuple):
    """The part of a Report that explains queries: for each model that can be explained a folder of pages."""

    count: int  # worst queries each way
    named: tuple  # IMAGE:CAPTION texts
    split: str
    overrides: dict  # the evaluation's, to load its models again

    def check(self, dataset):
        """InputError before the evaluation for a named pair that the split does not have."""
        for text in self.named:
            named_pair(text, dataset)

    def write(self, folder, models, images, folds=1):
        """models: [{'path', 'name', 'result', 'images': Found, 'captions': Found}] -> {model's name: (folder, pages)}.

        The pages of a model stand in folder/name.  Ensembles have none, nor models that cannot explain their scores.
        """
        explained = {}
        for found in models:
            if "checkpoint" not in found["result"]:
                continue
            model, opt, vocab = load_model(found["path"], **self.overrides)
            dataset = data.open_split(self.split, opt.data_name, vocab, opt)
            if explain_pair(model, dataset, 0, caption_sentence(dataset, 0)) is None:
                continue
            place, about = text_as_name(found["name"]), about_model(found["path"], opt, dataset)
            more = found["name"], folds, about, BOXES_NOTE if inputs_of(opt).boxes == "released" else ""
            pages = explain_queries(Path(folder) / place, model, dataset, found, self.count, self.named, images, *more)
            explained[found["name"]] = place, pages
            print(f"Explanations of {found['name']}: {len(pages)} pages")
        if not explained:
            warn("--explain: no checkpoint here matches words and regions; nothing to explain")
        return explained


def page_links(explained):
    """What Explanations.write returns -> {'images': {query: [(model's name, page)]}, 'captions': ...}."""
    links = {"images": {}, "captions": {}}
    for name, (folder, pages) in explained.items():
        for comparison, _, _ in pages:
            link = (name, f"explain/{folder}/{comparison.file}")
            links[comparison.kind].setdefault(comparison.query, []).append(link)
    return links
