"""What all systems have in common: the interface that training and evaluation use, shared encoders, build_model.

This module uses no file, no optimiser and no device number.  Each system is a file of its own in systems/, and
`model.GSMN`, `model.VSRN` and the others are importable from here too.  Letters for shapes as in graph.py, and B images
or captions of a batch.
"""

import functools
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence, pad_sequence

from files.errors import InputError, warn
from modules.layers import finish, l2norm, linear, read_words
from modules.losses import ContrastiveLoss, Loss
from modules.sides import CaptionSide, ImageSide
from runtime.transfer import send
from systems.table import LOSSES, SYSTEMS, system_of
from vocab import encode

__all__ = ["ContrastiveLoss", "EncoderCaption", "EncoderImage", "EncoderText", "Loss", "MatchingModel", "build_model"]


# ---- encoders that several systems share


class EncoderImage(nn.Module):
    """Region features (B, R, img_dim) -> unit vectors (B, R, D) by a linear layer  (docs/method.md, section 2.1)."""

    def __init__(self, img_dim, embed_size, no_imgnorm=False, layer=linear):
        super().__init__()
        self.no_imgnorm = no_imgnorm
        self.fc = layer(img_dim, embed_size)

    def forward(self, images):
        features = self.fc(images)
        return features if self.no_imgnorm else l2norm(features)


class EncoderText(nn.Module):
    """Word ids (B, n) -> unit vectors (B, n, D), one for each word  (docs/method.md, section 2.2)."""

    def __init__(self, vocab_size, word_dim, embed_size, num_layers=1, bi_gru=False, no_txtnorm=False):
        super().__init__()
        self.no_txtnorm = no_txtnorm
        self.embed = nn.Embedding(vocab_size, word_dim)
        self.rnn = nn.GRU(word_dim, embed_size, num_layers, bidirectional=bi_gru)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def forward(self, captions, lengths):
        """Positions from a caption's length on come out as zeros."""
        packed, _, rows = read_words(self.embed, self.rnn, captions, lengths)
        words = pad_packed_sequence(packed, batch_first=True)[0].index_select(0, rows)  # (B, n, D or 2·D)
        if self.rnn.bidirectional:
            forwards, backwards = words.chunk(2, dim=-1)
            words = (forwards + backwards) / 2
        return words if self.no_txtnorm else l2norm(words)


class EncoderCaption(EncoderText):
    """Word ids -> one vector: embedding, GRU, its state at <end>."""

    def __init__(self, vocab_size, word_dim, embed_size, num_layers=1, use_abs=False):
        super().__init__(vocab_size, word_dim, embed_size, num_layers)
        self.use_abs = use_abs

    def forward(self, captions, lengths):
        """Ids (B, n) padded, lengths -> (B, D)."""
        _, state, rows = read_words(self.embed, self.rnn, captions, lengths)
        return finish(state[-1].index_select(0, rows), self.use_abs)


# ---- the interface of a system


class Explanation(NamedTuple):
    """The parts of one pair's score for R regions and n words; None for what a system does not have.

    `alpha` or `beta` has to be there, and `regions` or `words`.
    """

    score: float
    regions: np.ndarray | None  # (R,) a number for each region
    words: np.ndarray | None  # (n,) a number for each word
    alpha: np.ndarray | None  # (R, n) attention of each region to the words
    beta: np.ndarray | None  # (n, R) attention of each word to the regions
    edges: np.ndarray | None = None  # (n, n) weight of neighbour j (last) for word i, in a graph of the words
    adds: bool = True  # the numbers add up to the score; else they are cosines, and the system says how it gathers them


class MatchingModel(nn.Module):
    """A system: two encoders, a similarity, a loss.  What a system does not define works as written here.

    opt: complete flags of train.py, and vocab_size.  A subclass makes `img_enc` and `txt_enc` at least, and defines
    `similarity`.  Released checkpoints hold a list of state dicts, one for each of `parts`.  Other modules with
    weights, such as a caption model or a loss with parameters of its own, are saved by their names.
    """

    parts = ("img_enc", "txt_enc")
    retrieval_loss = "Le"  # name of the loss of all pairs in the log
    extra_losses = ()  # names of the losses of single pairs, which need no negatives
    one_vector = False  # an image and a caption are one vector each, not one for each region and word
    inner_product = False  # and their similarity is the inner product, so that an index can hold the images
    sim_memory = 0  # MB for the scores of all pairs; 0 for the device's default

    def __init__(self, opt):
        super().__init__()
        self.criterion = resolve_name(LOSSES[opt.loss]).of(opt)

    # what a system defines

    def encode_images(self, images):
        """Features (B, R, img_dim), or pictures (B, 3, height, width) -> (B, R, D), or (B, D) with one vector."""
        return self.img_enc(send(images, self.device))

    def encode_captions(self, captions, lengths):
        """Ids (B, n) padded with 0, lengths -> (B, n, D), or (B, D) with one vector."""
        return self.txt_enc(send(captions, self.device), lengths)

    def encode(self, batch):
        """batches.Batch -> ImageSide, CaptionSide, {name: loss} of `extra_losses`, means over the batch."""
        return *self.encode_sides(batch), {}

    def similarity(self, images, captions):
        """ImageSide of I images, CaptionSide of C captions -> scores (I, C).  A score depends on its pair alone."""
        raise NotImplementedError

    def explain(self, image, caption):
        """ImageSide of one image, CaptionSide of one caption -> Explanation of their score.

        None for a system that cannot say which word matched which region.
        """
        return None

    def compile_parts(self, **how):
        """Compile the encoders with torch.compile; parameters keep their names.  how: torch.compile's arguments."""
        for encoder in (self.img_enc, self.txt_enc):
            encoder.forward = compiled(encoder.forward, **how)

    # what training and evaluation call

    def encode_sides(self, batch):
        """batches.Batch -> ImageSide, CaptionSide."""
        images = ImageSide(self.encode_images(batch.images), batch.bboxes)
        return images, CaptionSide(self.encode_captions(batch.captions, batch.lengths), batch.lengths, batch.depends)

    def forward(self, batch, excluded=None):
        """batches.Batch -> {name: loss}, to be added up.  excluded: as modules.losses.Loss takes it."""
        images, captions, extra = self.encode(batch)
        return {self.retrieval_loss: self.forward_loss(self.similarity(images, captions), excluded), **extra}

    def forward_loss(self, scores, excluded=None):
        """scores (B, B), image b belonging to caption b -> the loss, a scalar; `last_scores` keeps the scores."""
        self.last_scores = scores.detach()
        return self.criterion(scores, excluded)

    @torch.no_grad()
    def score(self, features, boxes, sentences, vocab):
        """How well each sentence fits an image -> (C,), higher fits better.

        features (R, img_dim) or a picture (3, height, width); boxes (R, 4) as parts of width and height, None for a
        system without boxes; sentences: C texts; vocab: the model's vocab.Vocabulary.
        """
        ids = [encode(sentence, vocab) for sentence in sentences]
        lengths = [len(sentence) for sentence in ids]
        padded = pad_sequence([torch.tensor(sentence) for sentence in ids], batch_first=True)
        boxes = None if boxes is None else torch.as_tensor(boxes).unsqueeze(0)
        image = ImageSide(self.encode_images(torch.as_tensor(features).unsqueeze(0)), boxes)
        return self.similarity(image, CaptionSide(self.encode_captions(padded, lengths), lengths))[0]

    # what a checkpoint holds

    def state_list(self):
        """State dicts of `parts`, in the order of the released checkpoints."""
        return [getattr(self, part).state_dict() for part in self.parts]

    def further_parts(self):
        """{name: module} of the other modules that have a state.  ValueError for a weight that lies in none."""
        further = {name: part for name, part in self.named_children() if name not in self.parts and part.state_dict()}
        lost = [name for name, _ in self.named_parameters() if name.partition(".")[0] not in (*self.parts, *further)]
        if lost:
            raise ValueError(f"{type(self).__name__}.{lost[0]} would be in no checkpoint; move it into a module")
        return further

    def load_state_dict(self, state, strict=True):
        """Takes the released list of state dicts as well as a plain state dict."""
        if not isinstance(state, (list, tuple)):
            return super().load_state_dict(state, strict)
        if len(state) != len(self.parts):
            raise ValueError(f"{len(state)} state dicts found, {type(self).__name__} has {len(self.parts)}")
        for part, entry in zip(self.parts, state):
            getattr(self, part).load_state_dict(entry, strict)

    @property
    def device(self):
        return next(self.parameters()).device

    # names of the published code

    def forward_emb(self, images, captions, lengths):
        """Features, ids padded with 0, lengths -> embeddings of images and captions, lengths."""
        return self.encode_images(images), self.encode_captions(captions, lengths), lengths

    def forward_sim(self, img_emb, cap_emb, bboxes=None, depends=None, cap_lens=None):
        """similarity of two sides, given part by part -> (I, C)."""
        return self.similarity(ImageSide(img_emb, bboxes), CaptionSide(cap_emb, cap_lens, depends))


# ---- from flags to a model


def build_model(opt):
    """The model that complete flags describe (systems.options.completed), in the precision of opt.amp and opt.tf32.

    InputError for flags that contradict one another.
    """
    try:
        model = resolve_name(system_of(opt).built_by)(opt)
    except ValueError as error:
        raise InputError(str(error)) from None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = opt.tf32
    if opt.amp == "bf16":
        for encoder in (model.img_enc, model.txt_enc):
            encoder.forward = in_bfloat16(encoder, encoder.forward)
    model.further_parts()  # every weight is in a checkpoint, or this is an error
    return model


def __getattr__(name):
    """The systems' classes as names of this module."""
    for system in SYSTEMS.values():
        if system.built_by.endswith(f":{name}"):
            return resolve_name(system.built_by)
    raise AttributeError(f"module 'model' has no attribute '{name}'")


def in_bfloat16(module, forward):
    """`forward` under autocast on the module's device, its results in float32 again."""

    def wrapped(*args, **kwargs):
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
            out = forward(*args, **kwargs)
        return tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()

    return wrapped


def compiled(function, **how):
    """The function through torch.compile, one program for all sizes; how: more arguments of torch.compile.

    If the compiler fails, a warning says so once, and the function itself computes from then on.
    """
    fast, failed = torch.compile(function, dynamic=True, **how), False

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal failed
        if not failed:
            try:
                return fast(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                failed = True
                reason = str(error).strip().split("\n")[0]
                warn(f"--compile: {reason[:200]}; torch computes the same without, slower")
        return function(*args, **kwargs)

    return call
