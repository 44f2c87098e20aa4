"""Scores of images for one sentence, best first; GSMN re-orders a shortlist."""

import numpy as np
import torch

import evaluation
from tools.searching.collection import embed_images


@torch.no_grad()
def score_images(model, images, boxes, sentence):
    """Embeddings and normalised boxes (or None) of N images, a Sentence -> scores (N,)."""
    length = len(sentence.ids)
    words = model.encode_captions(torch.tensor([sentence.ids]), [length]).cpu()
    boxes = None if boxes is None else torch.from_numpy(boxes)
    pairs = None if sentence.pairs is None else [sentence.pairs]
    words = words if words.dim() == 2 else list(words)
    return evaluation.shard_xattn(model, images, words, boxes, pairs, [length])[:, 0]


def best_images(model, images, boxes, sentence, top):
    """As score_images -> (numbers, scores) of the `top` best."""
    scores = score_images(model, images, boxes, sentence)
    best = np.argsort(-scores, kind="stable")[:top]
    return best, scores[best]


def rank_of_image(model, images, boxes, sentence, number):
    """The rank, from 1, of image `number` among all; equal scores stand before it, as in evaluation."""
    scores = score_images(model, images, boxes, sentence)
    return int(np.count_nonzero(scores >= scores[number]))


def rerank(model, dataset, sentence, numbers, top, stored=None):
    """The `top` best of the images `numbers` by GSMN -> (numbers, scores).

    stored: embeddings of all images (N, R, D), of which the rows `numbers` are read; without it these images are
    encoded.
    """
    numbers = np.sort(numbers)  # equal scores keep the order of the split, as in a search through all
    images = embed_images(model, dataset, numbers) if stored is None else torch.from_numpy(stored[numbers])
    boxes = None if dataset.boxes is None else dataset.boxes[numbers]
    best, scores = best_images(model, images, boxes, sentence, top)
    return numbers[best], scores
