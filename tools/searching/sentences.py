"""The user's sentence -> a model's input: ids of its vocabulary, and dependencies for a sparse model."""

from files.errors import InputError, warn
from reporting.explanation import Sentence
from tools.own_data.parsers import Spacy, dependencies
from vocab import UNK, encode, tokenize


class Reader:
    """reader(text) -> Sentence.

    is_sparse: spaCy parses the sentences; InputError at once where it is not installed.
    """

    def __init__(self, vocab, is_sparse=False, spacy_model=None):
        self.vocab, self.parser = vocab, None
        if is_sparse:
            try:
                self.parser = Spacy(spacy_model)
            except InputError as error:
                raise InputError(f"a sparse model reads a sentence's dependencies: {error}") from None

    def __call__(self, text):
        words, ids = tokenize(text), encode(text, self.vocab)
        if not words:
            raise InputError("the sentence has no words")
        unknown = [word for word, id_ in zip(words, ids[1:]) if id_ == UNK]
        if unknown:
            warn(f"not in the vocabulary: {', '.join(unknown)}")
        shown = [f"‹{word}›" if id_ == UNK else word for word, id_ in zip(words, ids[1:])]
        depends = next(dependencies(self.parser, [text], [repr(text)])) if self.parser else None
        return Sentence(["<start>", *shown, "<end>"], ids, depends)
