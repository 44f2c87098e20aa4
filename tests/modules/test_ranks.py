"""Ranks under each order of equal scores, against sorting."""

import numpy as np
import pytest

import evaluation
from reporting import ranks
from reporting.printing import print_metrics


def positions(order, candidates):
    return int(np.flatnonzero(np.isin(order, candidates))[0])


def sorted_ranks(sims, per, sort):
    """Ranks of both directions where sort(scores, true candidates) gives all candidates, best first."""
    images = [(row, range(i * per, (i + 1) * per)) for i, row in enumerate(sims)]
    captions = [(column, range(c // per, c // per + 1)) for c, column in enumerate(sims.T)]
    return [[positions(sort(row, own), own) for row, own in queries] for queries in (images, captions)]


def worst_first(scores, own):
    return sorted(range(len(scores)), key=lambda c: (-scores[c], c in own))


def best_first(scores, own):
    return sorted(range(len(scores)), key=lambda c: (-scores[c], c not in own))


def released(scores, own):
    return np.argsort(scores, kind="stable")[::-1]


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("n, per", [(1, 5), (6, 5), (17, 5), (12, 1)])
def test_each_order_of_equal_scores_is_a_sort(n, per, levels):
    sims = np.random.default_rng(n).integers(levels, size=(n, n * per)).astype(np.float32)
    images, captions = ranks.rank_captions(sims, per), ranks.rank_images(sims, per)
    for order, sort in (("worst", worst_first), ("released", released), ("best", best_first)):
        i2t, t2i = sorted_ranks(sims, per, sort)
        assert getattr(images, order).tolist() == i2t and getattr(captions, order).tolist() == t2i
    assert images.highest.tolist() == [released(row, None)[0] for row in sims]
    assert captions.highest.tolist() == [released(column, None)[0] for column in sims.T]
    assert images.lowest.tolist() == sims.argmax(1).tolist() and captions.lowest.tolist() == sims.argmax(0).tolist()
    for function, found in ((evaluation.i2t, images), (evaluation.t2i, captions)):
        metrics, (by_rule, first) = function(sims, return_ranks=True, ties="released")
        assert metrics == evaluation.recalls(found.released)
        assert by_rule is found.released or by_rule.tolist() == found.released.tolist()
        assert first.tolist() == found.highest.tolist()


def tied_sims():
    """(20, 100) whole numbers, higher on the true pairs."""
    sims = np.random.default_rng(0).integers(5, size=(20, 100)).astype(np.float32)
    sims[np.arange(100) // 5, np.arange(100)] += 1
    return sims


def test_metrics_hold_every_order():
    sims = tied_sims()
    worst, released = evaluation.metrics(sims), evaluation.metrics(sims, "released")
    assert worst["ties"]["rule"] == "worst" and released["ties"]["rule"] == "released"
    for order in ranks.ORDERS:
        assert worst["ties"][order] == released["ties"][order]
    assert worst["rsum"] == worst["ties"]["worst"]["rsum"] < released["rsum"] == worst["ties"]["released"]["rsum"]
    assert released["rsum"] < worst["ties"]["best"]["rsum"]


def test_mean_of_folds_has_the_mean_of_each_order():
    sims = tied_sims()
    parts = [sims[4 * k : 4 * k + 4, 20 * k : 20 * k + 20] for k in range(5)]
    np.testing.assert_array_equal(evaluation.five_folds(sims), parts)
    folds = [evaluation.metrics(fold, "released") for fold in parts]
    mean = ranks.mean_of_folds(folds)
    assert mean["r5i"] == np.mean([fold["ties"]["released"]["r5i"] for fold in folds])
    assert mean["ties"]["best"]["rsum"] == np.mean([fold["ties"]["best"]["rsum"] for fold in folds])


def test_line_on_equal_scores_is_printed_only_where_they_move_a_recall(capsys):
    sims = np.eye(4, dtype=np.float32).repeat(5, axis=1)  # perfect, with equal scores among wrong candidates
    print_metrics(evaluation.metrics(sims))
    assert "Equal" not in capsys.readouterr().out
    sims[0, 5] = 1  # one wrong caption of image 1 as good as image 0's own
    print_metrics(evaluation.metrics(sims))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Equal scores, lowest to highest (released order): i2t R@1 75.00 to 100.00 (75.00), "
        "t2i R@1 95.00 to 100.00 (100.00), rsum 570.00 to 600.00 (575.00)"
    )
