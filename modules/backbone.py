"""The encoder of pictures, on top of one of torchvision's classifiers."""

import pickle

import torch
from torch import nn

from files.errors import InputError
from modules.layers import finish, linear, unit


class EncoderImageFull(nn.Module):
    """Pictures -> one vector: a torchvision classifier without its last layer, norm, `fc`, norm.

    The CNN is frozen, and stays in evaluation mode, unless `finetune`.  InputError where `cnn_type` is not
    known or pretrained weights cannot be had.
    """

    def __init__(self, cnn_type, embed_size, pretrained=True, finetune=False, use_abs=False, no_imgnorm=False):
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
        """(B, 3, height, width) -> image embeddings (B, D)."""
        features = self.cnn(images)
        if isinstance(features, tuple):  # inception and googlenet in training: auxiliary outputs follow
            features = features[0]
        return finish(self.fc(unit(features)), self.use_abs, self.no_imgnorm)


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
