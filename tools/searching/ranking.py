"""Scores of images for one sentence, best first; GSMN re-orders a shortlist."""

import numpy as np
import torch

import evaluation
from tools.searching.collection import embed_images


@torch.no_grad()
def rank_images(model, images, boxes, sentence, top):
    """All images' embeddings and normalised boxes (or None), a Sentence -> (numbers, scores) of the `top` best."""
    length = len(sentence.ids)
    words = model.encode_captions(torch.tensor([sentence.ids]), [length]).cpu()
    boxes = None if boxes is None else torch.from_numpy(boxes)
    pairs = None if sentence.pairs is None else [sentence.pairs]
    scores = evaluation.shard_xattn(model, images, words if words.dim() == 2 else list(words), boxes, pairs, [length])
    scores = scores[:, 0]
    best = np.argsort(-scores, kind="stable")[:top]
    return best, scores[best]


def rerank(model, dataset, sentence, numbers, top, stored=None):
    """The `top` best of the images `numbers` by GSMN -> (numbers, scores).

    stored: embeddings of all images (N, R, D), of which the rows `numbers` are read; without it these images are
    encoded.
    """
    numbers = np.sort(numbers)  # equal scores keep the order of the split, as in a search through all
    images = embed_images(model, dataset, numbers) if stored is None else torch.from_numpy(stored[numbers])
    boxes = None if dataset.boxes is None else dataset.boxes[numbers]
    best, scores = rank_images(model, images, boxes, sentence, top)
    return numbers[best], scores
