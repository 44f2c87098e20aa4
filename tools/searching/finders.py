"""What finds images for a sentence: a model that scores images, or an index whose shortlist a model may re-order.

A finder is called with a text and a number -> (numbers, scores) of so many images, best first. It has `names` and
`captions` of all images, `dataset` (None where it is not needed) and `provenance`, the record for the page.
"""

from pathlib import Path

import torch

from checkpoints.evaluation_options import overrides_of
from checkpoints.loading import describe_checkpoint, open_checkpoint, trained_model
from files.errors import InputError
from files.identity import data_identity, difference
from reporting.provenance import provenance
from systems.table import inputs_of
from tools.searching import faiss_index
from tools.searching.collection import best_images, embed_images, labels, open_collection
from tools.searching.sentences import Reader


class Scorer:
    """A finder whose model scores all images of the split, or those in `numbers`, which alone are then encoded."""

    def __init__(self, path, flags):
        loaded, opt, vocab = open_checkpoint(path, overrides_of(flags))
        self.model = trained_model(loaded, opt, path)
        self.dataset = open_collection(flags.split or "test", opt, vocab)
        self.names, self.captions = labels(self.dataset)
        self.provenance = provenance(self.dataset, describe_checkpoint(path, loaded, opt))
        self.reader = Reader(vocab, inputs_of(opt).dependencies, flags.spacy_model)
        self.embeddings = None

    def __call__(self, text, top, numbers=None):
        sentence = self.reader(text)
        if numbers is None and self.embeddings is None:
            self.embeddings = embed_images(self.model, self.dataset)
        images = self.embeddings if numbers is None else None
        return tuple(part[:top] for part in best_images(self.model, self.dataset, sentence, numbers, images))


class IndexedImages:
    """A finder with a FAISS index of vectors; with --rerank another model orders the index's shortlist."""

    def __init__(self, flags):
        self.index, self.flags = faiss_index.read_index(flags.index), flags
        self.adopt_data()
        facts, path = self.index.facts, flags.model_path or self.index.facts["checkpoint"]["path"]
        loaded, opt, vocab = open_checkpoint(path, overrides_of(flags))
        self.model, self.reader = trained_model(loaded, opt, path), Reader(vocab)
        faiss_index.need_vectors(self.model, path)
        if faiss_index.weights_identity(self.model) != facts["weights"]:
            raise InputError(f"{flags.index}: made with other weights than those of {path}; {faiss_index.BUILD_AGAIN}")
        self.names, self.captions = facts["names"], facts["captions"]
        self.provenance = {name: value for name, value in facts.items() if name not in ("names", "captions")}
        self.dataset = self.open_data(opt, vocab)
        self.scorer = Scorer(flags.rerank, flags) if flags.rerank else None
        if flags.breadth:
            faiss_index.set_breadth(self.index.faiss, flags.breadth)

    def adopt_data(self):
        """Flags of the data that are not given are those of the index."""
        flags, facts = self.flags, self.index.facts
        if flags.split not in (None, facts["split"]):
            raise InputError(f"--split {flags.split}: {flags.index} holds the split {facts['split']}")
        place = Path(facts["data"])
        flags.split, flags.data_name = facts["split"], flags.data_name or place.name
        flags.data_path = flags.data_path or str(place.parent)

    def open_data(self, opt, vocab):
        """The images behind the index, which are not needed for a list of names; InputError where they are others."""
        flags = self.flags
        if not (flags.rerank or flags.images or flags.out or (Path(flags.data_path) / flags.data_name).is_dir()):
            return None
        dataset = open_collection(flags.split, opt, vocab)
        if other := difference(self.index.facts["identity"], data_identity(dataset), features=True):
            made = f"not what {flags.index} was made from ({other})"
            raise InputError(f"{dataset.folder}: {made}; {faiss_index.BUILD_AGAIN}")
        return dataset

    def __call__(self, text, top):
        ids = torch.tensor([self.reader(text).ids])
        with torch.no_grad():
            vector = self.model.encode_captions(ids, [ids.shape[1]]).cpu().numpy()
        k = self.flags.shortlist if self.scorer else top
        numbers, scores = faiss_index.shortlist(self.index.faiss, vector, k)
        return self.scorer(text, top, numbers) if self.scorer else (numbers, scores)


def save_index(flags):
    """Write the index of a split's images (--save_index) -> a line that says what it holds."""
    scorer = Scorer(flags.model_path, flags)
    faiss_index.need_vectors(scorer.model, flags.model_path)
    vectors = embed_images(scorer.model, scorer.dataset).numpy()
    facts = {
        **scorer.provenance,
        "checkpoint": {**scorer.provenance["checkpoint"], "path": str(Path(flags.model_path).resolve())},
        "weights": faiss_index.weights_identity(scorer.model),
        "identity": data_identity(scorer.dataset),
        "names": scorer.names,
        "captions": scorer.captions,
    }
    faiss_index.write_index(flags.save_index, faiss_index.build_index(vectors, flags.kind), facts)
    size = Path(flags.save_index).stat().st_size / 1e6
    return f"{flags.save_index}: {len(vectors)} images, {vectors.shape[1]} numbers each, {flags.kind}, {size:.3g} MB"
