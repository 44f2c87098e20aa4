"""Small checkpoints for the tests of everything that writes or reads them."""

import argparse
from collections import OrderedDict

import pytest
import torch

from files.errors import InputError

GSMN_OPT = {"data_name": "f30k_precomp", "embed_size": 4, "bi_gru": True, "learning_rate": 0.0002}


def gsmn(seed=0):
    """State dicts with a few of GSMN's names."""
    rng = torch.Generator().manual_seed(seed)
    names = [
        ["fc.weight", "fc.bias"],
        ["embed.weight", "rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse"],
        ["mean_rho", "graph_convolution_3.params.0.weight", "out_1.weight_g", "out_1.weight_v"],
        ["graph_convolution_3.params", "out_2.bias", "out_2.weight_g", "out_2.weight_v"],
    ]
    return [OrderedDict((name, torch.randn(3, 4, generator=rng)) for name in part) for part in names]


def vsrn():
    """The same for VSRN, with a vocabulary of 7 words."""
    parts = {"Rs_GCN_1.g.weight": torch.ones(2, 2, 1)}, {"embed.weight": torch.ones(7, 2)}
    return [OrderedDict(part) for part in parts]


def state(model=None, **changes):
    opt = argparse.Namespace(**GSMN_OPT)
    return {"epoch": 1, "model": model or gsmn(), "best_rsum": 2.5, "opt": opt, "Eiters": 3, **changes}


def same(a, b):
    """Equal in types, names, order and values, bit for bit."""
    assert type(a) is type(b)
    if torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, argparse.Namespace):
        same(vars(a), vars(b))
    else:
        assert a == b or (a != a and b != b)


def message(call, *arguments, error=InputError):
    with pytest.raises(error) as found:
        call(*arguments)
    assert "\n" not in str(found.value)
    return str(found.value)
