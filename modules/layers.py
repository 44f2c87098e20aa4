"""What encoders share: norms, the linear layer, the recurrent layer over captions, the last step."""

import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from runtime.transfer import send

TINY = 1e-30  # squared norms below count as 0


def l2norm(x, dim=-1, eps=1e-8):
    """x / (‖x‖₂ + eps) along `dim`, at least in float32.  Zero stays zero, with a finite gradient."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + eps)


def unit(x, dim=-1):
    """x / ‖x‖₂ along `dim`, without an epsilon.  Zero stays zero, with a finite gradient."""
    square = x.square().sum(dim, keepdim=True)
    return x / torch.where(square > TINY, square, 1).sqrt()


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


def in_float32(rnn, packed):
    """rnn(packed) without autocast, which runs cuDNN's recurrent layers in float16 even where it is set to bfloat16."""
    with torch.autocast(rnn.weight_ih_l0.device.type, enabled=False):
        return rnn(packed.to(rnn.weight_ih_l0.dtype))


def read_words(embed, rnn, captions, lengths):
    """Ids (B, n) padded, lengths -> the recurrent layer's outputs, packed, and its last state (layers, B, H), both with
    the longest captions first; rows (B,) that restore the order.

    torch's way without sorting would make the host wait for a GPU.
    """
    lengths = torch.as_tensor(lengths, device="cpu")
    order = lengths.argsort(descending=True, stable=True)
    there, back = send(torch.stack([order, order.argsort()]), captions.device)  # one copy
    words = embed(captions.index_select(0, there))
    outputs, state = in_float32(rnn, pack_padded_sequence(words, lengths[order], batch_first=True))
    return outputs, state, back
