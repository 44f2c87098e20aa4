"""VSRN's encoders and its order similarity.  The model as a whole is model.VSRN.

Letters for shapes: B images or captions of a batch, I images, C captions, R regions, D embedding width.
See docs/method.md, section 3.
"""

import math
import pickle

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import graph
from files import InputError

RELATION_LAYERS = 4
TILE = 1 << 20  # numbers in one temporary of the order similarity: 4 MB, which caches hold


def unit(x, dim=-1):
    """x / ‖x‖₂ along `dim`, no epsilon.  Zeros stay zeros, with a finite gradient."""
    square = x.square().sum(dim, keepdim=True)
    return x / torch.where(square > graph.TINY, square, 1).sqrt()


def linear(width, embed_size):
    """Linear layer with the initial values of both systems: uniform ±sqrt(6 / (in + out)), bias 0."""
    layer = nn.Linear(width, embed_size)
    bound = math.sqrt(6.0 / (width + embed_size))
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def remember(rnn, steps):
    """Start a GRU's units with memories of 1 to `steps` steps, half of them longer than steps / 2.

    The initial values torch gives let a unit keep about half of its state at each step.  Here the bias of the update
    gate starts at log u, u uniform in [1, steps - 1], so that it keeps u / (u + 1); the reset gate's is left.
    Tallec and Ollivier, Can recurrent neural networks warp time? (ICLR 2018), section 2.
    """
    gate = slice(rnn.hidden_size, 2 * rnn.hidden_size)  # torch's order: reset, update, new
    rnn.bias_ih_l0[gate] = torch.empty(rnn.hidden_size).uniform_(1, max(1, steps - 1)).log_()
    rnn.bias_hh_l0[gate] = 0


class EncoderRegions(nn.Module):
    """Region features -> one vector: relations among regions, then a GRU reads them in file order.

    data_name 'f30k_precomp' has a BatchNorm at the end, all others a norm over the regions at the start: the
    released models of the two data sets differ so (docs/method.md, section 3.1).  chrono_init: what `remember`
    takes for the GRU, 0 for torch's initial values.
    """

    def __init__(self, img_dim, embed_size, data_name, use_abs=False, no_imgnorm=False, chrono_init=0):
        super().__init__()
        self.flickr = data_name == "f30k_precomp"
        self.use_abs, self.no_imgnorm = use_abs, no_imgnorm
        self.fc = linear(img_dim, embed_size)
        self.img_rnn = nn.GRU(embed_size, embed_size, batch_first=True)
        for layer in range(1, RELATION_LAYERS + 1):
            setattr(self, f"Rs_GCN_{layer}", graph.RegionRelations(embed_size))
        if self.flickr:
            self.bn = nn.BatchNorm1d(embed_size)
        if chrono_init:
            remember(self.img_rnn, chrono_init)

    def forward(self, images):
        """(B, R, img_dim) -> image embeddings (B, D) and enhanced regions (B, R, D)."""
        regions = self.fc(images)
        if not self.flickr:
            regions = unit(regions, dim=1)
        for layer in range(1, RELATION_LAYERS + 1):
            regions = getattr(self, f"Rs_GCN_{layer}")(regions)
        regions = unit(regions, dim=1)
        features = self.img_rnn(regions)[1][0]  # the last hidden state
        if self.flickr:
            features = graph.batch_norm(self.bn, features)
        return finish(features, self.use_abs, self.no_imgnorm), regions


class EncoderImageFull(nn.Module):
    """Pictures -> one vector: a torchvision classifier without its last layer, norm, `fc`, norm.

    The CNN is frozen, and stays in evaluation mode, unless `finetune`.  InputError where `cnn_type` is not
    known or pretrained weights cannot be had.
    """

    def __init__(self, cnn_type, embed_size, pretrained=True, finetune=False, use_abs=False,
                 no_imgnorm=False):
        super().__init__()
        self.finetune = finetune
        self.use_abs, self.no_imgnorm = use_abs, no_imgnorm
        self.cnn = classifier(cnn_type, pretrained)
        self.fc = linear(behead(self.cnn), embed_size)
        self.cnn.requires_grad_(finetune)

    def train(self, mode=True):
        super().train(mode)
        self.cnn.train(mode and self.finetune)
        return self

    def forward(self, images):
        """(B, 3, height, width) -> image embeddings (B, D), and None where regions would stand."""
        features = self.cnn(images)
        if isinstance(features, tuple):  # inception and googlenet in training: auxiliary outputs follow
            features = features[0]
        return finish(self.fc(unit(features)), self.use_abs, self.no_imgnorm), None


class EncoderCaption(nn.Module):
    """Word ids -> one vector: embedding, GRU, its state at <end>."""

    def __init__(self, vocab_size, word_dim, embed_size, num_layers=1, use_abs=False):
        super().__init__()
        self.use_abs = use_abs
        self.embed = nn.Embedding(vocab_size, word_dim)
        self.rnn = nn.GRU(word_dim, embed_size, num_layers, batch_first=True)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def forward(self, captions, lengths):
        """Ids (B, n) padded, lengths -> (B, D)."""
        lengths = torch.as_tensor(lengths).cpu()
        packed = pack_padded_sequence(self.embed(captions), lengths, batch_first=True, enforce_sorted=False)
        return finish(self.rnn(packed)[1][-1], self.use_abs)


def finish(features, use_abs, no_norm=False):
    """The end of every encoder: unit length, absolute value on request."""
    features = features if no_norm else unit(features)
    return features.abs() if use_abs else features


def classifier(name, pretrained, flag="--cnn_type"):
    """torchvision's classifier of that name, with the weights of the papers' time where `pretrained`."""
    from torchvision import models  # only pictures need it

    if name not in models.list_models(module=models):
        raise InputError(f"{flag} {name}: torchvision has no such classifier; vgg19 and resnet152 are usual")
    if not pretrained:
        return models.get_model(name, weights=None)
    known = models.get_model_weights(name).__members__
    return pretrained_model(name, known.get("IMAGENET1K_V1", known["DEFAULT"]))


def pretrained_model(name, weights):
    """torchvision's model with these of its weights; InputError naming the file where they cannot be had."""
    from torchvision import models

    try:
        return models.get_model(name, weights=weights)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise InputError(
            f"{folder}/{weights.url.split('/')[-1]}: pretrained weights of {name} cannot be "
            f"fetched or read ({error}); put {weights.url} into {folder} or pass --no_pretrained"
        ) from error


def behead(cnn):
    """Takes the classifying layer, the last with weights, off `cnn`; returns the width of what it read."""
    layers = {name: m for name, m in cnn.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    name, last = list(layers.items())[-1]
    parent, _, child = name.rpartition(".")
    setattr(cnn.get_submodule(parent), child, nn.Identity())
    return last.weight.shape[1]


class OrderSimilarity(torch.autograd.Function):
    """−‖max(0, s − i)‖₂ of images i (I, D) and captions s (C, D) -> (I, C)  (docs/method.md, section 3.3).

    Tile by tile, forward and backward: no (images, captions, D) tensor.  Its gradient at 0 is 0.
    """

    @staticmethod
    def forward(ctx, images, captions):
        sims = images.new_empty(len(images), len(captions))
        for i, c in tiles(*sims.shape, images.shape[1]):
            sims[i, c] = -torch.linalg.vector_norm(violation(images[i], captions[c]), dim=2)
        ctx.save_for_backward(images, captions, sims)
        return sims

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, captions, sims = ctx.saved_tensors
        grad = torch.where(sims < 0, grad / sims, 0)  # d sims / d captions = violation / sims
        to_images, to_captions = torch.zeros_like(images), torch.zeros_like(captions)
        for i, c in tiles(*sims.shape, images.shape[1]):
            part = violation(images[i], captions[c]).mul_(grad[i, c].unsqueeze(2))
            to_images[i] -= part.sum(1)
            to_captions[c] += part.sum(0)
        return to_images, to_captions


def violation(images, captions):
    """max(0, s − i) of all pairs of one tile: (images, captions, D)."""
    return (captions.unsqueeze(0) - images.unsqueeze(1)).clamp_(min=0)


def tiles(images, captions, dim):
    """Slices of images and captions that cover all pairs, at most TILE numbers (or one pair) in each."""
    across = max(1, min(captions, TILE // dim))
    down = max(1, TILE // (across * dim))
    for i in range(0, images, down):
        for c in range(0, captions, across):
            yield slice(i, i + down), slice(c, c + across)


def order_similarity(images, captions):
    """(I, D), (C, D) -> (I, C), the order violation's negative."""
    return OrderSimilarity.apply(images, captions)
