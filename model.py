"""Encoders, the loss, and GSMN and VSRN as a whole.  Knows no file, no optimiser and no device number.

Letters for shapes as in graph.py, and B images or captions of a batch.  See docs/method.md, sections 2 and 3.
"""

import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graph
from files.pictures import PICTURES
from modules import similarity
from modules.backbone import behead, classifier
from modules.caption_model import CaptionModel
from modules.order_similarity import order_similarity

RELATION_LAYERS = 4


def l2norm(x, dim=-1, eps=1e-8):
    """x / (‖x‖₂ + eps) along `dim`, at least in float32; zero stays zero, with a finite gradient."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return x / (graph.safe_norm(x, dim) + eps)


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


class EncoderImage(nn.Module):
    """Region features (B, R, img_dim) -> unit vectors (B, R, D)  (docs/method.md, section 2.1)."""

    def __init__(self, img_dim, embed_size, no_imgnorm=False):
        super().__init__()
        self.no_imgnorm = no_imgnorm
        self.fc = linear(img_dim, embed_size)

    def forward(self, images):
        features = self.fc(images)
        return features if self.no_imgnorm else l2norm(features)


class EncoderText(nn.Module):
    """Word ids (B, n) -> unit vectors (B, n, D), one for each word  (docs/method.md, section 2.2)."""

    def __init__(self, vocab_size, word_dim, embed_size, num_layers=1, bi_gru=False, no_txtnorm=False):
        super().__init__()
        self.no_txtnorm = no_txtnorm
        self.embed = nn.Embedding(vocab_size, word_dim)
        self.rnn = nn.GRU(word_dim, embed_size, num_layers, batch_first=True, bidirectional=bi_gru)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def forward(self, captions, lengths):
        """Positions from a caption's length on come out as zeros."""
        lengths = torch.as_tensor(lengths).cpu()
        packed = pack_padded_sequence(self.embed(captions), lengths, batch_first=True, enforce_sorted=False)
        words, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)  # (B, n, D or 2·D)
        if self.rnn.bidirectional:
            words = sum(words.chunk(2, dim=-1)) / 2
        return words if self.no_txtnorm else l2norm(words)


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


class ContrastiveLoss(nn.Module):
    """Hinge over a batch's score matrix, both ways, summed; the diagonal holds the true pairs.

    With max_violation only the hardest negative of each row and column counts (VSE++; docs/method.md,
    section 2.5).
    """

    def __init__(self, margin=0.2, max_violation=False):
        super().__init__()
        self.margin = margin
        self.max_violation = max_violation

    def forward(self, scores):
        """scores (B, B), images down, captions across -> the loss, a scalar."""
        self.last_scores = scores.detach()
        true = scores.diagonal()
        cost_s = (self.margin + scores - true.unsqueeze(1)).clamp(min=0)  # captions of an image
        cost_im = (self.margin + scores - true.unsqueeze(0)).clamp(min=0)  # images of a caption
        itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        cost_s, cost_im = cost_s.masked_fill(itself, 0), cost_im.masked_fill(itself, 0)
        if self.max_violation:
            cost_s, cost_im = cost_s.amax(1), cost_im.amax(0)
        return cost_s.sum() + cost_im.sum()

    def observed(self):
        """Of the batch last seen: mean score of the true pairs, and of each row's and column's hardest negative."""
        scores = self.last_scores
        means = {"positive": scores.diagonal().mean().item()}
        if len(scores) > 1:  # a single pair has no negative
            itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            others = scores.masked_fill(itself, -math.inf)
            means["hardest_negative"] = torch.cat([others.amax(1), others.amax(0)]).mean().item()
        return means


class ListedModel(nn.Module):
    """A model whose released checkpoints hold a list of state dicts, one for each of `parts`."""

    parts = ()
    retrieval = "Le"  # the log's name for the triplet loss
    own = ()  # names of the losses that need no other pair
    one_vector = False  # a caption is one vector, not one for each word

    def forward(self, batch):
        """data.Batch -> {name: loss}, to be added up."""
        images, captions, own = self.embed(batch)
        scores = self.forward_sim(images, captions, batch.bboxes, batch.depends, batch.lengths)
        return {self.retrieval: self.forward_loss(scores), **own}

    def batch_losses(self, batch):
        """The same as calling the model."""
        return self(batch)

    def compile_encoders(self, **how):
        """torch.compile for the encoders, which keep their parameters' names; how: its arguments."""
        for encoder in (self.img_enc, self.txt_enc):
            encoder.compile(dynamic=True, **how)

    def state_list(self):
        """State dicts of the parts, in the order of the released checkpoints."""
        return [getattr(self, part).state_dict() for part in self.parts]

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


class GSMN(ListedModel):
    """Graph Structured Network for image-text matching (arXiv 2004.00277).

    `opt` needs img_dim, vocab_size, word_dim, embed_size, num_layers, bi_gru, no_imgnorm, no_txtnorm,
    num_block, feat_dim, hid_dim, out_dim, lambda_softmax, is_sparse, margin, max_violation; `propagation`
    is 'self' where it is missing.  ValueError for widths that do not divide.
    """

    parts = ("img_enc", "txt_enc", "i2t_match_G", "t2i_match_G")

    def __init__(self, opt):
        super().__init__()
        check_widths(opt)
        self.is_sparse = opt.is_sparse
        self.blocks, self.smooth = opt.num_block, opt.lambda_softmax
        self.sim_memory = getattr(opt, "sim_memory", 0)
        self.block_dtype = torch.bfloat16 if getattr(opt, "amp", "off") == "bf16" else None
        propagation = getattr(opt, "propagation", "self")
        self.img_enc = EncoderImage(opt.img_dim, opt.embed_size, opt.no_imgnorm)
        self.txt_enc = EncoderText(
            opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.bi_gru, opt.no_txtnorm
        )
        self.i2t_match_G = graph.VisualGraph(opt.feat_dim, opt.hid_dim, opt.out_dim, propagation)
        self.t2i_match_G = graph.TextualGraph(opt.feat_dim, opt.hid_dim, opt.out_dim, propagation)
        self.criterion = ContrastiveLoss(opt.margin, opt.max_violation)

    def forward_emb(self, images, captions, lengths):
        """Features (B, R, img_dim), ids (B, n) padded with 0, lengths -> (B, R, D), (B, n, D), lengths."""
        return self.encode_images(images), self.encode_captions(captions, lengths), lengths

    def encode_images(self, images):
        return self.img_enc(images.to(self.device))

    def encode_captions(self, captions, lengths):
        return self.txt_enc(captions.to(self.device), lengths)

    def forward_scores(self, img_emb, cap_emb, bboxes, depends, cap_lens):
        """The two graphs' scores of all pairs: visual (I, C) and textual (I, C).

        img_emb (I, R, D); cap_emb (C, n, D) padded, or a list of (n_c, D); bboxes (I, R, 4) normalised,
        or None for no geometry; depends: for each caption its [governor, dependent] pairs, ROOT first
        (sparse models only); cap_lens: words of each caption.  Padding takes no part, so a pair's score
        does not depend on what it is computed with.
        """
        if bboxes is None:
            bboxes = torch.zeros(*img_emb.shape[:2], 4)
        graphs = similarity.Graphs(
            self.i2t_match_G, self.t2i_match_G, self.blocks, self.smooth, self.sim_memory, self.block_dtype
        )
        depends = depends if self.is_sparse else None
        return similarity.pair_scores(graphs, img_emb, cap_emb, bboxes, depends, cap_lens)

    def forward_sim(self, img_emb, cap_emb, bboxes, depends, cap_lens):
        """Similarity (I, C) of all pairs: visual plus textual score; arguments as forward_scores."""
        visual, textual = self.forward_scores(img_emb, cap_emb, bboxes, depends, cap_lens)
        return visual + textual

    def forward_loss(self, scores):
        """scores (B, B), image b belonging to caption b -> the triplet loss, a scalar."""
        return self.criterion(scores)

    def embed(self, batch):
        """data.Batch -> embeddings (B, R, D), (B, n, D), and no loss that needs no other pair."""
        return *self.forward_emb(batch.images, batch.captions, batch.lengths)[:2], {}


class VSRN(ListedModel):
    """Visual Semantic Reasoning Network (arXiv 1909.02701).

    `opt` needs data_name, vocab_size, word_dim, embed_size, num_layers, use_abs, no_imgnorm, measure, margin,
    max_violation; for region features img_dim, dim_hidden, dim_word, max_len, rnn_type, bidirectional,
    input_dropout_p; for pictures (data_name coco, f8k, f30k) cnn_type, finetune, perhaps no_pretrained.
    Enhanced regions are embed_size wide, so dim_vid is not read.  Pictures have no regions to caption:
    caption_model is then None.
    """

    parts = ("img_enc", "txt_enc")
    retrieval = "Le_retrieval"
    one_vector = True

    def __init__(self, opt):
        super().__init__()
        if opt.measure not in ("cosine", "order"):
            raise ValueError(f"--measure {opt.measure}: it can be cosine or order")
        self.measure = opt.measure
        if opt.data_name in PICTURES:
            pretrained = not getattr(opt, "no_pretrained", False)
            self.img_enc = EncoderImageFull(
                opt.cnn_type, opt.embed_size, pretrained, opt.finetune, opt.use_abs, opt.no_imgnorm
            )
            self.caption_model = None
        else:
            self.img_enc = EncoderRegions(
                opt.img_dim, opt.embed_size, opt.data_name, opt.use_abs, opt.no_imgnorm, getattr(opt, "chrono_init", 0)
            )
            self.caption_model = CaptionModel(
                opt.vocab_size,
                opt.embed_size,
                opt.dim_hidden,
                opt.dim_word,
                opt.max_len,
                opt.rnn_type,
                opt.bidirectional,
                opt.input_dropout_p,
            )
            self.own = ("Le_caption",)
        self.txt_enc = EncoderCaption(opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.use_abs)
        self.criterion = ContrastiveLoss(opt.margin, opt.max_violation)

    def forward_emb(self, images, captions, lengths):
        """Features (B, R, img_dim) or pictures (B, 3, height, width), ids (B, n) padded with 0, lengths
        -> image and caption embeddings (B, D) each, enhanced regions (B, R, D), None for pictures.
        """
        img_emb, regions = self.img_enc(images.to(self.device))
        return img_emb, self.encode_captions(captions, lengths), regions

    def encode_images(self, images):
        return self.img_enc(images.to(self.device))[0]

    def encode_captions(self, captions, lengths):
        return self.txt_enc(captions.to(self.device), lengths)

    def embed(self, batch):
        """data.Batch -> embeddings (B, D) each, and the caption loss, which reaches the image encoder."""
        img_emb, cap_emb, regions = self.forward_emb(batch.images, batch.captions, batch.lengths)
        if self.caption_model is None:
            return img_emb, cap_emb, {}
        return img_emb, cap_emb, {"Le_caption": self.caption_loss(regions, batch.labels, batch.masks)}

    def forward_sim(self, img_emb, cap_emb, bboxes=None, depends=None, cap_lens=None):
        """Similarity (I, C) of all pairs by --measure; the other arguments, GSMN's, are not used."""
        if self.measure == "order":
            return order_similarity(img_emb, cap_emb)
        return img_emb @ cap_emb.t()

    def forward_loss(self, scores):
        """scores (B, B), image b belonging to caption b -> the triplet loss, a scalar."""
        return self.criterion(scores)

    def caption_loss(self, regions, labels, masks):
        """Regions (B, R, D), labels and masks (B, max_len + 1) -> the caption loss; 0 for pictures."""
        if self.caption_model is None:
            return torch.zeros((), device=self.device)
        return self.caption_model(regions, labels.to(self.device), masks.to(self.device))


def check_widths(opt):
    """ValueError where block, feature and kernel widths of GSMN do not fit together."""
    if opt.embed_size % opt.num_block:
        raise ValueError(f"--embed_size {opt.embed_size} is not divisible by --num_block {opt.num_block}")
    if opt.feat_dim != opt.num_block:
        raise ValueError(f"--feat_dim {opt.feat_dim} must equal --num_block {opt.num_block}")
    if opt.hid_dim % graph.KERNELS:
        raise ValueError(f"--hid_dim {opt.hid_dim} is not divisible by the {graph.KERNELS} kernels")
    if opt.out_dim != 1:
        raise ValueError(f"--out_dim {opt.out_dim}: a node has one score, only 1 is defined")


def build(opt):
    """The model that opt.model names, gsmn or vsrn, in the precision that opt.amp and opt.tf32 ask for."""
    model = {"gsmn": GSMN, "vsrn": VSRN}[opt.model](opt)
    tf32 = bool(getattr(opt, "tf32", False))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if getattr(opt, "amp", "off") == "bf16":
        for encoder in (model.img_enc, model.txt_enc):
            encoder.forward = in_bfloat16(encoder, encoder.forward)
    return model


def in_bfloat16(module, forward):
    """`forward` under autocast on the module's device, its results in float32 again."""

    def wrapped(*args, **kwargs):
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
            out = forward(*args, **kwargs)
        return tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()

    return wrapped
