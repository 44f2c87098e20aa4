"""A model, a split and the user's numbers or sentences -> explained pairs."""

from types import SimpleNamespace

import data
from checkpoints.evaluation_options import overrides_of
from evaluation import load_model
from files.errors import InputError
from reporting.explain_page import ExplainedPair
from reporting.explanation import caption_sentence, caption_text, explain_pair
from reporting.image_view import ImageViewer
from tools.explaining.sentences import Reader
from tools.searching.collection import embed_images, rank_of_image


class Explainer:
    """explainer.pair(image, caption) -> ExplainedPair.

    An image is a number in the split, a caption a number or a sentence, both as text.  flags: those of
    tools/explain.py.  InputError for a model without graphs, and for numbers that the split does not have.
    """

    def __init__(self, flags):
        self.flags, self.views, self.sentences = flags, {}, {}
        self.reader = self.embeddings = None
        self.model, self.opt, self.vocab = load_model(flags.model_path, **overrides_of(flags))
        if self.opt.model != "gsmn":
            raise InputError(
                f"{flags.model_path}: holds {self.opt.model}, which compares whole vectors; "
                "only GSMN matches words and regions"
            )
        numbered = any(caption.isdecimal() for caption in flags.caption)  # else no dependencies are needed
        opt = SimpleNamespace(**{**vars(self.opt), "is_sparse": self.opt.is_sparse and numbered})
        self.dataset = data.open_split(flags.split, opt.data_name, self.vocab, opt)
        self.viewer = ImageViewer(self.dataset, flags.images)

    def pair(self, image, caption):
        view, sentence = self.view(image), self.sentence(caption)
        explanation = explain_pair(self.model, self.dataset, image, sentence)
        return ExplainedPair(
            f"Image {image}, “{self.text(caption)}”", self.facts(image, caption), view, sentence, explanation
        )

    def view(self, image):
        self.check("--image", image, "images", self.dataset.n_images)
        if image not in self.views:
            self.views[image] = self.viewer(image)
        return self.views[image]

    def sentence(self, caption):
        if caption not in self.sentences:
            self.sentences[caption] = self.read_sentence(caption)
        return self.sentences[caption]

    def read_sentence(self, caption):
        if caption.isdecimal():
            self.check("--caption", int(caption), "captions", len(self.dataset))
            return caption_sentence(self.dataset, int(caption))
        self.reader = self.reader or Reader(self.vocab, self.opt.is_sparse, self.flags.spacy_model)
        return self.reader(caption)

    def check(self, flag, number, what, count):
        if number >= count:
            raise InputError(f"{flag} {number}: the split {self.dataset.split} has {what} 0 to {count - 1}")

    def text(self, caption):
        return caption_text(self.dataset, int(caption)) if caption.isdecimal() else caption

    # ---- what stands under a pair's heading

    def facts(self, image, caption):
        """Whether the sentence is the image's own, and the rank of the image for it."""
        facts = self.owner(image, caption)
        if not self.flags.rank:
            return facts
        embeddings = self.all_embeddings()
        rank = rank_of_image(self.model, embeddings, self.dataset.boxes, self.sentence(caption), image)
        return f"{facts} The image has rank {rank:,} of {self.dataset.n_images:,} for it."

    def owner(self, image, caption):
        if not caption.isdecimal():
            return "The sentence is not from the data."
        owner = self.dataset.image_of(int(caption))
        if owner == image:
            return f"Caption {caption} is the image's own."
        return f"Caption {caption} is not the image's own, but of image {owner}."

    def all_embeddings(self):
        if self.embeddings is None:
            self.embeddings = embed_images(self.model, self.dataset)
        return self.embeddings
