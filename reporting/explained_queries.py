"""Pages that explain an evaluation's failures: the true pair beside the best wrong pair.

They are for the queries with the worst ranks in both directions, and for pairs that the user names.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import data
from checkpoints.loading import load_model
from files.errors import InputError, warn
from files.writing import text_as_name
from reporting.explain_page import ExplainedPair, about_model, explain_page
from reporting.explanation import caption_sentence, caption_text, explain_pair
from reporting.image_view import ImageViewer
from reporting.rendering import template
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
    role: str  # what the other candidate is

    @property
    def file(self):
        return f"{self.kind}-{self.query}-{self.other}.html"


def worst_queries(found, kind, count, per):
    """The `count` queries with the largest ranks -> Comparisons, worst first.

    found: reporting.pages.Found of one direction; kind: 'images' or 'captions'; per: captions of an image.
    """
    worst = np.argsort(-found.ranks, kind="stable")[:count].tolist()
    return [compare(found, kind, query, per) for query in worst]


def compare(found, kind, query, per):
    """A query's best own candidate and the best of the others -> Comparison."""
    ids = found.ids[query]
    is_other = ids // per != query if kind == "images" else ids != query // per
    true = query * per + int(found.own_scores[query].argmax()) if kind == "images" else query // per
    rank = int(found.ranks[query])
    role = "Found first" if rank > 1 else "Best of the others"
    return Comparison(kind, query, true, int(ids[is_other.argmax()]), rank, role)


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
    """IMAGE:CAPTION -> a Comparison of the caption's own image with that image, or with the best of the others."""
    image, caption = named_pair(text, dataset)
    best = compare(found["captions"], "captions", caption, len(dataset) // dataset.n_images)
    return best if image == best.true else best._replace(other=image, role="Named")


class Explanations(NamedTuple):
    """The part of a Report that explains queries: for each model that can be explained a folder of pages."""

    count: int  # worst queries each way
    named: tuple  # IMAGE:CAPTION texts
    images: str | None  # folder of picture files
    overrides: dict  # the evaluation's, to load its models again

    def check(self, dataset):
        """InputError before the evaluation for a pair that the split does not have."""
        if dataset.n_images == 1:
            raise InputError("--explain: the split has one image, and nothing to compare it with")
        for text in self.named:
            named_pair(text, dataset)

    def write(self, folder, models, split, folds):
        """The report's models -> {model's name: (its folder in `folder`, its pages as write_pages has them)}.

        folds: parts of the split that were evaluated apart.  Ensembles have no pages, nor models that cannot explain
        their scores.
        """
        explained = {}
        for found in models:
            if "checkpoint" not in found["result"]:
                continue
            path, place = found["result"]["model"], text_as_name(found["name"])
            model, opt, vocab = load_model(path, **self.overrides)
            dataset = data.open_split(split, opt.data_name, vocab, opt)
            if explain_pair(model, dataset, 0, caption_sentence(dataset, 0)) is None:
                continue
            about = about_model(path, opt, dataset)
            if inputs_of(opt).boxes == "released":
                about = f"{about} {BOXES_NOTE}"
            pages = self.write_pages(folder / place, model, dataset, found, folds, about)
            explained[found["name"]] = place, pages
            print(f"Explanations of {found['name']}: {len(pages)} pages")
        if not explained:
            warn("--explain: no checkpoint here matches words and regions; nothing to explain")
        return explained

    def write_pages(self, folder, model, dataset, found, folds, about):
        """A page for each query and index.html -> for each page its Comparison, its query and the other candidate."""
        comparisons = [named_comparison(text, dataset, found) for text in self.named]
        for kind in ("captions", "images"):
            comparisons += worst_queries(found[kind], kind, self.count, len(dataset) // dataset.n_images)
        viewer, pages = ImageViewer(dataset, self.images), []
        folder.mkdir(parents=True)
        for comparison in tqdm(dict.fromkeys(comparisons), desc="explanations", disable=None, leave=False):
            query, lead, pairs = compared_pairs(model, dataset, viewer, comparison, folds)
            links = [
                ("Report", "../../index.html"),
                ("This query in the report", f"../../{comparison.kind}.html#query={comparison.query}"),
                ("All explanations", "index.html"),
            ]
            page = explain_page(query + LOOKS[comparison.kind], lead, pairs, about, links)
            (folder / comparison.file).write_text(page, encoding="utf-8")
            pages.append((comparison, query, pairs[1].heading))
        index = template("explanations.html").render(title=found["name"], about=about, pages=pages)
        (folder / "index.html").write_text(index, encoding="utf-8")
        return pages


def compared_pairs(model, dataset, viewer, comparison, folds):
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
