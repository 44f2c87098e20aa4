"""Finders of images for a sentence: a model that scores every image, or an index whose shortlist GSMN re-orders.

A finder is called with a text and returns (numbers, scores) of the best images.  It has `dataset` (None where the
pictures are not needed), `names` and `captions` of the images.
"""

from pathlib import Path

import numpy as np
import torch

import evaluation
from checkpoints.evaluation_options import overrides_of
from files.errors import InputError
from tools.explaining.sentences import Reader
from tools.searching import collection, faiss_index
from tools.searching.ranking import best_images, rerank


class EveryImage:
    """A finder whose model scores every image of the split."""

    def __init__(self, flags):
        self.model, opt, vocab = evaluation.load_model(flags.model_path, **overrides_of(flags))
        self.reader = reader_of(opt, vocab, flags)
        self.dataset, self.top = collection.open_collection(flags, opt, vocab), flags.top
        cache = collection.cache_of(flags)
        path = cache and cache.path(flags.model_path, opt, self.dataset)
        self.images = collection.cached_embeddings(self.model, self.dataset, cache, path)
        self.names, self.captions = collection.image_labels(self.dataset), collection.first_captions(self.dataset)

    def __call__(self, text):
        return best_images(self.model, self.images, self.dataset.boxes, self.reader(text), self.top)


class IndexedImages:
    """A finder with a FAISS index of VSRN's vectors; with --rerank, GSMN re-orders the index's results."""

    def __init__(self, flags):
        self.index, self.top, self.reranker = faiss_index.read_index(flags.index), flags.top, None
        if flags.breadth:
            faiss_index.set_breadth(self.index.faiss, flags.breadth)
        facts = self.index.facts
        if flags.split not in (None, facts["split"]):
            raise InputError(f"--split {flags.split}: {flags.index} holds the split {facts['split']}")
        for name in ("data_path", "data_name", "split"):
            setattr(flags, name, getattr(flags, name) or facts[name])
        path = flags.model_path or facts["model"]
        self.model, opt, vocab = evaluation.load_model(path, **overrides_of(flags))
        collection.check_model(self.index, opt, path)
        collection.check_features(self.index, Path(flags.data_path) / flags.data_name)
        self.names, self.captions = facts["names"], facts["captions"]
        self.reader, self.dataset = Reader(vocab), None
        if flags.rerank:
            self.reranker = Reranker(flags, vocab)
            self.dataset = self.reranker.dataset
        elif flags.images or flags.out:
            self.dataset = collection.open_collection(flags, opt, vocab)

    def __call__(self, text):
        sentence = self.reader(text)
        ids = torch.tensor([sentence.ids])
        with torch.no_grad():
            vector = self.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        k = self.reranker.k if self.reranker else self.top
        numbers, scores = faiss_index.shortlist(self.index.faiss, vector, k)
        return self.reranker(text, numbers, self.top) if self.reranker else (numbers, scores)


class Reranker:
    """reranker(text, numbers, top) -> (numbers, scores) of the `top` best of the images `numbers` by GSMN.

    Only these images are encoded, or read from --cache where GSMN's embeddings are there.  known: the vocabulary whose
    missing words have been warned of already.
    """

    def __init__(self, flags, known):
        self.k = flags.shortlist
        self.model, opt, vocab = evaluation.load_model(flags.rerank, **overrides_of(flags))
        collection.need_gsmn(opt, flags.rerank)
        self.reader = reader_of(opt, vocab, flags)
        self.reader.quiet = vocab.word2idx == known.word2idx
        self.dataset = collection.open_collection(flags, opt, vocab)
        cache = collection.cache_of(flags)
        self.stored = cache and cache.open(cache.path(flags.rerank, opt, self.dataset))

    def __call__(self, text, numbers, top):
        n = self.dataset.n_images
        numbers = np.arange(n) if self.k >= n else numbers  # an approximate index may miss some of all
        return rerank(self.model, self.dataset, self.reader(text), numbers, top, self.stored)


def reader_of(opt, vocab, flags):
    return Reader(vocab, opt.model == "gsmn" and opt.is_sparse, flags.spacy_model)
