"""Random batches and embeddings of real sizes, for measurements."""

import numpy as np
import torch

import model
from runtime.batches import Batch

VOCABULARY = 8481  # words, as of Flickr30K


def caption_lengths(captions):
    """Words of so many captions, 5 to 30, 12.4 on average: always the same ones."""
    rng = np.random.default_rng(0)
    return np.clip(np.round(4 + rng.gamma(4.5, 8.4 / 4.5, captions)), 5, 30).astype(int).tolist()


def random_batch(opt, model_opt):
    """A Batch of random features (B, R, img_dim) and captions of 5 to 30 words, the longest first."""
    rng, pairs = np.random.default_rng(0), opt.batch_size
    lengths = sorted(caption_lengths(pairs), reverse=True)
    captions = torch.zeros(pairs, lengths[0], dtype=torch.int64)
    for row, n in zip(captions, lengths):
        row[:n] = torch.as_tensor(rng.integers(4, VOCABULARY, n))
    images = torch.as_tensor(rng.random((pairs, opt.regions, model_opt.img_dim), np.float32))
    boxes = torch.as_tensor(rng.random((pairs, opt.regions, 4), np.float32))
    labels = masks = None
    if opt.model == "vsrn":
        labels = torch.zeros(pairs, model_opt.max_len + 1, dtype=torch.int64)
        labels[:, : lengths[0]] = captions
        masks = (torch.arange(model_opt.max_len + 1) <= torch.tensor(lengths).unsqueeze(1)).float()
    return Batch(images, captions, lengths, list(range(pairs)), boxes, None, labels, masks)


def embeddings(opt, images, captions):
    """Random unit vectors on opt.device: images (I, R, D), captions (C, n, D) padded; boxes (I, R, 4), lengths."""
    lengths = caption_lengths(captions)
    regions = model.l2norm(torch.randn(images, opt.regions, opt.embed_size))
    words = model.l2norm(torch.randn(captions, max(lengths), opt.embed_size))
    return [x.to(opt.device) for x in (regions, words, torch.rand(images, opt.regions, 4))] + [lengths]
