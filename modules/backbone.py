"""Torchvision's classifiers as backbones of picture encoders."""

import pickle

import torch
from torch import nn

from files.errors import InputError


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
