"""VSE++, visual-semantic embeddings with hard negatives (arXiv 1707.05612): docs/method.md, section 9."""

from torch import nn

from model import EncoderCaption, MatchingModel
from modules.backbone import EncoderImageFull
from modules.layers import finish, linear
from modules.order_similarity import vector_similarity
from systems.table import reads_pictures


class EncoderVector(nn.Module):
    """Features of an image's regions, or of one region for the whole image -> one vector, of their mean."""

    def __init__(self, img_dim, embed_size, use_abs, no_imgnorm):
        super().__init__()
        self.use_abs, self.no_imgnorm = use_abs, no_imgnorm
        self.fc = linear(img_dim, embed_size)

    def forward(self, images):
        """(B, R, img_dim) -> (B, D)."""
        return finish(self.fc(images.mean(1)), self.use_abs, self.no_imgnorm)


class VSEpp(MatchingModel):
    """VSE++, and its relatives by flags: VSE0, Order++, Order0.  ValueError for an unknown measure."""

    one_vector = True

    def __init__(self, opt):
        super().__init__(opt)
        if opt.measure not in ("cosine", "order"):
            raise ValueError(f"--measure {opt.measure}: it can be cosine or order")
        self.measure, self.inner_product = opt.measure, opt.measure == "cosine"
        if reads_pictures(opt):
            self.img_enc = EncoderImageFull(
                opt.cnn_type, opt.embed_size, not opt.no_pretrained, opt.finetune, opt.use_abs, opt.no_imgnorm
            )
        else:
            self.add_region_encoder(opt)
        self.txt_enc = EncoderCaption(opt.vocab_size, opt.word_dim, opt.embed_size, opt.num_layers, opt.use_abs)

    def add_region_encoder(self, opt):
        self.img_enc = EncoderVector(opt.img_dim, opt.embed_size, opt.use_abs, opt.no_imgnorm)

    def similarity(self, images, captions):
        """Scores of all pairs by --measure (I, C)."""
        return vector_similarity(images.emb, captions.emb, self.measure)
