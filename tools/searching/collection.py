"""The images of a search, opened without the captions that a model would read; a user's sentence; their scores."""

import contextlib
from functools import cached_property

import numpy as np
import torch

import data
import evaluation
from files.arrays import check_five_rows
from files.errors import InputError, warn
from files.text import CAPTIONS_PER_IMAGE, PICTURES, Ragged
from modules.sides import CaptionSide, ImageSide
from reporting.explanation import Sentence
from tools.own_data.parsers import Spacy, dependencies
from vocab import UNK, encode, tokenize

COMPARED = 8  # images whose rows of features are compared, to learn whether each stands there five times


class FeatureCollection(data.PrecompDataset):
    """The images of a split of region features; its captions, where there are any, are texts for the reader."""

    def _read_depends(self):
        """None are needed."""

    def _read_tokens(self):
        """Captions without words, five for each image."""
        rows, path = self.images, self.features_file
        images = len(rows) // CAPTIONS_PER_IMAGE
        captions = CAPTIONS_PER_IMAGE * len(rows)
        if len(rows) % CAPTIONS_PER_IMAGE == 0:
            with contextlib.suppress(InputError):  # a row for each caption, if rows come in fives
                check_five_rows(rows, path, range(0, images, max(1, images // COMPARED)))
                captions = len(rows)
        return Ragged([[]] * captions)

    @cached_property
    def captions(self):
        """The texts, or None where no file has them or it does not fit the features."""
        try:
            return super().captions
        except InputError as error:
            warn(f"{error}; they are not shown")
            return None


def open_collection(split, opt, vocab):
    """The images of a split: region features with captions or without, or pictures."""
    kind = data.open_split if opt.data_name in PICTURES else FeatureCollection
    return kind(split, opt.data_name, vocab, opt)


def labels(dataset):
    """For each image its file's name and its first caption, or empty texts: two lists."""
    captions = [""] * dataset.n_images
    for i in reversed(range(len(dataset.captions or ()))):
        captions[dataset.image_of(i)] = dataset.captions[i]
    return dataset.names() or [""] * dataset.n_images, captions


class Reader:
    """reader(text) -> Sentence, the user's text by a model's vocabulary; is_sparse: spaCy parses it."""

    def __init__(self, vocab, is_sparse=False, spacy_model=None):
        self.vocab, self.parser = vocab, Spacy(spacy_model) if is_sparse else None

    def __call__(self, text):
        words, ids = tokenize(text), encode(text, self.vocab)
        if not words:
            raise InputError("the sentence has no words")
        unknown = [word for word, id_ in zip(words, ids[1:]) if id_ == UNK]
        if unknown:
            warn(f"not in the vocabulary: {', '.join(unknown)}")
        depends = next(dependencies(self.parser, [text], [repr(text)])) if self.parser else None
        shown = [f"‹{word}›" if id_ == UNK else word for word, id_ in zip(words, ids[1:])]
        return Sentence(["<start>", *shown, "<end>"], ids, depends)


# ---- embeddings and scores


@torch.no_grad()
def embed_images(model, dataset, only=None):
    """Embeddings of a split's images, or of the numbers in `only`: (N, R, D), or (N, D) of a model of one vector."""
    if only is None:
        return evaluation.encode_all_images(model, dataset, workers=0)
    parts = [model.encode_images(batch).cpu() for batch in data.image_loader(dataset, only=only)]
    return evaluation.finite(torch.cat(parts), "image", only)


@torch.no_grad()
def score_images(model, images, boxes, sentence):
    """Embeddings and normalised boxes (or None) of N images, a Sentence -> scores (N,)."""
    length = len(sentence.ids)
    words = model.encode_captions(torch.tensor([sentence.ids]), [length]).cpu()
    words = words if model.one_vector else list(words)
    captions = CaptionSide(words, [length], None if sentence.pairs is None else [sentence.pairs])
    boxes = None if boxes is None else torch.from_numpy(boxes)
    return evaluation.score_all(model, ImageSide(images, boxes), captions)[:, 0]


def best_images(model, dataset, sentence, numbers=None, images=None):
    """The images `numbers` (default: all) by their scores for a Sentence -> (numbers, scores), best first.

    images: their embeddings; without them these images are encoded. Equal scores keep the order of the split.
    """
    numbers = None if numbers is None else np.sort(numbers)
    images = embed_images(model, dataset, numbers) if images is None else images
    numbers = np.arange(dataset.n_images) if numbers is None else numbers
    boxes = None if dataset.boxes is None else dataset.boxes[numbers]
    scores = score_images(model, images, boxes, sentence)
    best = np.argsort(-scores, kind="stable")
    return numbers[best], scores[best]
