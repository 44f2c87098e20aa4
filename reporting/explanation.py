"""Captions as a model reads them, and the explanation of one image and one caption of a split."""

from typing import NamedTuple

import torch

from modules.sides import CaptionSide, ImageSide


class Sentence(NamedTuple):
    """A caption as a model reads it."""

    words: list  # <start>, the words, <end>; words that the vocabulary lacks in ‹ ›
    ids: list
    pairs: list | None  # [governor, dependent], ROOT's first; None for a model that reads none


@torch.no_grad()
def explain_pair(model, dataset, number, sentence):
    """Image `number` of the split and a Sentence -> Explanation; None for a model that cannot explain its scores."""
    boxes = None if dataset.boxes is None else torch.from_numpy(dataset.boxes[number]).unsqueeze(0)
    image = ImageSide(model.encode_images(dataset.image(number).unsqueeze(0)), boxes)
    words, length = torch.tensor([sentence.ids]), len(sentence.ids)
    pairs = None if sentence.pairs is None else [sentence.pairs]
    return model.explain(image, CaptionSide(model.encode_captions(words, [length]), [length], pairs))


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
