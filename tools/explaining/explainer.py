"""A model, a split and the user's numbers or sentences -> explained pairs."""

from functools import cache, cached_property
from types import SimpleNamespace

import data
from checkpoints.evaluation_options import overrides_of
from evaluation import load_model
from files.errors import InputError
from reporting.explain_page import ExplainedPair, about_model
from reporting.explanation import can_explain, caption_sentence, caption_text, explain_pair
from reporting.image_view import ImageViewer
from systems.table import inputs_of
from tools.explaining.sentences import Reader
from tools.searching.collection import embed_images, rank_of_image


class Explainer:
    """explainer.pair(image, caption) -> ExplainedPair.

    An image is a number in the split, a caption a number or a sentence, both as text.  flags: those of
    tools/explain.py.  InputError for a model that does not match words and regions, and for numbers that the split does
    not have.
    """

    def __init__(self, flags):
        self.flags = flags
        self.model, self.opt, self.vocab = load_model(flags.model_path, **overrides_of(flags))
        if not can_explain(self.model):
            raise InputError(f"{flags.model_path}: holds {self.opt.model}, which matches no words and regions")
        numbered = any(caption.isdecimal() for caption in flags.caption)  # else no dependencies are needed
        self.reads_trees = inputs_of(self.opt).dependencies
        opt = SimpleNamespace(**{**vars(self.opt), "is_sparse": self.reads_trees and numbered})
        self.dataset = data.open_split(flags.split, opt.data_name, self.vocab, opt)
        self.about = about_model(flags.model_path, opt, self.dataset)
        self.view, self.sentence = cache(ImageViewer(self.dataset, flags.images)), cache(self.read_sentence)

    def pair(self, image, caption):
        self.check("--image", image, "images", self.dataset.n_images)
        sentence, heading = self.sentence(caption), f"Image {image}, “{self.text(caption)}”"
        explanation = explain_pair(self.model, self.dataset, image, sentence)
        return ExplainedPair("", heading, self.facts(image, caption), self.view(image), sentence, explanation)

    def read_sentence(self, caption):
        if caption.isdecimal():
            self.check("--caption", int(caption), "captions", len(self.dataset))
            return caption_sentence(self.dataset, int(caption))
        return self.reader(caption)

    @cached_property
    def reader(self):
        return Reader(self.vocab, self.reads_trees, self.flags.spacy_model)

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
        rank = rank_of_image(self.model, self.embeddings, self.dataset.boxes, self.sentence(caption), image)
        return f"{facts} The image has rank {rank:,} of {self.dataset.n_images:,} for it."

    def owner(self, image, caption):
        if not caption.isdecimal():
            return "The sentence is not from the data."
        owner = self.dataset.image_of(int(caption))
        if owner == image:
            return f"Caption {caption} is the image's own."
        return f"Caption {caption} is not the image's own, but of image {owner}."

    @cached_property
    def embeddings(self):
        return embed_images(self.model, self.dataset)
