"""Captions of different lengths through a recurrent layer, without padding.

A packed sequence holds the first words of all captions, then all second words, and so on, the longest captions first.
The host computes where each word goes and sends it to the device in one copy.
"""

import torch
from torch.nn.utils.rnn import PackedSequence

from runtime.transfer import send


def time_order(lengths):
    """Lengths of B captions -> (order, caption, step, sizes), all on the host.

    order (B,): the captions, longest first.  caption, step (sum of lengths,): caption and place of each word, in the
    order of a packed sequence.  sizes (longest,): how many captions have a word at each step.
    """
    lengths = torch.as_tensor(lengths, dtype=torch.int64).cpu()
    order = lengths.argsort(descending=True, stable=True)
    running = lengths[order] > torch.arange(int(lengths.max())).unsqueeze(1)  # (longest, B)
    step, position = running.nonzero(as_tuple=True)
    return order, order[position], step, running.sum(1)


def in_float32(rnn, packed):
    """rnn(packed) without autocast, which runs cuDNN's recurrent layers in float16 even where it is set to bfloat16."""
    device = next(rnn.parameters()).device.type
    with torch.autocast(device, enabled=False):
        return rnn(packed.to(rnn.weight_ih_l0.dtype))


def read_words(embed, rnn, captions, lengths):
    """Padded ids (B, n), lengths -> (outputs of the recurrent layer (sum of lengths, H), target, shape).

    H is twice the layer's width where it runs in both directions.  `unpacked` takes target and shape to put each word
    at its place.
    """
    _, caption, step, sizes = time_order(lengths)
    longest = len(sizes)
    rows = torch.stack([caption * captions.shape[1] + step, caption * longest + step])
    source, target = send(rows, captions.device)
    words = embed(captions.flatten().index_select(0, source))  # (sum of lengths, word_dim)
    outputs = in_float32(rnn, PackedSequence(words, sizes))[0].data
    return outputs, target, (len(captions), longest)


def last_states(embed, rnn, captions, lengths):
    """Padded ids (B, n), lengths -> the last layer's state after each caption (B, H), of a layer in one direction."""
    order, caption, step, sizes = time_order(lengths)
    back = order.argsort()
    indices = send(torch.cat([caption * captions.shape[1] + step, back]), captions.device)
    words = embed(captions.flatten().index_select(0, indices[: len(step)]))
    states = in_float32(rnn, PackedSequence(words, sizes))[1][-1]  # (B, H), longest first
    return states if order.equal(torch.arange(len(order))) else states.index_select(0, indices[len(step) :])


def unpacked(words, target, shape):
    """Words (sum of lengths, H) in the order of a packed sequence -> (B, longest, H), padded with 0."""
    return words.new_zeros(shape[0] * shape[1], words.shape[1]).index_copy(0, target, words).view(*shape, -1)
