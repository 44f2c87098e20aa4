"""Words and ids. `python vocab.py --data_path ./data/ --data_name f30k_precomp` builds a vocabulary."""

import functools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import punkt
from tqdm import tqdm

from files.errors import InputError, run, warn
from files.opening import open_regular
from files.pickles import ANY_MODULE, restricted_load
from files.pictures import PICTURES, training_captions
from files.ragged import Ragged
from files.text import data_folder, read_captions, read_json
from files.writing import atomic_write, make_folder
from runtime import commandline

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)


class Vocabulary:
    """Words numbered from 0, the four special words first; vocab(word) is the word's id, or <unk>'s."""

    def __init__(self, words=()):
        self.word2idx, self.idx2word, self.idx = {}, {}, 0
        for word in words:
            self.add_word(word)

    def add_word(self, word):
        if word not in self.word2idx:
            self.word2idx[word] = self.idx
            self.idx2word[self.idx] = word
            self.idx += 1

    def __call__(self, word):
        return self.word2idx.get(word, self.word2idx["<unk>"])

    def __len__(self):
        return len(self.word2idx)


# ---- tokens ----


@functools.lru_cache(maxsize=1)
def _word_tokenizer():
    from nltk.tokenize import NLTKWordTokenizer  # takes 1.5 s, and is not needed where ids are read

    return NLTKWordTokenizer()


def split_words(text):
    """The words of a caption as they are spelt, a list for each sentence (docs/method.md, section 1)."""
    words = _word_tokenizer()
    return [words.tokenize(sentence) for sentence in punkt.sent_tokenize(text)]


def tokenize(text):
    """The words of a caption, lower-cased, as nltk.word_tokenize gives them (docs/method.md, section 1)."""
    return [word for sentence in split_words(text.lower()) for word in sentence]


def encode(text, vocab):
    """The ids of a caption: <start> words <end>."""
    return [START, *(vocab(word) for word in tokenize(text)), END]


def encode_all(captions, vocab, source):
    """Captions -> their ids, Ragged, with a progress bar. source: the file of the captions, for messages."""
    bar = tqdm(captions, desc=f"{Path(source).name}: words to ids", unit="", mininterval=0.5, disable=None)
    tokens = Ragged(encode(text, vocab) for text in bar)
    warn_unknown(tokens, source)
    return tokens


def warn_unknown(tokens, source):
    """Warn when more than 5 % of the words are unknown: most likely another data set's vocabulary."""
    unknown, words = np.sum(tokens.flat == UNK), np.sum(tokens.flat > END)
    if unknown > 0.05 * words:
        warn(f"{source}: {100 * unknown / words:.0f} % of the words are <unk>; is this its vocabulary?")


# ---- files ----


def serialize_vocab(vocab, path):
    """Write a vocabulary: JSON, or for a name ending in .pkl a pickle."""
    content = {"word2idx": vocab.word2idx, "idx2word": vocab.idx2word, "idx": vocab.idx}
    if str(path).endswith(".pkl"):
        atomic_write(path, lambda file: pickle.dump(vocab, file, protocol=2))
    else:
        atomic_write(path, lambda file: file.write(json.dumps(content).encode()))


def deserialize_vocab(path):
    """Read a vocabulary from JSON or, when the name ends in .pkl, from a Python 2 or 3 pickle (safely).

    Raises InputError when it is not one: ids 0, 1, 2 ... without a gap or a double, special words first.
    """
    if str(path).endswith(".pkl"):
        content = _unpickle(path)
    else:
        content = read_json(path)
    if is_word_table(content):
        content = {"word2idx": content, "idx2word": {n: word for word, n in content.items()}, "idx": len(content)}
    if not isinstance(content, dict) or not {"word2idx", "idx2word", "idx"} <= content.keys():
        raise InputError(f"{path}: not a vocabulary; it needs word2idx, idx2word and idx")
    return Vocabulary(_checked_words(content, path))


def is_word_table(content):
    """Whether this is a plain table of words and their ids."""
    return isinstance(content, dict) and content.get(SPECIAL[1]) == START and "word2idx" not in content


def _unpickle(path):
    """The tables of a pickled vocabulary: of a class Vocabulary of any module, or a plain dict."""

    class Holder:
        """Takes the place of the pickled class, so that a file can fill attributes and nothing else."""

    with open_regular(path) as file:
        loaded = restricted_load(file, {(ANY_MODULE, "Vocabulary"): Holder}, encoding="utf-8", what=path)
    return loaded.__dict__ if type(loaded) is Holder else loaded


def _checked_words(content, path):
    """The words in the order of their ids, after checking that both tables say the same."""
    word2idx, idx2word = content["word2idx"], content["idx2word"]
    if not isinstance(word2idx, dict) or not isinstance(idx2word, dict):
        raise InputError(f"{path}: word2idx and idx2word must be tables")
    words = {id_: word for word, id_ in word2idx.items() if isinstance(word, str) and type(id_) is int}
    if len(words) != len(word2idx) or set(words) != set(range(len(words))):
        raise InputError(f"{path}: the ids in word2idx must be 0 to {len(word2idx) - 1}, each once")
    for id_, word in enumerate(SPECIAL):
        if words.get(id_) != word:
            raise InputError(f"{path}: {word} must have id {id_}, which is {words.get(id_)!r}")
    if {str(id_): word for id_, word in words.items()} != {str(id_): word for id_, word in idx2word.items()}:
        raise InputError(f"{path}: idx2word does not match word2idx")
    if content["idx"] != len(words):
        raise InputError(f"{path}: idx must be {len(words)}, the number of words")
    return [words[id_] for id_ in range(len(words))]


def load_vocab(vocab_path, data_name, size=None):
    """The vocabulary {data_name}_vocab.json or .pkl in the folder vocab_path.

    size: the number of words wanted (a checkpoint's): the file that has it is taken, or InputError.
    """
    names = [Path(vocab_path) / f"{data_name}_vocab{suffix}" for suffix in (".json", ".pkl")]
    found = {name: None for name in names if name.exists()}
    if not found:
        raise InputError(
            f"{names[0]}: no such file; build it with python vocab.py --data_name {data_name}, "
            "or say where it is with --vocab_path"
        )
    for name in found:
        vocab = deserialize_vocab(name)
        if size in (None, len(vocab)):
            return vocab
        found[name] = len(vocab)
    sizes = ", ".join(f"{name} has {n} words" for name, n in found.items())
    raise InputError(f"{sizes}; {size} are needed: give the vocabulary of the training (--vocab_path)")


# ---- building ----


def vocab_of_captions(captions, threshold=4):
    """A vocabulary of the words seen threshold times or more: special words, then in the order first seen."""
    counts = Counter()  # keeps the order of first insertion
    for caption in tqdm(captions, desc="vocabulary", unit=" captions", mininterval=0.5):
        counts.update(tokenize(caption))
    return Vocabulary([*SPECIAL, *(word for word, n in counts.items() if n >= threshold)])


def build_vocab(data_path, data_name, threshold=4):
    """The vocabulary of train_caps.txt and dev_caps.txt in data_path/data_name, or of a picture data set."""
    if data_name in PICTURES:
        return vocab_of_captions(training_captions(data_path, data_name), threshold)
    folder = data_folder(data_path, data_name)
    captions = read_captions(folder / "train_caps.txt") + read_captions(folder / "dev_caps.txt")
    return vocab_of_captions(captions, threshold)


def main():
    parser = commandline.Parser(description="Build a vocabulary from train_caps.txt and dev_caps.txt.")
    parser.add_argument("--data_path", default="./data/", help="folder of the data sets")
    parser.add_argument("--data_name", required=True, help="data set: a folder in data_path")
    parser.add_argument("--vocab_path", default="./vocab/", help="folder to write {data_name}_vocab.json to")
    parser.add_argument("--threshold", type=commandline.whole(), default=4, help="words seen less often become <unk>")
    opt = parser.parse_args()
    vocab = build_vocab(opt.data_path, opt.data_name, opt.threshold)
    make_folder(opt.vocab_path)
    path = Path(opt.vocab_path) / f"{opt.data_name}_vocab.json"
    serialize_vocab(vocab, path)
    print(f"{path}: {len(vocab)} words")


if __name__ == "__main__":
    run(main)
