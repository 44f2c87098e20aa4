"""Batches: their fields, the captions in each, and how they are read."""

import contextlib
import functools
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from runtime import distributed
from runtime.workers import Loader
from vocab import PAD


class Item(NamedTuple):
    """One caption with its image; fields that the model does not read are None."""

    image: torch.Tensor  # (R, F) float32
    caption: list  # n word ids, <start> ... <end>
    id: int  # number of the caption
    boxes: torch.Tensor  # (R, 4) x1 y1 x2 y2 as parts of the image's width and height
    depends: list  # [governor, dependent] pairs, ROOT's first
    label: np.ndarray  # (max_len + 1,) int64
    mask: np.ndarray  # (max_len + 1,) float32


class Share(NamedTuple):
    """What every process knows of the captions that one process has of a batch, in the order of `collate`."""

    lengths: list
    depends: list | None
    ids: list


class Batch(NamedTuple):
    """B captions with their images, longest caption first; fields that the model does not read are None."""

    images: torch.Tensor  # (B, R, F) float32
    captions: torch.Tensor  # (B, n) int64, padded with 0
    lengths: list  # B numbers of ids
    ids: list  # B numbers of captions
    bboxes: torch.Tensor  # (B, R, 4) float32
    depends: list  # B lists of pairs
    labels: torch.Tensor  # (B, max_len + 1) int64, VSRN's caption model
    masks: torch.Tensor  # (B, max_len + 1) float32
    shares: list | None = None  # several processes: the Share of each one


def collate(items):
    """Items -> Batch, sorted by caption length, longest first; equal lengths keep their order."""
    items = sorted(items, key=lambda item: -len(item.caption))
    images, captions, ids, boxes, depends, labels, masks = zip(*items)
    lengths = [len(caption) for caption in captions]
    padded = torch.full((len(items), lengths[0]), PAD)  # (B, n)
    for row, caption in zip(padded, captions):
        row[: len(caption)] = torch.tensor(caption)
    depends = None if depends[0] is None else list(depends)
    return Batch(stack(images), padded, lengths, list(ids), stack(boxes), depends, stack(labels), stack(masks))


def stack(parts):
    """One tensor of all parts, in shared memory where a worker made it; None where they are None."""
    return None if parts[0] is None else default_collate(parts)


class EpochSampler:
    """Batches of the numbers of n captions, in an order that depends on seed and epoch alone; len: steps of an epoch.

    Each process (of `replicas`) gets a contiguous share of every batch.  Shares differ by one caption at most, and the
    last batch's may be empty.  The whole batches are the same for every number of processes.
    """

    def __init__(self, n, batch_size, seed=0, replicas=1, rank=0):
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.replicas, self.rank = replicas, rank
        self.set_epoch(0)

    def set_epoch(self, epoch, start_step=0):
        """Choose the epoch; the next iteration skips its first start_step batches (resumed runs)."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self):
        return -(-self.n // self.batch_size)

    def steps(self):
        """The share of every process, step by step."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order, processes = torch.randperm(self.n, generator=generator).tolist(), range(self.replicas)
        for step in range(self.start_step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [batch[distributed.nth_part(len(batch), r, self.replicas)] for r in processes]

    def __iter__(self):
        for shares in self.steps():
            yield shares[self.rank]


def with_shares(loader):
    """The loader's batches; with several processes each carries all Shares, which the sampler tells every process."""
    sampler, dataset = loader.batch_sampler, loader.dataset
    if sampler.replicas == 1:
        yield from loader
        return
    for batch, shares in zip(loader, sampler.steps()):
        facts = []
        for captions in shares:
            ids = longest_first(captions, dataset)
            depends = None if dataset.depends is None else [dataset.depends[c] for c in ids]
            facts.append(Share([len(dataset.tokens[c]) for c in ids], depends, ids))
        yield batch._replace(shares=facts)


def in_order(n, batch_size):
    """0 ... n-1 in batches."""
    return [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]


def longest_first(captions, dataset):
    """Numbers of captions, longest first; equal lengths keep their order."""
    return sorted(captions, key=lambda c: -len(dataset.tokens[c]))


def seed_of(seed, *key):
    """A seed for torch that depends on all these numbers."""
    return int(np.random.SeedSequence([seed % 2**64, *key]).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seeded(*key):
    """Inside, torch's random numbers depend on `key` alone; afterwards they continue as if none had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield


def make_batch(dataset, items):
    """Items of a data set -> Batch; no items are an empty share of a batch."""
    if items:
        return collate(items)
    return Batch(*(None if part is None else part[:0] for part in collate([dataset[0]])))


def make_loader(dataset, batches, workers, pin=False):
    """A workers.Loader of Batch over batches (lists of numbers) of a data set's captions."""
    return Loader(dataset, batches, workers, functools.partial(make_batch, dataset), pin)
