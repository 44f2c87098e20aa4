"""Words and ids. `python vocab.py --data_path ./data/ --data_name f30k_precomp` builds a vocabulary."""

from runtime.start import run

import functools
import html
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import punkt
from tqdm import tqdm

from files.errors import InputError, warn
from files.opening import open_regular
from files.pickles import restricted_load
from files.pictures import captioned_pictures
from files.text import PICTURES, Ragged, data_folder, read_captions, read_json
from files.writing import atomic_write, make_folder
from runtime import commandline

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)

PRINTED_BYTES = "captions are written as b'...', as Python 3 prints bytes; write them with text.decode('utf-8')"
COMPARED_CAPTIONS = 100  # captions, at least, whose ids are compared with their words
SAMPLED_CAPTIONS = 10000  # captions, at least, that fault_of_captions reads
ONE_WORD = 1.3  # a lower mean number of words counts as about one word a caption
SEPARATE = "words must be separated by blanks first, as jieba does for Chinese, MeCab for Japanese, PyThaiNLP for Thai"
_BYTES = re.compile(r"""b(['"]).*\1""", re.DOTALL)
_ENTITY = re.compile(r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,9});")
_CURLY = re.compile("[\u2018-\u201f]")
_STRAIGHT = {mark: "'" if mark < 0x201C else '"' for mark in range(0x2018, 0x2020)}
_ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff\u00ad]")  # space, word joiner, byte order mark, soft hyphen
# letters of scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters
_NO_BLANKS = re.compile("[\u0e01-\u0e30\u0e81-\u0eb0\u1000-\u102a\u1780-\u17b3\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


class Vocabulary:
    """Different words numbered from 0, the four special ones first; vocab(word) is the word's id, or <unk>'s."""

    def __init__(self, words=()):
        self.idx2word = dict(enumerate(dict.fromkeys(words)))
        self.word2idx = {word: i for i, word in self.idx2word.items()}
        self.idx = len(self.word2idx)

    def __call__(self, word):
        return self.word2idx.get(word, self.word2idx["<unk>"])

    def __len__(self):
        return len(self.word2idx)


# ---- tokens ----


@functools.lru_cache(maxsize=4096)  # a small data set's captions come again and again, and each takes a millisecond
def split_words(text):
    """The words of a caption as they are spelt, a tuple for each sentence (docs/method.md, section 1)."""
    from nltk.tokenize import NLTKWordTokenizer  # takes 1.5 s, and is not needed where ids are read

    words = NLTKWordTokenizer()
    return tuple(tuple(words.tokenize(sentence)) for sentence in punkt.sent_tokenize(text))


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
    if fault := fault_of_captions(captions):
        warn(f"{source}: {fault}")
    else:
        warn_unfit(tokens, source)
    return tokens


def check_ids(tokens, path, captions, vocab):
    """InputError where most of a sample of captions have other ids by this vocabulary than in the file path.

    tokens: its ids, Ragged. A few may differ, since another tokeniser made them. Captions that cannot be cut into
    words, or whose number is not that of the ids, are not compared.
    """
    if len(captions) != len(tokens) or not captions:
        return
    sample = range(0, len(captions), max(1, len(captions) // COMPARED_CAPTIONS))
    different = [i for i in sample if encode(captions[i], vocab) != tokens[i]]
    if 2 * len(different) <= len(sample):
        return
    if fault := fault_of_captions([captions[i] for i in different]):
        warn(f"{path}: not compared with the captions' text: {fault}")
        return
    i = different[0]
    raise InputError(
        f"{path}: made with another vocabulary, or from other captions: of {len(sample)} captions compared "
        f"{len(different)} have other ids by this vocabulary (line {i + 1}: {str(tokens[i])[:60]}, where it gives "
        f"{str(encode(captions[i], vocab))[:60]}); train with the vocabulary that the ids were made with "
        "(--vocab_path); for a model of another data set, rename this file: the ids are then made from the captions, "
        "with the model's vocabulary"
    )


def warn_unfit(tokens, source):
    """Warn of words without blanks between them, and of another data set's vocabulary: more than 5 % are unknown."""
    unknown, words = np.sum(tokens.flat == UNK), np.sum(tokens.flat > END)
    if len(tokens) and words < ONE_WORD * len(tokens):
        warn(f"{source}: {words / len(tokens):.1f} words a caption; {SEPARATE}")
    elif unknown > 0.05 * words:
        warn(f"{source}: {100 * unknown / words:.0f} % of the words are <unk>; is this its vocabulary?")


def fault_of_captions(captions):
    """The reason why captions cannot be cut into words, and the cure, for a message; None for ordinary captions."""
    texts = [text.strip() for text in captions[:: max(1, len(captions) // SAMPLED_CAPTIONS)]]
    if 2 * sum(bool(_BYTES.fullmatch(text)) for text in texts) > len(texts):
        return PRINTED_BYTES
    pieces = [piece for text in texts for piece in text.split()]
    letters = [n for piece in pieces if (n := len(_NO_BLANKS.findall(piece)))]
    if sum(letters) > 5 * len(letters) or (texts and len(pieces) < ONE_WORD * len(texts)):
        return f"{len(pieces) / len(texts):.1f} words a caption; {SEPARATE}"
    return None


def plain(text):
    """A caption without entities of web pages and with straight quotes; mended too."""
    return mended(_ENTITY.sub(lambda match: html.unescape(match[0]), text).translate(_STRAIGHT))


def mended(text):
    """A caption on one line, with composed accents and without zero-width marks."""
    return " ".join(unicodedata.normalize("NFC", _ZERO_WIDTH.sub("", text)).split())


def odd_marks(captions):
    """[(what, numbers of the captions)] of marks that make two words of one in a vocabulary."""
    tests = {
        "entities of web pages, such as &quot;": _ENTITY.search,
        "curly quotes": _CURLY.search,
        "zero-width marks": _ZERO_WIDTH.search,
        "accents apart from their letters": lambda text: not unicodedata.is_normalized("NFC", text),
    }
    found = ((what, [i for i, text in enumerate(captions) if test(text)]) for what, test in tests.items())
    return [(what, numbers) for what, numbers in found if numbers]


# ---- files ----


def serialize_vocab(vocab, path):
    """Write a vocabulary as JSON."""
    content = {"word2idx": vocab.word2idx, "idx2word": vocab.idx2word, "idx": vocab.idx}
    atomic_write(path, lambda file: file.write(json.dumps(content).encode()))


def deserialize_vocab(path):
    """Read a vocabulary from JSON or, when the name ends in .pkl, from a pickle of Python 2 or 3; no code in it runs.

    The pickle holds a dict, or an object of a class Vocabulary of any module. A plain table of words and ids is a
    vocabulary too. InputError unless the ids are 0, 1, 2 ..., each once, and the special words come first.
    """

    class Holder:
        """Takes the place of the pickled class, so that a file can fill attributes and nothing else."""

    if str(path).endswith(".pkl"):
        with open_regular(path) as file:
            content = restricted_load(file, {"Vocabulary": Holder}, path, encoding="utf-8")
        content = vars(content) if type(content) is Holder else content
    else:
        content = read_json(path)
    if isinstance(content, dict) and content.get(SPECIAL[1]) == START and "word2idx" not in content:
        content = {"word2idx": content, "idx2word": {n: word for word, n in content.items()}, "idx": len(content)}
    try:
        word2idx, idx2word, idx = content["word2idx"], content["idx2word"], content["idx"]
        words = {number: word for word, number in word2idx.items() if isinstance(word, str) and type(number) is int}
        back = {str(number): word for number, word in idx2word.items()}
    except (AttributeError, LookupError, TypeError):
        raise InputError(f"{path}: not a vocabulary; it needs the tables word2idx and idx2word, and idx") from None
    for number in range(max(len(word2idx), len(idx2word), len(SPECIAL))):
        word = words.get(number)
        expected = SPECIAL[number] if number < len(SPECIAL) else word
        if word is None or not word == back.get(str(number)) == expected:
            raise InputError(
                f"{path}: id {number} is {word!r} in word2idx and {back.get(str(number))!r} in idx2word; both need "
                f"the ids from 0 on, each once, which begin with {' '.join(SPECIAL)}"
            )
    if idx != len(words):
        raise InputError(f"{path}: idx must be {len(words)}, the number of words")
    return Vocabulary(words[number] for number in range(len(words)))


def load_vocab(vocab_path, data_name, size=None, trained_on=None):
    """The vocabulary {data_name}_vocab.json or .pkl in the folder vocab_path.

    size: a checkpoint's number of words; chooses the file with this number, InputError where none has it.
    trained_on: the checkpoint's data set, whose file is looked at too.
    """
    names = dict.fromkeys([data_name, trained_on or data_name])
    paths = [Path(vocab_path) / f"{name}_vocab{ending}" for name in names for ending in (".json", ".pkl")]
    sizes = []
    for path in paths:
        if path.exists():
            vocab = deserialize_vocab(path)
            if size in (None, len(vocab)):
                return vocab
            sizes.append(f"{path} has {len(vocab)} words")
    if sizes:
        raise InputError(f"{', '.join(sizes)}; {size} are needed: give the vocabulary of the training (--vocab_path)")
    raise InputError(
        f"{paths[0]}: no such file; put the data set's published vocabulary there, or name its folder by --vocab_path; "
        f"for captions of your own build one: python vocab.py --data_name {data_name}"
    )


# ---- building ----


def vocab_of_captions(captions, threshold=4):
    """A vocabulary of the words seen threshold times or more: special words, then in the order first seen."""
    counts = Counter()  # keeps the order of first insertion
    for caption in tqdm(captions, desc="vocabulary", unit=" captions", mininterval=0.5, disable=None):
        counts.update(tokenize(caption))
    return Vocabulary([*SPECIAL, *(word for word, n in counts.items() if n >= threshold)])


def build_vocab(data_path, data_name, threshold=4):
    """The vocabulary of train_caps.txt and dev_caps.txt in data_path/data_name, or of a picture data set.

    InputError for captions that are printed bytes, warnings for words without blanks and for odd marks.
    """
    source = data_folder(data_path, data_name)
    if data_name in PICTURES:
        captions = [text for split in ("train", "dev") for _, text in captioned_pictures(source, data_name, split)]
    else:
        source = source / "train_caps.txt"
        captions = read_captions(source) + read_captions(source.with_name("dev_caps.txt"))
    if fault := fault_of_captions(captions):
        if fault == PRINTED_BYTES:
            raise InputError(f"{source}: {fault}")
        warn(f"{source}: {fault}")
    for what, numbers in odd_marks(captions):
        warn(
            f"{source}: {len(numbers):,} captions have {what}, which make words of their own (first: line "
            f"{numbers[0] + 1}); tools/prepare_captions.py --plain replaces them"
        )
    return vocab_of_captions(captions, threshold)


def other_vocab(vocab, path):
    """The file that has other words than vocab: path, or the .pkl that a new path would hide; None without one."""
    for file in (path, path.with_suffix(".pkl")):
        if file.exists():
            return None if deserialize_vocab(file).word2idx == vocab.word2idx else file
    return None


def write_vocab(vocab, path, overwrite=False):
    """Write {data_name}_vocab.json; InputError where a vocabulary with other words is there, unless overwrite."""
    if not overwrite and (other := other_vocab(vocab, path)):
        raise InputError(
            f"{other}: is there already, with {len(deserialize_vocab(other)):,} words, and word ids and checkpoints "
            f"belong to it; these captions give {len(vocab):,}: use another --vocab_path, or --overwrite"
        )
    make_folder(path.parent)
    serialize_vocab(vocab, path)
    print(f"{path}: {len(vocab)} words")


def main():
    parser = commandline.Parser(description="Build a vocabulary from train_caps.txt and dev_caps.txt.")
    add = parser.add_argument
    add("--data_path", default="./data/", help="folder of the data sets")
    add("--data_name", type=commandline.folder_name, required=True, help="data set: a folder in data_path")
    add("--vocab_path", default="./vocab/", help="folder to write {data_name}_vocab.json to")
    add("--threshold", type=commandline.whole(), default=4, help="words seen less often become <unk>")
    add("--overwrite", action="store_true", help="replace a vocabulary that has other words")
    opt = parser.parse_args()
    vocab = build_vocab(opt.data_path, opt.data_name, opt.threshold)
    write_vocab(vocab, Path(opt.vocab_path) / f"{opt.data_name}_vocab.json", opt.overwrite)


if __name__ == "__main__":
    run(main)
