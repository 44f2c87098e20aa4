"""The encoders, the triplet loss, and GSMN and VSRN as a whole.

This module uses no file, no optimiser and no device number.  Letters for shapes as in graph.py, and B images or
captions of a batch.  docs/method.md describes GSMN in section 2 and VSRN in section 3.
"""

import math

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import nn

import graph
from files.errors import InputError
from files.pictures import PICTURES
from modules import similarity
from modules.backbone import EncoderImageFull
from modules.caption_model import CaptionModel
from modules.compiling import compiled
from modules.layers import chrono_init, finish, l2norm, linear, unit
from modules.order_similarity import order_similarity
from modules.packing import in_float32, last_states, read_words, unpacked
from runtime.options import with_defaults
from runtime.transfer import send

RELATION_LAYERS = 4

# ---- GSMN's encoders: a vector for each region, a vector for each word


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
        words, *places = read_words(self.embed, self.rnn, captions, lengths)  # (sum of lengths, D or 2·D)
        if self.rnn.bidirectional:
            forwards, backwards = words.chunk(2, dim=-1)
            words = (forwards + backwards) / 2
        return unpacked(words if self.no_txtnorm else l2norm(words), *places)


# ---- VSRN's encoders: one vector for an image, one vector for a caption


class EncoderRegions(nn.Module):
    """Region features -> one vector: relations among regions, then a GRU reads them in file order.

    The two released models differ (docs/method.md, section 3.1): variant 'f30k' ends with a BatchNorm, variant
    'coco' starts with a norm over the regions.  memory: the longest memory of `layers.chrono_init`, 0 for torch's
    initial values.
    """

    def __init__(self, img_dim, embed_size, variant, use_abs=False, no_imgnorm=False, memory=0):
        super().__init__()
        self.flickr = variant == "f30k"
        self.use_abs, self.no_imgnorm = use_abs, no_imgnorm
        self.fc = linear(img_dim, embed_size)
        self.img_rnn = nn.GRU(embed_size, embed_size, batch_first=True)
        for layer in range(1, RELATION_LAYERS + 1):
            setattr(self, f"Rs_GCN_{layer}", graph.RegionRelations(embed_size))
        if self.flickr:
            self.bn = nn.BatchNorm1d(embed_size)
        if memory:
            chrono_init(self.img_rnn, memory)

    def forward(self, images):
        """(B, R, img_dim) -> image embeddings (B, D) and enhanced regions (B, R, D)."""
        regions = self.fc(images)
        if not self.flickr:
            regions = unit(regions, dim=1)
        for layer in range(1, RELATION_LAYERS + 1):
            regions = getattr(self, f"Rs_GCN_{layer}")(regions)
        regions = unit(regions, dim=1)
        if len(regions):  # no kernel of CUDA's recurrent layers starts for none
            features = in_float32(self.img_rnn, regions)[1][0]  # the last hidden state
        else:
            features = regions[:, 0]
        if self.flickr:
            features = graph.batch_norm(self.bn, features)
        return finish(features, self.use_abs, self.no_imgnorm), regions


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
        return finish(last_states(self.embed, self.rnn, captions, lengths), self.use_abs)


# ---- the loss of both systems


class ContrastiveLoss(nn.Module):
    """Triplet loss: a hinge over a batch's score matrix in both directions, summed.

    The diagonal holds the true pairs.  With max_violation only the hardest negative of each row and column
    counts (VSE++; docs/method.md, section 2.5).
    """

    def __init__(self, margin=0.2, max_violation=False):
        super().__init__()
        self.margin = margin
        self.max_violation = max_violation
        self.twins = None  # (B, B), True for pairs that are no negatives of one another, beside the diagonal

    def no_negatives(self, scores):
        """(B, B), True where a score is not that of a negative: on the diagonal, and at twins."""
        itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        return itself if self.twins is None else itself | self.twins.to(scores.device)

    def forward(self, scores):
        """scores (B, B), images down, captions across -> the loss, a scalar."""
        self.last_scores = scores.detach()
        true = scores.diagonal()
        captions = images = scores.masked_fill(self.no_negatives(scores), -math.inf)  # wrong ones, in either direction
        if self.max_violation:
            captions, images = captions.amax(1, keepdim=True), images.amax(0, keepdim=True)  # (B, 1), (1, B)
        cost_s = F.relu(self.margin + captions - true.unsqueeze(1))
        cost_im = F.relu(self.margin + images - true.unsqueeze(0))
        return cost_s.sum() + cost_im.sum()

    def observed(self):
        """Of the scores of the last batch: mean of the true pairs, standard deviation of all, and mean of the hardest
        negatives of rows and columns, NaN where there is no negative.  They stay on the device.
        """
        scores = self.last_scores
        figures = {"positive": scores.diagonal().mean(), "score_spread": scores.std(correction=0)}
        others = scores.masked_fill(self.no_negatives(scores), -math.inf)
        hardest = torch.cat([others.amax(1), others.amax(0)])
        without = hardest.isneginf()
        figures["hardest_negative"] = hardest.masked_fill(without, 0).sum() / (~without).sum()
        return figures


# ---- the two systems


class MatchingModel(nn.Module):
    """What GSMN and VSRN have in common: the step from a batch to its losses, and the released state dicts.

    Released checkpoints hold a list of state dicts, one for each of `parts`.
    """

    parts = ()
    retrieval_loss = "Le"  # name of the triplet loss in the log
    extra_losses = ()  # names of the losses of single pairs, which need no negatives
    one_vector = False  # a caption is one vector, not one vector for each word
    sim_memory = 0  # MB for the scores of all pairs; 0 for the device's default

    def forward(self, batch):
        """data.Batch -> {name: loss}, to be added up."""
        images, captions, extra = self.embed(batch)
        scores = self.forward_sim(images, captions, batch.bboxes, batch.depends, batch.lengths)
        return {self.retrieval_loss: self.forward_loss(scores), **extra}

    def batch_losses(self, batch):
        """The same as calling the model."""
        return self(batch)

    def forward_loss(self, scores):
        """scores (B, B), image b belonging to caption b -> the triplet loss, a scalar."""
        return self.criterion(scores)

    def encode_captions(self, captions, lengths):
        """Ids (B, n) padded with 0, lengths -> (B, n, D), or (B, D) for a model with one vector a caption."""
        return self.txt_enc(send(captions, self.device), lengths)

    def compile_parts(self, **how):
        """Compile the encoders with torch.compile; parameters keep their names.  how: torch.compile's arguments."""
        for encoder in (self.img_enc, self.txt_enc):
            encoder.forward = compiled(encoder.forward, **how)

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


class GSMN(MatchingModel):
    """Graph Structured Network for image-text matching (arXiv 2004.00277).

    `opt` holds the flags of train.py and vocab_size; what a released checkpoint's opt lacks has its default.
    ValueError for widths that do not fit together.
    """

    parts = ("img_enc", "txt_enc", "i2t_match_G", "t2i_match_G")

    def __init__(self, opt):
        super().__init__()
        opt = with_defaults(opt, "gsmn")
        check_widths(opt)
        self.is_sparse = opt.is_sparse
        self.blocks, self.smooth, self.sim_memory = opt.num_block, opt.lambda_softmax, opt.sim_memory
        self.node_matching, self.kernel = graph.node_matching, opt.kernel
        self.img_enc = EncoderImage(opt.img_dim, opt.embed_size, opt.no_imgnorm)
        self.txt_enc = EncoderText(
            opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.bi_gru, opt.no_txtnorm
        )
        self.i2t_match_G = graph.VisualGraph(opt.feat_dim, opt.hid_dim, opt.out_dim, opt.propagation)
        self.t2i_match_G = graph.TextualGraph(opt.feat_dim, opt.hid_dim, opt.out_dim, opt.propagation)
        self.criterion = ContrastiveLoss(opt.margin, opt.max_violation)

    def compile_parts(self, **how):
        """torch.compile for the encoders and for graph.py's part of the similarity; how: its arguments."""
        super().compile_parts(**how)
        # two sizes that are equal in the first batch need not be in the next
        torch.fx.experimental._config.use_duck_shape = False
        self.node_matching = compiled(graph.node_matching, **how)
        for side in (self.i2t_match_G, self.t2i_match_G):
            side.forward = compiled(side.forward, **how)

    def forward_emb(self, images, captions, lengths):
        """Features (B, R, img_dim), ids (B, n) padded with 0, lengths -> (B, R, D), (B, n, D), lengths."""
        return self.encode_images(images), self.encode_captions(captions, lengths), lengths

    def encode_images(self, images):
        return self.img_enc(send(images, self.device))

    def forward_scores(self, img_emb, cap_emb, bboxes, depends, cap_lens):
        """The two graphs' scores of all pairs: visual (I, C) and textual (I, C).

        img_emb (I, R, D); cap_emb (C, n, D) padded, or a list of (n_c, D); bboxes (I, R, 4) normalised,
        or None for no geometry; depends: for each caption its [governor, dependent] pairs, ROOT first
        (sparse models only); cap_lens: words of each caption.  Padding takes no part, so a pair's score
        does not depend on the other pairs.
        """
        if bboxes is None:
            bboxes = torch.zeros(*img_emb.shape[:2], 4)
        graphs = similarity.Graphs(
            self.i2t_match_G,
            self.t2i_match_G,
            self.blocks,
            self.smooth,
            self.sim_memory,
            self.node_matching,
            self.kernel,
        )
        depends = depends if self.is_sparse else None
        return similarity.pair_scores(graphs, img_emb, cap_emb, bboxes, depends, cap_lens)

    def forward_sim(self, img_emb, cap_emb, bboxes, depends, cap_lens):
        """Similarity (I, C) of all pairs: visual plus textual score; arguments as forward_scores."""
        visual, textual = self.forward_scores(img_emb, cap_emb, bboxes, depends, cap_lens)
        return visual + textual

    def embed(self, batch):
        """data.Batch -> embeddings (B, R, D) and (B, n, D), and no extra losses."""
        return *self.forward_emb(batch.images, batch.captions, batch.lengths)[:2], {}


class VSRN(MatchingModel):
    """Visual Semantic Reasoning Network (arXiv 1909.02701).

    `opt` holds the flags of train.py and vocab_size; what a released checkpoint's opt lacks has its default.
    Enhanced regions are embed_size wide, so dim_vid is not read.  Pictures (data_name coco, f8k, f30k) have no
    regions to caption: caption_model is then None.  ValueError for an unknown measure.
    """

    parts = ("img_enc", "txt_enc")
    retrieval_loss = "Le_retrieval"
    one_vector = True

    def __init__(self, opt):
        super().__init__()
        opt = with_defaults(opt, "vsrn")
        if opt.measure not in ("cosine", "order"):
            raise ValueError(f"--measure {opt.measure}: it can be cosine or order")
        self.measure, self.caption_model = opt.measure, None
        if opt.data_name in PICTURES:
            self.img_enc = EncoderImageFull(
                opt.cnn_type, opt.embed_size, not opt.no_pretrained, opt.finetune, opt.use_abs, opt.no_imgnorm
            )
        else:
            self.img_enc = EncoderRegions(
                opt.img_dim, opt.embed_size, opt.vsrn_variant, opt.use_abs, opt.no_imgnorm, opt.chrono_init
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
            self.extra_losses = ("Le_caption",)
        self.txt_enc = EncoderCaption(opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.use_abs)
        self.criterion = ContrastiveLoss(opt.margin, opt.max_violation)

    def forward_emb(self, images, captions, lengths):
        """Features (B, R, img_dim) or pictures (B, 3, height, width), ids (B, n) padded with 0, lengths
        -> image and caption embeddings (B, D) each, enhanced regions (B, R, D), None for pictures.
        """
        img_emb, regions = self.img_enc(send(images, self.device))
        return img_emb, self.encode_captions(captions, lengths), regions

    def encode_images(self, images):
        return self.img_enc(send(images, self.device))[0]

    def embed(self, batch):
        """data.Batch -> embeddings (B, D) each, and the caption loss, whose gradient reaches the image encoder."""
        img_emb, cap_emb, regions = self.forward_emb(batch.images, batch.captions, batch.lengths)
        if self.caption_model is None:
            return img_emb, cap_emb, {}
        return img_emb, cap_emb, {"Le_caption": self.caption_loss(regions, batch.labels, batch.masks)}

    def forward_sim(self, img_emb, cap_emb, bboxes=None, depends=None, cap_lens=None):
        """Similarity (I, C) of all pairs by --measure; the other arguments, GSMN's, are not used."""
        if self.measure == "order":
            return order_similarity(img_emb, cap_emb)
        return img_emb @ cap_emb.t()

    def caption_loss(self, regions, labels, masks):
        """Regions (B, R, D), labels and masks (B, max_len + 1) -> the caption loss; 0 for pictures."""
        if self.caption_model is None:
            return torch.zeros((), device=self.device)
        return self.caption_model(regions, labels, masks)


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


def build_model(opt):
    """The system that opt.model names, gsmn or vsrn, in the precision of opt.amp and opt.tf32.

    InputError for flags that contradict one another.
    """
    opt = with_defaults(opt)
    try:
        model = {"gsmn": GSMN, "vsrn": VSRN}[opt.model](opt)
    except ValueError as error:
        raise InputError(str(error)) from None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = opt.tf32
    if opt.amp == "bf16":
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
