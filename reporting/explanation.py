"""The score of one image and one sentence, part by part, for systems that match words and regions.

Letters for shapes: R regions, n words, as in graph.py.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import graph


class Sentence(NamedTuple):
    """A caption as a model reads it."""

    words: list  # <start>, the words, <end>; words that the vocabulary lacks in ‹ ›
    ids: list
    pairs: list | None  # [governor, dependent], ROOT's first; None for a model that reads none


class Explanation(NamedTuple):
    """The parts of one pair's score, in numpy arrays; None for what a system does not have.

    `alpha` or `beta` has to be there, and `regions` or `words`.
    """

    score: float
    regions: np.ndarray | None  # (R,) what each region adds to the score
    words: np.ndarray | None  # (n,) what each word adds
    alpha: np.ndarray | None  # (R, n) attention of each region to the words
    beta: np.ndarray | None  # (n, R) attention of each word to the regions
    edges: np.ndarray | None = None  # (n, n) weight of neighbour j (last) for word i, in a graph of the words


def can_explain(model):
    """Whether a model matches words and regions; one that compares a vector of each has nothing to show."""
    return hasattr(model, "i2t_match_G")


@torch.no_grad()
def explain(model, regions, words, boxes=None, depends=None):
    """A GSMN and one pair -> Explanation, from the pieces that compute the score itself.

    regions (R, D) and words (n, D): embeddings of one image and one sentence; boxes (R, 4), normalised, or None
    for no geometry; depends: the sentence's [governor, dependent] pairs, ROOT first, which a sparse model needs.
    Source: docs/method.md, sections 2.3 and 2.4.
    """
    visual, textual = model.i2t_match_G, model.t2i_match_G
    regions, words = regions.unsqueeze(0), words.unsqueeze(0)  # (1, R, D), (1, n, D)
    boxes = regions.new_zeros(1, regions.shape[1], 4) if boxes is None else boxes.to(regions).unsqueeze(0)
    adjacency = graph.adjacency([depends], [words.shape[1]]).to(words) if model.is_sparse else None

    affinity = F.leaky_relu(regions @ words.transpose(1, 2), 0.1)  # (1, R, n)
    region_match, word_match = graph.node_matching(  # (1, 1, R or n, K)
        graph.nodes(regions, model.blocks), graph.nodes(words, model.blocks), model.smooth
    )
    in_regions = visual.node_scores(region_match, visual.edges(boxes)).flatten()
    in_words = textual.node_scores(word_match, textual.edges(words, adjacency, model.smooth)).flatten()
    parts = {
        "regions": in_regions / len(in_regions),  # a score is the mean of its nodes
        "words": in_words / len(in_words),
        "alpha": graph.attention(affinity, 1, 2, model.smooth)[0],
        "beta": graph.attention(affinity, 2, 1, model.smooth)[0].t(),
        "edges": textual.graph_convolution_3.edge_weights(words, adjacency, model.smooth)[0],
    }
    score = (parts["regions"].sum() + parts["words"].sum()).item()
    return Explanation(score, **{name: part.cpu().numpy() for name, part in parts.items()})


@torch.no_grad()
def explain_pair(model, dataset, number, sentence):
    """Image `number` of the split and a Sentence -> Explanation."""
    regions = model.encode_images(dataset.image(number).unsqueeze(0))[0]
    words = model.encode_captions(torch.tensor([sentence.ids]), [len(sentence.ids)])[0]
    boxes = None if dataset.boxes is None else torch.from_numpy(dataset.boxes[number])
    return explain(model, regions, words, boxes, sentence.pairs)


def caption_text(dataset, number):
    """The text of a caption; without {split}_caps.txt, the words of its ids."""
    if dataset.captions is not None:
        return dataset.captions[number]
    return " ".join(dataset.vocab.idx2word[i] for i in dataset.tokens[number][1:-1])


def caption_sentence(dataset, number):
    """Caption `number` of a split -> Sentence."""
    ids = dataset.tokens[number]
    pairs = None if dataset.depends is None else dataset.depends[number]
    return Sentence([dataset.vocab.idx2word[i] for i in ids], ids, pairs)
