"""Evaluation: encode a split, similarity of all pairs, and what ranks.py makes of it, for one model or several.

docs/method.md, section 4.
"""

import argparse
import contextlib
import json
import math
import os
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
from files.errors import InputError
from files.writing import atomic_write, check_writable
from model import build
from modules import similarity
from reporting.pages import Report
from runtime import checkpoint, distributed, shared_arrays
from runtime.options import OVERRIDES, check_options, defaults, overrides_of
from vocab import load_vocab

RECALLS = ("r1", "r5", "r10", "medr", "meanr")


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
    return Encoded(encode_images(model, dataset, workers), encode_captions(model, dataset, lengths),
                   boxes, depends, lengths)  # fmt: skip


def encode_images(model, dataset, workers):
    """Embeddings of all images, (N, R, D) or (N, D), each process encoding its share."""
    n = dataset.n_images
    own, whole = range(n)[distributed.share(n)], None
    at = own.start
    for batch, _ in progress(data.image_loader(dataset, workers=workers, only=own or [0]), "images"):
        images = finite(model.encode_images(batch), "image", range(at, at + len(batch)))
        if whole is None:
            whole = images.new_empty(n, *images.shape[1:], device="cpu")
        if own:
            whole[at : at + len(batch)] = images
        at += len(batch)
    return distributed.share_out(whole)


def encode_captions(model, dataset, lengths):
    """Embeddings of all captions as in Encoded, each process encoding its share, longest captions first."""
    n = len(lengths)
    own, whole = range(n)[distributed.share(n)], None
    rows = [1] * n if model.one_vector else lengths
    first = np.cumsum([0, *rows]).tolist()
    order = [own[i] for i in data.longest_first([lengths[c] for c in own])]
    for batch in progress(data.caption_loader(dataset, only=order or [0]), "captions"):
        captions = finite(model.encode_captions(batch.captions, batch.lengths), "caption", batch.ids)
        if whole is None:
            whole = captions.new_empty(first[-1], captions.shape[-1], device="cpu")
        for c, words in zip(batch.ids if own else (), captions.view(len(captions), -1, captions.shape[-1]).cpu()):
            whole[first[c] : first[c + 1]] = words[: rows[c]]
    parts = [distributed.share(n, of) for of in range(distributed.size())]
    whole = distributed.share_out(whole, [first[part.stop] - first[part.start] for part in parts])
    return whole if model.one_vector else list(whole.split(lengths))


def progress(batches, what):
    return tqdm(batches, desc=what, disable=None, leave=False)


def finite(embeddings, what, numbers):
    """The embeddings, one for each of `numbers`; NotFiniteError naming the first that holds NaN or infinity."""
    if not torch.isfinite(embeddings).all():
        bad = (~torch.isfinite(embeddings)).flatten(1).any(1).tolist()
        first = min(number for number, is_bad in zip(numbers, bad) if is_bad)
        raise NotFiniteError(f"NaN or infinity in the embedding of {what} {first} (counted from 0)")
    return embeddings


@torch.no_grad()
def shard_xattn(model, img_embs, cap_embs, bboxes, depends, cap_lens, shard_size=128, sims=None):
    """Similarity of all images with all captions, in blocks -> float32 (N, M), written into `sims` where given.

    Arguments as GSMN.forward_sim.  How large the blocks are is decided by the model's memory budget, not by
    shard_size, the published code's argument.  Several processes each take a share of the images; afterwards
    all have the whole matrix.  InputError where a similarity is not finite.
    """
    n_images, n_captions, width = len(img_embs), len(cap_lens), img_embs.shape[-1]
    own = distributed.share(n_images)
    sims = np.empty((n_images, n_captions), np.float32) if sims is None else sims
    order = np.argsort(np.asarray(cap_lens), kind="stable")  # neighbours have one length: large groups
    budget = getattr(model, "sim_memory", similarity.MEMORY) * 2**20 / 4
    rows = np.full(n_images, img_embs[0].numel() // width)
    words = np.ones(n_captions, int) if model.one_vector else np.asarray(cap_lens)[order]
    bar = tqdm(total=len(rows[own]) * n_captions, desc="similarity", unit="pair", unit_scale=True, disable=None,
               leave=False)  # fmt: skip
    for part in pieces(rows[own], width, budget):
        part = slice(own.start + part.start, own.start + part.stop)
        images = img_embs[part].to(model.device)
        boxes = None if bboxes is None else bboxes[part]
        for block in (order[some] for some in pieces(words, width, budget)):
            captions = take(cap_embs, block, model.device)
            pairs = None if depends is None else [depends[c] for c in block]
            scores = model.forward_sim(images, captions, boxes, pairs, [cap_lens[c] for c in block])
            sims[part, block] = scores.float().cpu().numpy()
            bar.update(len(images) * len(block))
    bar.close()
    check_finite(sims[own], own.start)
    shared_arrays.complete(sims)
    return sims


def pieces(rows, width, budget):
    """Items of so many rows of `width` numbers each -> slices of them, each with half of `budget` bytes of rows at
    most and so few items that the similarities of as many others take a quarter; at least one item each.
    """
    most, items = budget / 8 / width, math.isqrt(int(budget / 16))
    cut, start, total = [], 0, 0
    for i, n in enumerate(rows):
        if i > start and (total + n > most or i - start >= items):
            cut.append(slice(start, i))
            start, total = i, 0
        total += n
    return [*cut, slice(start, len(rows))] if len(rows) else []


def take(cap_embs, captions, device):
    """Some captions' embeddings: rows of a matrix (VSRN), or a list of matrices of words (GSMN)."""
    if torch.is_tensor(cap_embs):
        return cap_embs[captions].to(device)
    return [cap_embs[c].to(device) for c in captions]


def load_model(model_path, **overrides):
    """A checkpoint -> (model in evaluation mode on opt.device, opt, vocabulary).

    overrides replace what the checkpoint's opt says, None leaves it.  InputError when the checkpoint does
    not fit the vocabulary or the model, TypeError for an override that is no option of a checkpoint.
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
        opt.device = "cuda" if torch.cuda.is_available() else "cpu"  # the checkpoint's machine had its own
    vocab = vocab_of(loaded, opt, overrides, model_path)
    try:
        model = build(opt)
        model.load_state_dict(loaded["model"])
    except (RuntimeError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"{model_path}: does not fit the {opt.model} model its options describe: {reason}") from None
    return model.to(distributed.own_device(opt.device)).eval(), opt, vocab


def vocab_of(loaded, opt, overrides, path):
    """The vocabulary inside the checkpoint, or for released ones the file with the embedding's size."""
    vocab = checkpoint.vocabulary(loaded)
    if vocab is None:
        return load_vocab(opt.vocab_path, opt.data_name, size=opt.vocab_size)
    if overrides.get("vocab_path") is not None:
        checkpoint.check_vocab(loaded, load_vocab(opt.vocab_path, opt.data_name), path)
    return vocab


class NotFiniteError(InputError):
    """NaN or infinity in what a model computed."""


def check_finite(sims, first=0):
    """InputError naming the first image and caption whose similarity is not finite; first: number of row 0."""
    for i, row in enumerate(sims, first):
        if not np.isfinite(row).all():
            c = int(np.flatnonzero(~np.isfinite(row))[0])
            raise NotFiniteError(f"similarity of image {i} and caption {c} is {row[c]}, not a finite number")


def captions_per_image(sims):
    n_images, n_captions = sims.shape
    if n_captions % n_images:
        raise InputError(f"{n_captions} captions do not divide evenly among {n_images} images")
    return n_captions // n_images


def i2t(sims, npts=None, return_ranks=False):
    """Image to text.  sims (N, 5N) -> (r1, r5, r10, medr, meanr), recalls in percent, ranks from 1.

    An image's rank is the best of its own captions' (captions 5i … 5i + 4); a caption that ties with it counts
    as before it.  With return_ranks also (ranks from 0, best caption).  InputError when sims is not finite.
    """
    per = captions_per_image(sims)
    npts = len(sims) if npts is None else npts
    sims = sims[:npts, : npts * per]
    check_finite(sims)
    ranks, top1 = np.empty(npts, np.int64), np.empty(npts, np.int64)
    for i, row in enumerate(sims):  # counting, not sorting: one pass over the row
        own = row[i * per : (i + 1) * per]
        ranks[i] = np.count_nonzero(row >= own.max()) - np.count_nonzero(own >= own.max())
        top1[i] = row.argmax()
    return (recalls(ranks), (ranks, top1)) if return_ranks else recalls(ranks)


def t2i(sims, npts=None, return_ranks=False):
    """Text to image.  sims (N, 5N) -> as i2t, with one rank for each caption: that of its own image."""
    per = captions_per_image(sims)
    npts = len(sims) if npts is None else npts
    sims = sims[:npts, : npts * per]
    check_finite(sims)
    own = sims[np.arange(npts * per) // per, np.arange(npts * per)]  # (5N,)
    ranks = np.full(npts * per, -1, np.int64)  # the true image is no rival of its own
    best, top1 = sims[0].copy(), np.zeros(npts * per, np.int64)
    for i, row in enumerate(sims):  # row by row: the matrix may be a file larger than memory
        ranks += row >= own
        top1[row > best] = i
        np.maximum(best, row, out=best)
    return (recalls(ranks), (ranks, top1)) if return_ranks else recalls(ranks)


def recalls(ranks):
    """Ranks from 0 -> (R@1, R@5, R@10 in percent, median rank, mean rank from 1)."""
    at = [100.0 * np.count_nonzero(ranks < k) / len(ranks) for k in (1, 5, 10)]
    return (*at, float(np.floor(np.median(ranks)) + 1), float(ranks.mean() + 1))


def metrics(sims):
    """Both directions of one similarity matrix -> dict of the metrics and, under 'ranks', rt and rti."""
    r, rt = i2t(sims, return_ranks=True)
    ri, rti = t2i(sims, return_ranks=True)
    return {
        **{name: r[k] for k, name in enumerate(RECALLS)},
        **{name + "i": ri[k] for k, name in enumerate(RECALLS)},
        "ar": sum(r[:3]) / 3,
        "ari": sum(ri[:3]) / 3,
        "rsum": sum(r[:3]) + sum(ri[:3]),
        "r1r5": sum(r[:2]) + sum(ri[:2]),
        "ranks": (rt, rti),
    }


def print_metrics(m):
    """The block of lines that the field's tables are read from."""
    print(f"rsum: {m['rsum']:.1f}")
    print(f"Average i2t Recall: {m['ar']:.1f}")
    print("Image to text: {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*(m[k] for k in RECALLS)))
    print(f"Average t2i Recall: {m['ari']:.1f}")
    print("Text to image: {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*(m[k + "i"] for k in RECALLS)))


def print_fold(m):
    print("Image to text: {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*(m[k] for k in RECALLS)))
    print("Text to image: {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*(m[k + "i"] for k in RECALLS)))
    print(f"rsum: {m['rsum']:.1f} ar: {m['ar']:.1f} ari: {m['ari']:.1f}")


def five_folds(sims):
    """sims (N, M) -> the five blocks (N/5, M/5) of its diagonal."""
    n, m = (size // 5 for size in sims.shape)
    return [sims[k * n : (k + 1) * n, k * m : (k + 1) * m] for k in range(5)]


def score_folds(sims):
    """Print the metrics of each fold and of their mean; the mean, with the folds' own under 'folds'."""
    folds = []
    for fold in sims:
        folds.append(metrics(fold))
        print_fold(folds[-1])
    mean = {k: float(np.mean([f[k] for f in folds])) for k in folds[0] if k != "ranks"}
    print("-----------------------------------")
    print("Mean metrics: ")
    print_metrics(mean)
    return {**mean, "ranks": [f["ranks"] for f in folds], "folds": folds}


def score_all(sims):
    """{'full': [sims], 'fold5': five of them} -> the metrics of each, printed."""
    result = {}
    if "full" in sims:
        result["full"] = metrics(sims["full"][0])
        print_metrics(result["full"])
    if "fold5" in sims:
        result["fold5"] = score_folds(sims["fold5"])
    return result


def save_ranks(result, path):
    """Ranks from 0 and best matches, image to text as rt and text to image as rti, to a torch file."""
    pairs = result["ranks"] if isinstance(result["ranks"], list) else [result["ranks"]]
    rt, rti = ([tuple(map(torch.from_numpy, pair[k])) for pair in pairs] for k in (0, 1))
    single = len(pairs) == 1
    atomic_write(path, lambda f: torch.save({"rt": rt[0] if single else rt, "rti": rti[0] if single else rti}, f))


def model_sims(model_path, split, fold5, full, overrides, store, opened=None):
    """One checkpoint's similarities -> ({'full': [(N, M)], 'fold5': five of them}, its options, the split).

    store: shared_arrays.Matrices for what may be saved: the full matrix or, without it, the folds in one array.
    Folds that are parts of the full matrix are left out.
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
    if opened:
        opened(dataset)
    print("Computing results...")
    encoded = encode_data(model, loader)
    print(f"Images: {dataset.n_images}, Captions: {len(dataset)}")
    n, m, sims = dataset.n_images, len(dataset), {}
    if full:
        sims["full"] = [store.new((n, m))]
        shard_xattn(model, *with_boxes(encoded, dataset, opt, False), sims=sims["full"][0])
    if fold5 and (not full or opt.boxes == "released"):
        encoded = with_boxes(encoded, dataset, opt, True)
        sims["fold5"] = (shared_arrays.Matrices() if full else store).new((5, n // 5, m // 5))
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


def evaluate(model_paths, split="dev", fold5=False, full=True, watch=None, store=None, opened=None, **overrides):
    """Evaluate checkpoints one by one and, when there are several, the mean of their similarities.

    Prints each one's block.  Returns (results, sims): results has, for each checkpoint and then for the
    ensemble, its name and the metrics of 'full' and 'fold5' as far as asked for; sims are the last one's.
    watch, if given, is called with each one's result and similarities, the data set and its name.
    store: shared_arrays.Matrices to put the similarities into (default: memory).
    opened, if given, is called with each one's data set, before the work.
    """
    store = store or shared_arrays.Matrices()
    results, total, names = [], None, set()
    for path in model_paths:
        if len(model_paths) > 1:
            print(f"Model {path}")
        try:
            sims, opt, dataset = model_sims(path, split, fold5, full, overrides, store, opened)
        except NotFiniteError as error:
            raise InputError(f"{path}: {error}; its weights are broken, evaluate another checkpoint") from None
        results.append({"model": str(path), **score_all(with_folds(sims, fold5))})
        names.add(opt.data_name)
        if len(names) > 1:
            raise InputError(f"{path}: made for {opt.data_name}, the one before for another data set; give --data_name")
        if watch:
            watch(results[-1], with_folds(sims, fold5), dataset, opt.data_name)
        total = sims if total is None else add(total, sims, path)
    if len(model_paths) > 1:
        print(f"Ensemble of {len(model_paths)} models")
        for one in chain.from_iterable(total.values()):
            shared_arrays.divide(one, len(model_paths))
        results.append({"model": "ensemble", **score_all(with_folds(total, fold5))})
        if watch:
            watch(results[-1], with_folds(total, fold5), dataset, opt.data_name)
    return results, with_folds(total, fold5)


def add(total, sims, path):
    """total + sims, in the memory or the files of total."""
    for a, b in zip(chain.from_iterable(total.values()), chain.from_iterable(sims.values())):
        if a.shape != b.shape:
            raise InputError(f"{path}: similarities {b.shape}, those of the model before {a.shape}; give --data_path")
        shared_arrays.add(a, b)
    return total


def evalrank(model_path, data_path=None, split="dev", fold5=False, ranks="ranks.pth.tar", **overrides):
    """Evaluate one checkpoint, or the ensemble of a list of them, and print the block of metrics.

    fold5 evaluates five folds of the split and prints each and their means.  ranks names the file for the
    ranks (None for no file).  overrides are options of the checkpoint, as boxes='released' or device='cuda'.
    Returns the dict of metrics (of the ensemble, for a list).
    """
    paths = [model_path] if isinstance(model_path, (str, os.PathLike)) else list(model_path)
    overrides.setdefault("workers", 0)
    results, _ = evaluate(paths, split, fold5, not fold5, data_path=data_path, **overrides)
    result = results[-1]["fold5" if fold5 else "full"]
    if ranks:
        save_ranks(result, ranks)
    return result


def main(opt, fold5=False, full=True, extra=None):
    """What test.py, testall.py and test_stack.py do after reading their flags; extra: an eccv.Eccv, or None."""
    with distributed.joined():
        paths = [opt.model_path] if isinstance(opt.model_path, str) else opt.model_path
        for output in filter(None, (opt.ranks, opt.save_sims, opt.json)):
            check_writable(output)
        if opt.images and not opt.report:
            raise InputError("--images is for --report; say with --report DIR where to write it")
        site = Report(opt.report, opt.images, opt.split) if opt.report and distributed.is_main() else None
        extra = extra if distributed.is_main() else None
        watchers = [one.add for one in (extra, site) if one]
        with contextlib.closing(shared_arrays.Matrices(opt.save_sims)) as store:
            results, _ = evaluate(
                paths,
                opt.split,
                fold5,
                full,
                lambda *seen: [see(*seen) for see in watchers],
                store,
                extra and extra.check,
                **overrides_of(opt),
            )
            store.keep()
        if distributed.is_main():
            write_results(results, opt, full)
        if site:
            site.write()
        return results


def write_results(results, opt, full):
    """The files of --ranks and --json."""
    if opt.ranks:
        last = results[-1]
        save_ranks(last["full"] if full else last["fold5"], opt.ranks)
    if opt.json:
        text = json.dumps([printable(r) for r in results], indent=1)
        atomic_write(opt.json, lambda f: f.write(text.encode()))


def printable(value):
    """Metrics without the arrays of ranks."""
    if isinstance(value, dict):
        return {k: printable(v) for k, v in value.items() if k != "ranks"}
    return [printable(v) for v in value] if isinstance(value, list) else value
