"""Evaluation of one model, or of the ensemble of several: encode a split, score all pairs, rank, print, write.

docs/method.md, section 4.  Read from top to bottom: embeddings, similarities, one checkpoint, several, and what
the scripts call.  Ranks and recalls are counted in modules/ranks.py and printed in reporting/printing.py.
"""

import argparse
import contextlib
import math
import os
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
from files.errors import InputError
from files.writing import check_writable
from model import build
from modules import similarity
from modules.ranks import RECALLS, NotFiniteError, check_finite, five_folds, i2t, mean_of_folds, metrics, recalls, t2i
from reporting.pages import Report
from reporting.printing import print_folds, print_metrics, save_json, save_ranks
from runtime import checkpoint, distributed, shared_arrays
from runtime.checkpoint_fields import check_shapes
from runtime.options import OVERRIDES, check_options, defaults, overrides_of
from vocab import load_vocab

__all__ = ["RECALLS", "Encoded", "encode_data", "evalrank", "evaluate", "five_folds", "i2t", "load_model", "main",
           "metrics", "recalls", "shard_xattn", "t2i"]  # fmt: skip


# ---- embeddings


class Encoded(NamedTuple):
    """A split after the encoders.  N images, M captions."""

    img_embs: torch.Tensor  # GSMN (N, R, D), VSRN (N, D)
    cap_embs: list | torch.Tensor  # GSMN: for each caption (n, D), views of one buffer; VSRN (M, D)
    bboxes: torch.Tensor | None  # (N, R, 4), normalised
    depends: list | None
    cap_lens: list


@torch.no_grad()
def encode_data(model, data_loader, log_step=10, logging=print):
    """Embeddings of a loader's split, each image and each caption encoded once -> Encoded.

    Captions are encoded in batches of similar length, whatever the loader's order, and come back in file
    order.  InputError where an embedding is not finite.
    """
    dataset, workers = data_loader.dataset, data_loader.num_workers
    model.eval()
    lengths = dataset.tokens.lengths[: len(dataset)].tolist()
    boxes = None if dataset.boxes is None else torch.from_numpy(dataset.boxes)
    depends = None if dataset.depends is None else [dataset.depends[i] for i in range(len(dataset))]
    images, captions = encode_all_images(model, dataset, workers), encode_all_captions(model, dataset, lengths)
    return Encoded(images, captions, boxes, depends, lengths)


def encode_all_images(model, dataset, workers):
    """Embeddings of all images, (N, R, D) or (N, D); each process encodes its share of them."""
    n = dataset.n_images
    share, embeddings = range(n)[distributed.local_slice(n)], None
    start = share.start
    for batch, _ in progress(data.image_loader(dataset, workers=workers, only=share or [0]), "images"):
        images = finite(model.encode_images(batch), "image", range(start, start + len(batch)))
        if embeddings is None:
            embeddings = images.new_empty(n, *images.shape[1:], device="cpu")
        if share:  # a process without a share encodes image 0, to learn the shape
            embeddings[start : start + len(batch)] = images
        start += len(batch)
    return distributed.exchange_slices(embeddings)


def encode_all_captions(model, dataset, lengths):
    """Embeddings of all captions, as in Encoded; each process encodes its share, longest captions first."""
    n = len(lengths)
    share, embeddings = range(n)[distributed.local_slice(n)], None
    rows = [1] * n if model.one_vector else lengths
    starts = np.cumsum([0, *rows]).tolist()  # caption c has the rows from starts[c] to starts[c + 1]
    order = [share[i] for i in data.longest_first([lengths[c] for c in share])]
    for batch in progress(data.caption_loader(dataset, only=order or [0]), "captions"):
        captions = finite(model.encode_captions(batch.captions, batch.lengths), "caption", batch.ids)
        if embeddings is None:
            embeddings = captions.new_empty(starts[-1], captions.shape[-1], device="cpu")
        captions = captions.view(len(captions), -1, captions.shape[-1]).cpu()  # (B, words or 1, D)
        for c, words in zip(batch.ids if share else (), captions):
            embeddings[starts[c] : starts[c + 1]] = words[: rows[c]]
    shares = [distributed.local_slice(n, process) for process in range(distributed.size())]
    embeddings = distributed.exchange_slices(embeddings, [starts[part.stop] - starts[part.start] for part in shares])
    return embeddings if model.one_vector else list(embeddings.split(lengths))


def progress(batches, what):
    """The batches, with a progress bar where there is a terminal."""
    return tqdm(batches, desc=what, disable=None, leave=False)


def finite(embeddings, what, numbers):
    """The embeddings, one for each of `numbers`; NotFiniteError naming the first that holds NaN or infinity."""
    if not torch.isfinite(embeddings).all():
        bad = (~torch.isfinite(embeddings)).flatten(1).any(1).tolist()
        first = min(number for number, is_bad in zip(numbers, bad) if is_bad)
        raise NotFiniteError(f"NaN or infinity in the embedding of {what} {first} (counted from 0)")
    return embeddings


# ---- similarities


@torch.no_grad()
def shard_xattn(model, img_embs, cap_embs, bboxes, depends, cap_lens, shard_size=128, sims=None):
    """Similarity of all images with all captions, in blocks -> float32 (N, M), written into `sims` where given.

    Arguments as GSMN.forward_sim.  The model's memory budget decides how large the blocks are; shard_size is an
    argument of the published code and has no effect.  Several processes each score a share of the images, then
    all have the whole matrix.  InputError where a similarity is not finite.
    """
    n_images, n_captions, width = len(img_embs), len(cap_lens), img_embs.shape[-1]
    share = distributed.local_slice(n_images)
    sims = np.empty((n_images, n_captions), np.float32) if sims is None else sims
    order = np.argsort(np.asarray(cap_lens), kind="stable")  # captions of one length stand together: large groups
    budget = getattr(model, "sim_memory", similarity.MEMORY) * 2**20 / 4
    rows = np.full(n_images, img_embs[0].numel() // width)[share]
    words = np.ones(n_captions, int) if model.one_vector else np.asarray(cap_lens)[order]
    look = {"desc": "similarity", "unit": "pair", "unit_scale": True, "disable": None, "leave": False}
    with tqdm(total=len(rows) * n_captions, **look) as bar:
        for part in pieces(rows, width, budget):
            part = slice(share.start + part.start, share.start + part.stop)
            images = img_embs[part].to(model.device)
            boxes = None if bboxes is None else bboxes[part]
            for block in (order[piece] for piece in pieces(words, width, budget)):
                captions = captions_at(cap_embs, block, model.device)
                pairs = None if depends is None else [depends[c] for c in block]
                scores = model.forward_sim(images, captions, boxes, pairs, [cap_lens[c] for c in block])
                sims[part, block] = scores.float().cpu().numpy()
                bar.update(len(images) * len(block))
    check_finite(sims[share], share.start)
    shared_arrays.exchange(sims)
    return sims


def pieces(rows, width, budget):
    """Cut items into runs that fit into memory -> slices.

    rows[i]: how many rows of `width` numbers item i has.  The rows of a piece take half of `budget` bytes at most,
    and the similarities of two pieces a quarter.  A piece has at least one item.
    """
    most_rows, most_items = budget / 8 / width, math.isqrt(int(budget / 16))
    cut, start, total = [], 0, 0
    for i, n in enumerate(rows):
        if i > start and (total + n > most_rows or i - start >= most_items):
            cut.append(slice(start, i))
            start, total = i, 0
        total += n
    return [*cut, slice(start, len(rows))] if len(rows) else []


def captions_at(cap_embs, numbers, device):
    """Embeddings of the captions with these numbers: rows of a matrix (VSRN), or a list of matrices (GSMN)."""
    if torch.is_tensor(cap_embs):
        return cap_embs[numbers].to(device)
    return [cap_embs[c].to(device) for c in numbers]


# ---- one checkpoint


def load_model(model_path, **overrides):
    """A checkpoint -> (model in evaluation mode on opt.device, opt, vocabulary).

    overrides replace options of the checkpoint; None leaves an option as it is.  InputError when the checkpoint
    does not fit the vocabulary or the model, TypeError for an override that is no option of a checkpoint.
    """
    loaded = checkpoint.load_checkpoint(model_path)
    check_options(loaded["opt"], model_path)
    opt = argparse.Namespace(**{**defaults(loaded["opt"].model), **vars(loaded["opt"])})
    for name, value in overrides.items():
        if name not in OVERRIDES and not hasattr(opt, name):
            raise TypeError(f"{name} is no option of a checkpoint; those of evaluation are {', '.join(OVERRIDES)}")
        if value is not None:
            setattr(opt, name, value)
    if not overrides.get("device"):
        opt.device = "cuda" if torch.cuda.is_available() else "cpu"  # the training machine may have had another
    vocab = vocab_of(loaded, opt, overrides, model_path)
    check_shapes(build, opt, loaded["model"], model_path)
    try:
        model = build(opt)
        model.load_state_dict(loaded["model"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"{model_path}: does not fit the {opt.model} model its options describe: {reason}") from None
    return model.to(distributed.local_device(opt.device)).eval(), opt, vocab


def vocab_of(loaded, opt, overrides, path):
    """The vocabulary inside the checkpoint; for a released one, the file whose size is that of the embedding."""
    vocab = checkpoint.vocabulary(loaded)
    if vocab is None:
        return load_vocab(opt.vocab_path, opt.data_name, size=opt.vocab_size)
    if overrides.get("vocab_path") is not None:
        checkpoint.check_vocab(loaded, load_vocab(opt.vocab_path, opt.data_name), path)
    return vocab


def score_split(model_path, split, fold5, full, overrides, store, observers):
    """One checkpoint's similarities -> ({'full': [(N, M)], 'fold5': [five of (N/5, M/5)]}, its options, the split).

    store: shared_arrays.ArrayStore for the array that may be saved: the full matrix or, without it, the folds in one
    array.  Folds that are parts of the full matrix are left out; with_folds adds them.
    """
    model, opt, vocab = load_model(model_path, **overrides)
    print("Loading dataset")
    loader = data.get_test_loader(split, opt.data_name, vocab, opt.batch_size, opt.workers, opt)
    dataset = loader.dataset
    if fold5 and (dataset.n_images % 5 or len(dataset) % 5):
        raise InputError(
            f"{opt.data_name}/{split}: {dataset.n_images} images do not divide into five folds; "
            "test.py without --fold5 evaluates them all at once"
        )
    for observer in observers:
        observer.check(dataset)
    print("Computing results...")
    encoded = encode_data(model, loader)
    print(f"Images: {dataset.n_images}, Captions: {len(dataset)}")
    n, m, sims = dataset.n_images, len(dataset), {}
    if full:
        sims["full"] = [store.new((n, m))]
        shard_xattn(model, *with_boxes(encoded, dataset, opt, False), sims=sims["full"][0])
    if fold5 and (not full or opt.boxes == "released"):
        encoded = with_boxes(encoded, dataset, opt, True)
        sims["fold5"] = (shared_arrays.ArrayStore() if full else store).new((5, n // 5, m // 5))
        for k in range(5):
            shard_xattn(model, *fold_of(encoded, k), sims=sims["fold5"][k])
    return sims, opt, dataset


def with_folds(sims, fold5):
    """Adds the folds that are parts of the full matrix."""
    return {**sims, "fold5": five_folds(sims["full"][0])} if fold5 and "fold5" not in sims else sims


def with_boxes(encoded, dataset, opt, fold5):
    """With --boxes released: the boxes that the released evaluation had reached (method.md, section 6)."""
    if opt.model != "gsmn" or opt.boxes != "released":
        return encoded
    return encoded._replace(bboxes=torch.from_numpy(dataset.released_boxes(opt.batch_size, fold5)))


def fold_of(encoded, k):
    """Fold k of five: N/5 images and their captions."""
    n, m = len(encoded.img_embs) // 5, len(encoded.cap_lens) // 5
    images, captions = slice(k * n, (k + 1) * n), slice(k * m, (k + 1) * m)
    cut = (images, captions, images, captions, captions)
    return Encoded(*(None if part is None else part[where] for part, where in zip(encoded, cut)))


# ---- several checkpoints


def evaluate(model_paths, split="dev", fold5=False, full=True, ties="worst", observers=(), store=None, **overrides):
    """Evaluate checkpoints one by one and, when there are several, the mean of their similarities; print each block.

    Returns (results, sims).  results has, for each checkpoint and then for the ensemble, its path as 'model' and
    the metrics of 'full' and 'fold5' as far as asked for; sims are the last one's.
    ties: the order of equal scores.  store: shared_arrays.ArrayStore for the similarities (default: memory).
    observers: each has check(dataset), called before a checkpoint's split is encoded, and
    add(result, sims, dataset, data_name), called with every result.
    """
    store = store or shared_arrays.ArrayStore()
    results, total, names = [], None, set()

    def conclude(name, sims):
        """Rank and print one model's similarities, and show them to the observers."""
        sims = with_folds(sims, fold5)
        results.append({"model": name, **rank_and_print(sims, ties)})
        for observer in observers:
            observer.add(results[-1], sims, dataset, opt.data_name)

    for path in model_paths:
        if len(model_paths) > 1:
            print(f"Model {path}")
        try:
            sims, opt, dataset = score_split(path, split, fold5, full, overrides, store, observers)
        except NotFiniteError as error:
            raise InputError(f"{path}: {error}; its weights are broken, evaluate another checkpoint") from None
        names.add(opt.data_name)
        if len(names) > 1:
            raise InputError(f"{path}: made for {opt.data_name}, the one before for another data set; give --data_name")
        conclude(str(path), sims)
        total = sims if total is None else add_similarities(total, sims, path)
    if len(model_paths) > 1:
        print(f"Ensemble of {len(model_paths)} models")
        for matrix in chain.from_iterable(total.values()):
            shared_arrays.divide_in_place(matrix, len(model_paths))
        conclude("ensemble", total)
    return results, with_folds(total, fold5)


def rank_and_print(sims, ties):
    """{'full': [(N, M)], 'fold5': [five]} -> the metrics of each, printed."""
    result = {}
    if "full" in sims:
        result["full"] = metrics(sims["full"][0], ties)
        print_metrics(result["full"])
    if "fold5" in sims:
        result["fold5"] = mean_of_folds([metrics(fold, ties) for fold in sims["fold5"]])
        print_folds(result["fold5"])
    return result


def add_similarities(total, sims, path):
    """total + sims, in the memory or the files of total."""
    for a, b in zip(chain.from_iterable(total.values()), chain.from_iterable(sims.values())):
        if a.shape != b.shape:
            raise InputError(f"{path}: similarities {b.shape}, those of the model before {a.shape}; give --data_path")
        shared_arrays.add_in_place(a, b)
    return total


# ---- what the scripts call


def evalrank(model_path, data_path=None, split="dev", fold5=False, ranks="ranks.pth.tar", ties="worst", **overrides):
    """Evaluate one checkpoint, or the ensemble of a list of them, and print the block of metrics.

    fold5 evaluates five folds of the split and prints each and their means.  ranks names the file for the
    ranks (None for no file).  overrides are options of the checkpoint, as boxes='released' or device='cuda'.
    Returns the dict of metrics (of the ensemble, for a list).
    """
    paths = [model_path] if isinstance(model_path, (str, os.PathLike)) else list(model_path)
    overrides.setdefault("workers", 0)
    results, _ = evaluate(paths, split, fold5, not fold5, ties, data_path=data_path, **overrides)
    result = results[-1]["fold5" if fold5 else "full"]
    if ranks:
        save_ranks(result, ranks)
    return result


def main(opt, fold5=False, full=True, extra=None):
    """What test.py, testall.py and test_stack.py do after reading their flags; extra: an eccv.Eccv, or None."""
    with distributed.process_group():
        paths = [opt.model_path] if isinstance(opt.model_path, str) else opt.model_path
        for output in filter(None, (opt.ranks, opt.save_sims, opt.json)):
            check_writable(output)
        if opt.images and not opt.report:
            raise InputError("--images is for --report; say with --report DIR where to write it")
        report = Report(opt.report, opt.images, opt.split) if opt.report and distributed.is_main() else None
        observers = [observer for observer in (extra, report) if observer and distributed.is_main()]
        with contextlib.closing(shared_arrays.ArrayStore(opt.save_sims)) as store:
            results, _ = evaluate(paths, opt.split, fold5, full, opt.ties, observers, store, **overrides_of(opt))
            store.keep()
        if distributed.is_main():
            write_results(results, opt, full)
        if report:
            report.write()
        return results


def write_results(results, opt, full):
    """The files of --ranks and --json."""
    if opt.ranks:
        save_ranks(results[-1]["full" if full else "fold5"], opt.ranks)
    if opt.json:
        save_json(results, opt.json)
