"""Ranks, recalls and the printed block of a similarity matrix.  docs/method.md, section 4."""

import numpy as np
import torch

from files import InputError, atomic_write

RECALLS = ("r1", "r5", "r10", "medr", "meanr")


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
