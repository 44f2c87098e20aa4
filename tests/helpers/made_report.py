"""A retrieval report of made-up models."""

from argparse import Namespace

import numpy as np

import evaluation
from data import PrecompDataset
from reporting import pages
from vocab import load_vocab


def dataset_of(tiny, split="test", **options):
    vocab = load_vocab(tiny.vocab_path, tiny.data_name)
    return PrecompDataset(split, tiny.data_name, vocab, Namespace(data_path=tiny.data_path, img_dim=8, **options))


def random_sims(n, seed=0, per=5):
    rng = np.random.default_rng(seed)
    sims = rng.normal(size=(n, n * per)).astype(np.float32)
    sims[np.arange(n * per) // per, np.arange(n * per)] += 1
    return sims


def write_report(tiny, folder, n_models=1, images=None, split="test", sims=None, names="abc"):
    """A report of made-up models -> their similarities."""
    dataset = dataset_of(tiny, split)
    site = pages.Report(folder, images, split)
    sims = sims or [random_sims(dataset.n_images, seed) for seed in range(n_models)]
    if len(sims) > 1:
        sims.append(sum(sims) / len(sims))
    for k, one in enumerate(sims):
        path = "ensemble" if k and k == len(sims) - 1 else f"runs/{names[k]}/model_best.pth.tar"
        result = {"model": path, "full": evaluation.metrics(one)}
        site.add(result, {"full": [one]}, dataset, tiny.data_name)
    site.write()
    return sims
