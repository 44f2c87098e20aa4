"""VSRN, the Visual Semantic Reasoning Network (arXiv 1909.02701).  docs/method.md describes it in section 3."""

import torch
import torch.nn.functional as F
from torch import nn

from modules.caption_model import CaptionModel
from modules.layers import finish, in_float32, linear, unit
from modules.sides import CaptionSide, ImageSide
from runtime.transfer import send
from systems.table import reads_pictures
from systems.vsepp import VSEpp

RELATION_LAYERS = 4


class EncoderRegions(nn.Module):
    """Region features -> one vector: relations among regions, then a GRU reads them in file order.

    The two released models differ (docs/method.md, section 3.1): variant 'f30k' ends with a BatchNorm, variant
    'coco' starts with a norm over the regions.  memory: the longest memory of `chrono_init`, 0 for torch's
    initial values.
    """

    def __init__(self, img_dim, embed_size, variant, use_abs=False, no_imgnorm=False, memory=0):
        super().__init__()
        self.flickr = variant == "f30k"
        self.use_abs, self.no_imgnorm = use_abs, no_imgnorm
        self.fc = linear(img_dim, embed_size)
        self.img_rnn = nn.GRU(embed_size, embed_size, batch_first=True)
        for layer in range(1, RELATION_LAYERS + 1):
            setattr(self, f"Rs_GCN_{layer}", RegionRelations(embed_size))
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
        if len(regions):  # cuDNN's GRU fails on an empty batch
            features = in_float32(self.img_rnn, regions)[1][0]  # the last hidden state
        else:
            features = regions[:, 0]
        if self.flickr:
            features = batch_norm(self.bn, features)
        return finish(features, self.use_abs, self.no_imgnorm), regions


@torch.no_grad()
def chrono_init(rnn, steps):
    """Start a GRU's units with memories of 1 to `steps` steps, half of them longer than steps / 2.

    The bias of the update gate starts at log u, u uniform in [1, steps - 1], so that a unit keeps u / (u + 1) of its
    state at each step; torch's initial values keep about half.
    Tallec and Ollivier, Can recurrent neural networks warp time? (ICLR 2018), section 2.
    """
    gate = slice(rnn.hidden_size, 2 * rnn.hidden_size)  # torch's order of gates: reset, update, new
    rnn.bias_ih_l0[gate] = torch.empty(rnn.hidden_size).uniform_(1, max(1, steps - 1)).log_()
    rnn.bias_hh_l0[gate] = 0


class RegionRelations(nn.Module):
    """VSRN's relation layer: adds to each region a weighted sum over all regions  (VSRN paper, eqs. 2-3).

    W ends in a BatchNorm that starts at 0, so an untrained layer returns its input unchanged.
    """

    def __init__(self, dim):
        super().__init__()
        self.g = nn.Conv1d(dim, dim, 1)
        self.W = nn.Sequential(nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim))
        self.theta = nn.Conv1d(dim, dim, 1)
        self.phi = nn.Conv1d(dim, dim, 1)
        nn.init.zeros_(self.W[1].weight)
        nn.init.zeros_(self.W[1].bias)

    def forward(self, regions):
        """Regions (B, R, D) -> related regions (B, R, D)."""
        query, key, value = (pointwise(layer, regions) for layer in (self.theta, self.phi, self.g))
        relation = query @ key.transpose(1, 2) / regions.shape[1]  # (B, R, R), no softmax
        update = pointwise(self.W[0], relation @ value).transpose(1, 2)  # (B, D, R)
        # channels first in memory: torch's statistics are ten times less exact in the other layout
        return regions + batch_norm(self.W[1], update.contiguous()).transpose(1, 2)


def pointwise(convolution, x):
    """A 1x1 convolution, read from its layer, of (B, R, D): one product, no axis moved."""
    return F.linear(x, convolution.weight.squeeze(-1), convolution.bias)


def batch_norm(layer, x):
    """layer(x), x (B, D) or (B, D, R).  For a single value, without variance, it uses the running statistics."""
    if x.numel() > x.shape[1] or not layer.training or getattr(layer, "synced", False):
        return layer(x)
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)


class VSRN(VSEpp):
    """VSRN: VSE++ with an image encoder that relates regions, and with a caption loss.

    Pictures (data_name coco, f8k, f30k) have no regions to caption: caption_model is then None.
    """

    retrieval_loss = "Le_retrieval"

    def __init__(self, opt):
        super().__init__(opt)
        if reads_pictures(opt):
            self.caption_model = None

    def add_region_encoder(self, opt):
        self.img_enc = EncoderRegions(
            opt.img_dim, opt.embed_size, opt.vsrn_variant, opt.use_abs, opt.no_imgnorm, opt.chrono_init
        )
        sizes = opt.vocab_size, opt.embed_size, opt.dim_hidden, opt.dim_word, opt.max_len
        self.caption_model = CaptionModel(*sizes, opt.rnn_type, opt.bidirectional, opt.input_dropout_p)
        self.extra_losses = ("Le_caption",)

    def forward_emb(self, images, captions, lengths):
        """Features or pictures, ids (B, n) padded with 0, lengths -> image and caption embeddings (B, D) each, and
        enhanced regions (B, R, D), None for pictures.
        """
        encoded = self.img_enc(send(images, self.device))
        img_emb, regions = (encoded, None) if self.caption_model is None else encoded
        return img_emb, self.encode_captions(captions, lengths), regions

    def encode_images(self, images):
        encoded = super().encode_images(images)
        return encoded if self.caption_model is None else encoded[0]

    def encode(self, batch):
        """As MatchingModel; the caption loss's gradient reaches the image encoder."""
        img_emb, cap_emb, regions = self.forward_emb(batch.images, batch.captions, batch.lengths)
        extra = {} if regions is None else {"Le_caption": self.caption_loss(regions, batch.labels, batch.masks)}
        return ImageSide(img_emb), CaptionSide(cap_emb, batch.lengths), extra

    def caption_loss(self, regions, labels, masks):
        """Regions (B, R, D), labels and masks (B, max_len + 1) -> the caption loss."""
        return self.caption_model(regions, labels, masks)
