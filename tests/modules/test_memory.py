"""--sim_memory bounds the memory of the similarity, counted tensor by tensor; what cannot fit is one line."""

import pytest
import torch
from tensor_memory import TensorMemory
from tiny import random_case, small_opt

import evaluation
from files.errors import InputError
from modules import blocks
from modules.kernel import scores
from modules.sides import CaptionSide, ImageSide
from systems.gsmn import GSMN

WAYS = [pytest.param("torch", id="torch"), pytest.param("auto", id="kernel")]
CASES = [(36, (12, 4, 13, 5) * 8, 24), (60, (50, 60), 6)]  # regions, words, images


def network(way, budget, **changes):
    torch.manual_seed(1)
    sizes = {"num_block": 16, "feat_dim": 16, "hid_dim": 32, "embed_size": 256, "lambda_softmax": 5.0}
    return GSMN(small_opt(**sizes | changes, kernel=way, sim_memory=budget, is_sparse=True))


def peak(compute):
    """MB beside what was there before."""
    scores.SPARE_MEMORY.clear()
    with TensorMemory() as counted:
        compute()
    return counted.peak / 2**20


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("propagation", ["self", "neighbors"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_fits_the_memory(way, propagation, case):
    """Beside the gradients of the embeddings, which are as large as these, padded, and twice while they are added."""
    regions, lengths, images = case
    x, words, boxes, depends, lengths = random_case(regions, lengths, images, 256)
    words = torch.nn.utils.rnn.pad_sequence(words, batch_first=True).requires_grad_()
    own = 2 * (x.nbytes + words.nbytes) / 2**20
    x.requires_grad_()
    net = network(way, 16, propagation=propagation)
    assert peak(lambda: net.forward_sim(x, words, boxes, depends, lengths).sum().backward()) < 16 + own


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_evaluation_fits_the_memory(way, case):
    regions, lengths, images = case
    x, words, boxes, depends, lengths = random_case(regions, lengths, images, 256)
    net, sides = network(way, 16), (ImageSide(x, boxes), CaptionSide(words, lengths, depends))
    assert peak(lambda: evaluation.score_all(net, *sides)) < 16


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("regions, words", [(3, 3000), (3000, 3)])
@pytest.mark.parametrize("gradients", [False, True])
def test_one_item_that_is_too_large_is_refused(way, regions, words, gradients):
    """In one line with both sizes and what would do, before anything is allocated."""
    x, caption, boxes, depends, lengths = random_case(regions, (words,), 1, 32)
    net = network(way, 8, embed_size=32)

    def compute():
        with torch.set_grad_enabled(gradients), pytest.raises(InputError, match=r"3000.*--sim_memory \d"):
            net.forward_sim(x, caption, boxes, depends, lengths)

    assert peak(compute) < 8


@pytest.mark.parametrize("limit, shape", [(100, (1, 1)), (1e9, (7, 9))])
def test_blocks_are_as_large_as_they_may_be(limit, shape):
    assert blocks.block_shape(7, 9, 30, 40, 20, limit) == shape
    for limit in range(100, 3000, 97):
        rows, columns = blocks.block_shape(70, 90, 30, 40, 20, limit)
        used = lambda r, c: 30 * r + 40 * c + 20 * r * c  # noqa: E731
        assert rows >= 1 and columns >= 1 and used(rows, columns) <= limit < used(rows + 1, columns + 1)
