"""Evaluation of one model, or of the ensemble of several: encode a split, score all pairs, rank, print, write.

docs/method.md, section 4.  Ranks and recalls are counted in reporting/ranks.py.
"""

import math
import os
import shlex
import sys
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
from checkpoints.evaluation_options import eval_parser, overrides_of
from checkpoints.loading import load_model, open_members
from files.arrays import released_boxes
from files.errors import InputError
from files.writing import atomic_write
from modules import blocks
from modules.sides import CaptionSide, ImageSide
from reporting.metrics import recalls
from reporting.outputs import Outputs
from reporting.printing import print_folds, print_metrics
from reporting.ranks import NotFiniteError, check_finite, five_folds, fold_slices, i2t, mean_of_folds, metrics, t2i
from runtime import distributed

# what other programs call, some of it defined elsewhere
__all__ = ["Encoded", "encode_data", "evalrank", "evaluate", "five_folds", "i2t", "load_model", "recalls", "t2i"]


# ---- embeddings


class Encoded(NamedTuple):
    """A split after the encoders, part by part as shard_xattn takes it.  N images, M captions."""

    img_embs: torch.Tensor  # (N, R, D), or (N, D) for a system with one vector an image
    cap_embs: list | torch.Tensor  # for each caption (n, D), views of one buffer; or (M, D)
    bboxes: torch.Tensor | None  # (N, R, 4), normalised
    depends: list | None
    cap_lens: list


def encode_data(model, data_loader, log_step=10, logging=print):
    """encode_split as the published code names it -> Encoded."""
    images, captions = encode_split(model, data_loader)
    return Encoded(images.emb, captions.emb, images.boxes, captions.depends, captions.lengths)


@torch.no_grad()
def encode_split(model, data_loader):
    """Embeddings of a loader's split, each image and each caption encoded once -> ImageSide, CaptionSide.

    Captions are encoded in batches of similar length, whatever the loader's order, and come back in file
    order.  InputError where an embedding is not finite.
    """
    dataset, workers = data_loader.dataset, data_loader.num_workers
    model.eval()
    lengths = dataset.tokens.lengths[: len(dataset)].tolist()
    boxes = None if dataset.boxes is None else torch.from_numpy(dataset.boxes)
    depends = None if dataset.depends is None else [dataset.depends[i] for i in range(len(dataset))]
    images = ImageSide(encode_all_images(model, dataset, workers), boxes)
    return images, CaptionSide(encode_all_captions(model, dataset, lengths), lengths, depends)


def encode_all_images(model, dataset, workers):
    """Embeddings of all images, (N, R, D) or (N, D); each process encodes its share of them."""
    n = dataset.n_images
    share, embeddings = range(n)[distributed.local_slice(n)], None
    start = share.start
    loader = data.image_loader(dataset, workers=workers, only=share or [0])
    for batch in tqdm(loader, "images", leave=False, disable=None):
        images = finite(model.encode_images(batch).cpu(), "image", range(start, start + len(batch)))
        if embeddings is None:
            embeddings = images.new_empty(n, *images.shape[1:])
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
    for batch in tqdm(data.caption_loader(dataset, share or [0]), "captions", leave=False, disable=None):
        captions = finite(model.encode_captions(batch.captions, batch.lengths).cpu(), "caption", batch.ids)
        if embeddings is None:
            embeddings = captions.new_empty(starts[-1], captions.shape[-1])
        captions = captions.view(len(captions), -1, captions.shape[-1])  # (B, words or 1, D)
        for c, words in zip(batch.ids if share else (), captions):
            embeddings[starts[c] : starts[c + 1]] = words[: rows[c]]
    shares = [distributed.local_slice(n, process) for process in range(distributed.size())]
    embeddings = distributed.exchange_slices(embeddings, [starts[part.stop] - starts[part.start] for part in shares])
    return embeddings if model.one_vector else list(embeddings.split(lengths))


def finite(embeddings, what, numbers):
    """The embeddings, one for each of `numbers`; NotFiniteError naming the first that holds NaN or infinity."""
    if not torch.isfinite(embeddings).all():
        bad = (~torch.isfinite(embeddings)).flatten(1).any(1).tolist()
        first = min(number for number, is_bad in zip(numbers, bad) if is_bad)
        raise NotFiniteError(f"NaN or infinity in the embedding of {what} {first} (counted from 0)")
    return embeddings


# ---- similarities


def shard_xattn(model, img_embs, cap_embs, bboxes, depends, cap_lens, shard_size=128):
    """score_all as the published code names it, the sides given part by part; shard_size has no effect."""
    return score_all(model, ImageSide(img_embs, bboxes), CaptionSide(cap_embs, cap_lens, depends))


@torch.no_grad()
def score_all(model, images, captions):
    """Similarity of all images with all captions, in blocks -> float32 (N, M).

    images, captions: the sides as encode_split gives them.  The model's memory budget decides how large the blocks are.
    Several processes each score a share of the images, then all have the whole matrix.  InputError where a similarity
    is not finite.
    """
    share = distributed.local_slice(len(images))
    sims = np.empty((len(images), len(captions)), np.float32)
    width, budget = images.emb.shape[-1], blocks.budget(model.sim_memory, model.device) / 8
    rows = np.full(len(images), images.emb[0].numel() // width)[share]
    order = np.argsort(np.asarray(captions.lengths), kind="stable")  # captions of one length form large groups
    words = np.ones(len(captions), int) if model.one_vector else np.asarray(captions.lengths)[order]
    pairs = len(rows) * len(captions)
    with tqdm(None, "similarity", pairs, leave=False, disable=None, unit="pair", unit_scale=True) as bar:
        for part in pieces(rows, width, budget):
            part = slice(share.start + part.start, share.start + part.stop)
            some = images.take(part).on(model.device)
            for block in (order[piece] for piece in pieces(words, width, budget)):
                scores = model.similarity(some, captions.take(block.tolist()).on(model.device))
                sims[part, block] = scores.float().cpu().numpy()
                bar.update(len(some) * len(block))
    check_finite(sims[share], share.start)
    return distributed.exchange_slices(sims)


def pieces(rows, width, budget):
    """Cut items into runs that fit into memory -> slices.

    rows[i]: how many rows of `width` numbers item i has.  The rows of a piece, all items padded to its longest, take
    half of `budget` bytes at most, and the similarities of two pieces an eighth.  A piece has at least one item.
    """
    most_rows, most_items = budget / 8 / width, math.isqrt(int(budget / 32))
    cut, start, longest = [], 0, 0
    for i, n in enumerate(rows):
        longest = max(longest, n)
        if i > start and (longest * (i + 1 - start) > most_rows or i - start >= most_items):
            cut.append(slice(start, i))
            start, longest = i, n
    return [*cut, slice(start, len(rows))] if len(rows) else []


def score_member(member, fold5, full):
    """The similarities of one checkpoint -> {'full': [(N, M)], 'fold5': five of (N/5, M/5)} as requested.

    Folds that are parts of the full matrix are left out; with_folds adds them.
    """
    model, dataset = member.model, member.loader.dataset
    print("Computing results...")
    images, captions = encode_split(model, member.loader)
    print(f"Images: {len(images)}, Captions: {len(captions)}")
    sims, released = {}, dataset.inputs.boxes == "released"
    if full:
        sims["full"] = [score_all(model, with_released_boxes(images, member, False) if released else images, captions)]
    if fold5 and (not full or released):
        images = with_released_boxes(images, member, True) if released else images
        folds = fold_slices(len(images), len(captions))
        sims["fold5"] = [score_all(model, images.take(rows), captions.take(columns)) for rows, columns in folds]
    return sims


def with_folds(sims, fold5):
    """Add the folds that are parts of the full matrix."""
    return {**sims, "fold5": five_folds(sims["full"][0])} if fold5 and "fold5" not in sims else sims


def with_released_boxes(images, member, fold5):
    """The images with the boxes that the released evaluation used (docs/method.md, section 6)."""
    split = member.loader.dataset
    boxes = released_boxes(split.raw_boxes, split.sizes, len(split), member.opt.batch_size, fold5)
    return ImageSide(images.emb, torch.from_numpy(boxes))


# ---- several checkpoints


def evaluate(
    model_paths,
    split="dev",
    fold5=False,
    full=True,
    ties="worst",
    weights=None,
    normalize=False,
    observers=(),
    **overrides,
):
    """Evaluate checkpoints one by one and, when there are several, their ensemble; print each block.

    The ensemble is the mean of the similarities, weighted by `weights` where given; `normalize` first gives each
    model's similarities mean 0 and standard deviation 1 (docs/method.md, section 4.4).
    Returns (results, sims).  results has, for each checkpoint and then for the ensemble, its path as 'model' and
    the requested metrics of 'full' and 'fold5'; of several processes the main one has them.  sims are the last one's.
    ties: the order of equal scores.  observers: each has check(dataset), called before the work, and
    add(result, sims), called with every result.
    """
    several, factors = len(model_paths) > 1, weights or [1] * len(model_paths)
    if len(factors) != len(model_paths) or sum(factors) <= 0:
        given = " ".join(f"{weight:g}" for weight in factors)
        raise InputError(f"--weights {given}: need one for each of {len(model_paths)} checkpoints, and one above 0")
    members = open_members(model_paths, split, fold5, overrides)
    for observer in observers:
        observer.check(members[0].loader.dataset)
    results, total = [], None

    def conclude(about, sims):
        """Rank and print one model's similarities, and show them to the observers."""
        sims, result = with_folds(sims, fold5), {**about}
        if full:
            result["full"] = metrics(sims["full"][0], ties)
            print_metrics(result["full"])
        if fold5:
            result["fold5"] = mean_of_folds([metrics(fold, ties) for fold in sims["fold5"]])
            print_folds(result["fold5"])
        results.append(result)
        for observer in observers:
            observer.add(result, sims)

    for member, factor in zip(members, factors):
        if several:
            print(f"Model {member.path}")
        try:
            sims = score_member(member, fold5, full)
        except NotFiniteError as error:
            raise InputError(f"{member.path}: {error}; its weights are broken, evaluate another checkpoint") from None
        if distributed.is_main():
            conclude({"model": member.path, "checkpoint": member.about}, sims)
            if several:
                if weights or normalize:  # else two passes over the matrix would change nothing
                    weigh(sims, factor, normalize, member.path)
                for kind in total or ():  # the first one's similarities become the sum
                    for matrix, other in zip(total[kind], sims[kind]):
                        matrix += other
                total = total or sims
    if several and distributed.is_main():
        print(f"Ensemble of {len(members)} models")
        for matrix in chain.from_iterable(total.values()):
            matrix /= sum(factors)
        sims = total
        conclude({"model": "ensemble", "ensemble": {"weights": weights, "normalize": normalize}}, sims)
    return results, with_folds(sims, fold5)


def weigh(sims, weight, normalize, path):
    """Multiply a checkpoint's similarities by its weight, in place; normalize: first to mean 0 and deviation 1."""
    for matrices in sims.values():
        mean, deviation = 0.0, 1.0
        if normalize:
            rows = list(chain.from_iterable(matrices))
            mean = np.mean([row.mean(dtype=np.float64) for row in rows])
            deviation = float(np.sqrt(np.mean([np.square(row - mean).mean() for row in rows])))
        if deviation == 0:
            raise InputError(f"{path}: gives all pairs one score, which cannot be normalised; leave it out")
        for matrix in matrices:
            matrix -= float(mean)
            matrix *= weight / deviation


# ---- what the scripts call


def evalrank(model_path, data_path=None, split="dev", fold5=False, **flags):
    """Evaluate one checkpoint, or the ensemble of a list of them, print the block of metrics and return the metrics.

    fold5: evaluate five folds of the split, and print each and their mean.  flags: others of test_stack.py by their
    names, as boxes="released", device="cuda", json="metrics.json", report="folder", ranks=None for no file of ranks.

    The result (of the ensemble, for a list) is the dict of reporting.ranks.metrics: figures in percent by name, as
    'r1' (image to text), 'r1i' (text to image) and 'rsum'; 'ranks'; 'ties'.  With fold5 the figures are means,
    'ranks' is a list, and 'folds' holds each fold's dict.
    """
    opt = eval_parser("", split, stack=True, fold5=fold5).parse_args([])
    if strange := flags.keys() - vars(opt).keys():
        raise TypeError(f"evalrank has no {min(strange)}")
    vars(opt).update(model_path=model_path, data_path=data_path, **flags)
    asked = {"split": split, "fold5": fold5, "data_path": data_path, **flags}
    asked = "".join(f", {name}={value!r}" for name, value in asked.items() if value not in (None, False))
    results = evaluate_and_write(opt, not fold5, f"evaluation.evalrank({model_path!r}{asked})")
    return results[-1]["fold5" if fold5 else "full"]


def main(opt, full, extra=None):
    """What test.py, testall.py and test_stack.py do after reading their flags; extra: an eccv.Eccv, or None.

    full: score the whole split, beside its folds or without them.
    """
    with distributed.process_group():
        return evaluate_and_write(opt, full, shlex.join(["python", *sys.argv]), extra)


def evaluate_and_write(opt, full, command, extra=None):
    """The results of evaluate for the flags of eval_parser, and every file that they ask for; extra: one more observer.

    command: what asked for them, for the report.
    """
    paths = [opt.model_path] if isinstance(opt.model_path, (str, os.PathLike)) else list(opt.model_path)
    how = {"ties": opt.ties, "weights": opt.weights, "normalize": opt.normalize, **overrides_of(opt)}
    outputs = Outputs(opt, command)
    observers = [one for one in (extra, outputs) if one and distributed.is_main()]
    results, sims = evaluate(paths, opt.split, opt.fold5, full, observers=observers, **how)
    if distributed.is_main():
        if outputs.sims:
            array = sims["full"][0] if full else np.stack(sims["fold5"])
            atomic_write(outputs.sims, lambda file: np.save(file, array))
        outputs.write(results, full)
    return results
