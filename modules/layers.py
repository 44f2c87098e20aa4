"""Small layers that the encoders of both systems share: norms, the linear layer, initial values, the end."""

import math

import torch
from torch import nn

import graph


def l2norm(x, dim=-1, eps=1e-8):
    """x / (‖x‖₂ + eps) along `dim`, at least in float32.  Zero stays zero, with a finite gradient."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return x / (graph.safe_norm(x, dim) + eps)


def unit(x, dim=-1):
    """x / ‖x‖₂ along `dim`, without an epsilon.  Zero stays zero, with a finite gradient."""
    square = x.square().sum(dim, keepdim=True)
    return x / torch.where(square > graph.TINY, square, 1).sqrt()


def finish(features, use_abs, no_norm=False):
    """The last step of VSRN's encoders: unit length, and the absolute value on request."""
    features = features if no_norm else unit(features)
    return features.abs() if use_abs else features


def linear(width, embed_size):
    """Linear layer with the initial values of both systems: uniform ±sqrt(6 / (in + out)), bias 0."""
    layer = nn.Linear(width, embed_size)
    bound = math.sqrt(6.0 / (width + embed_size))
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def chrono_init(rnn, steps):
    """Start a GRU's units with memories of 1 to `steps` steps, half of them longer than steps / 2.

    With torch's initial values a unit keeps about half of its state at each step.  Here the bias of the update
    gate starts at log u, u uniform in [1, steps - 1], so that a unit keeps u / (u + 1).  The reset gate's bias
    is left as it is.
    Tallec and Ollivier, Can recurrent neural networks warp time? (ICLR 2018), section 2.
    """
    gate = slice(rnn.hidden_size, 2 * rnn.hidden_size)  # torch's order of gates: reset, update, new
    rnn.bias_ih_l0[gate] = torch.empty(rnn.hidden_size).uniform_(1, max(1, steps - 1)).log_()
    rnn.bias_hh_l0[gate] = 0
