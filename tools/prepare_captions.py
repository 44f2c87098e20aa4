"""Captions -> {split}_caps.txt, {split}_imagename.txt, {split}_precaps_stan.txt and the vocabulary.

    python tools/prepare_captions.py dataset_flickr30k.json --data_name f30k_precomp          (Karpathy's JSON)
    python tools/prepare_captions.py captions_val2014.json --data_name mine_precomp --split dev      (COCO's)
    python tools/prepare_captions.py captions.csv --data_name mine_precomp --images photos --dev 500 --test 500

captions.csv has a row for each caption, and columns called image and caption, or the like. So may a list of JSON
objects. The same command again changes nothing; files with other content are only replaced with --overwrite.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import os
import random

from tqdm import tqdm

from files.errors import InputError
from files.names import find_pictures
from files.text import CAPTIONS_PER_IMAGE
from files.writing import atomic_write, make_folder
from runtime.commandline import Parser, whole
from tools.own_data.caption_sources import read_source
from tools.own_data.notes import Notes
from tools.own_data.splits import SPLITS
from vocab import (
    END,
    ONE_WORD,
    PRINTED_BYTES,
    UNK,
    deserialize_vocab,
    encode,
    fault_of_captions,
    load_vocab,
    mended,
    odd_marks,
    other_vocab,
    plain,
    vocab_of_captions,
    write_vocab,
)


def clean(pictures, notes, tidy=mended):
    """Every caption tidied, without the empty ones; notes on both. InputError for a name with a line break."""
    kept, before, after = [], [], []
    for picture in pictures:
        if "\n" in picture.name or "\r" in picture.name:
            raise InputError(f"{picture.where}: {picture.name!r} has a line break; rename the image")
        captions = [caption._replace(text=tidy(caption.text)) for caption in picture.captions]
        before += picture.captions
        after += captions
        kept.append(picture._replace(captions=[caption for caption in captions if caption.text]))
    note_marks(before, after, notes)
    for caption in after:
        if not caption.text:
            notes.add("empty captions left out", caption.where)
        elif any(ch.isalpha() and not ch.isascii() for ch in caption.text):
            notes.add("captions with letters beyond a-z, cut into words by the rules for English", caption.where)
    return kept


def note_marks(before, after, notes):
    """Note the marks that make two words of one: those replaced, and those still there."""
    there, left = (dict(odd_marks([caption.text for caption in captions])) for captions in (before, after))
    for what, numbers in there.items():
        how = "; --plain replaces them" if what in left else ", which were replaced"
        for number in numbers:
            notes.add(f"captions with {what}{how}", before[number].where)


def check_words(pictures, notes):
    """Whether captions can be cut into words at all: InputError for printed bytes, a note for missing blanks."""
    captions = [caption for picture in pictures for caption in picture.captions]
    if fault := fault_of_captions([caption.text for caption in captions]):
        if fault == PRINTED_BYTES:
            raise InputError(f"{captions[0].where}: {fault}")
        notes.add(fault, captions[0].where)


def only_there(pictures, folder, drop, notes):
    """The pictures whose files are in the folder, by their path inside it; InputError or a note for others."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder (--images)")
    files = find_pictures(folder, [p.longer_name or p.name for p in pictures], links=True)
    missing = [picture for picture, file in zip(pictures, files) if not file]
    if missing and (not drop or len(missing) == len(pictures)):
        how = "names and files must agree" if len(missing) == len(pictures) else "--missing drop leaves such images out"
        raise InputError(
            f"{missing[0].where}: {missing[0].name} is not in {folder}, nor are {len(missing) - 1:,} of the other "
            f"{len(pictures) - 1:,} images; {how}"
        )
    for picture in missing:
        notes.add(f"images left out that are not in {folder}", f"{picture.where}: {picture.name}")
    found = [(picture, file) for picture, file in zip(pictures, files) if file]
    return [picture._replace(name=file.relative_to(folder).as_posix()) for picture, file in found]


def with_five(pictures, repeat, notes):
    """Five captions for every picture; a picture with fewer is left out, or repeats its captions."""
    kept = []
    for picture in pictures:
        captions, n = picture.captions, len(picture.captions)
        if n > CAPTIONS_PER_IMAGE:
            notes.add("images with more than five captions, of which the first five are taken", picture.where)
        elif n < CAPTIONS_PER_IMAGE and repeat and n:
            notes.add("images with fewer than five captions, which are repeated", f"{picture.where}: {n}")
        elif n < CAPTIONS_PER_IMAGE:
            how = "" if repeat else "; --fewer repeat keeps those that have one"
            notes.add(f"images with fewer than five captions left out{how}", f"{picture.where}: {n}")
            continue
        kept.append(picture._replace(captions=[captions[i % n] for i in range(CAPTIONS_PER_IMAGE)]))
    return kept


def assign_splits(pictures, opt):
    """{split: pictures}: all in --split, or the source's own splits, or --dev and --test drawn at random."""
    if not pictures:
        raise InputError(f"{opt.source}: no image with captions is left")
    if opt.split:
        splits = {opt.split: pictures}
    elif pictures[0].split:
        if opt.dev or opt.test:
            raise InputError(f"{opt.source}: has its own splits; leave out --dev and --test, or use --split")
        splits = {split: [p for p in pictures if p.split == split] for split in SPLITS}
    else:
        splits = draw_splits(pictures, opt)
    if opt.testall and "test" in splits:
        if len(splits["test"]) % CAPTIONS_PER_IMAGE:
            raise InputError(f"--testall: {len(splits['test'])} test images make no five folds; need a multiple of 5")
        splits["testall"] = splits["test"]
        splits["test"] = splits["testall"][: len(splits["testall"]) // CAPTIONS_PER_IMAGE]
    return {split: some for split, some in splits.items() if some}


def draw_splits(pictures, opt):
    if not opt.dev:
        raise InputError(f"{opt.source}: has no splits; say --dev N --test N, or which one it is with --split")
    wanted, n = opt.dev + opt.test, len(pictures)
    if wanted >= n:
        raise InputError(f"{opt.source}: --dev {opt.dev} and --test {opt.test} leave no image of {n} for train")
    drawn = random.Random(opt.seed).sample(range(n), wanted)
    dev, test = set(drawn[: opt.dev]), set(drawn[opt.dev :])
    return {
        "train": [p for i, p in enumerate(pictures) if i not in dev and i not in test],
        "dev": [pictures[i] for i in sorted(dev)],
        "test": [pictures[i] for i in sorted(test)],
    }


# ---- vocabulary and files


def choose_vocab(texts, opt):
    """The file of --vocab; else a vocabulary of train and dev; without train the data set's own file."""
    if opt.vocab:
        return deserialize_vocab(opt.vocab)
    if "train" in texts:
        return vocab_of_captions([*texts["train"], *texts.get("dev", [])], opt.threshold)
    try:
        return load_vocab(opt.vocab_path, opt.data_name)
    except InputError as error:
        raise InputError(f"{error}; prepare train first, or give --vocab") from None


def contents(splits, texts, vocab, opt, notes):
    """{path: bytes} of all files but the vocabulary; prints a line about each split."""
    folder, files = Path(opt.data_path) / opt.data_name, {}
    for split, pictures in splits.items():
        bar = tqdm(texts[split], desc=split, unit=" captions", disable=None)
        ids = [encode(text, vocab) for text in bar]
        words = [word for one in ids for word in one if word > END]
        unknown = 100 * words.count(UNK) / len(words)
        print(
            f"{split}: {len(pictures)} images, {len(ids)} captions of {len(words) / len(ids):.1f} words, "
            f"{unknown:.1f} % <unk>"
        )
        if unknown > 5 and (opt.vocab or opt.threshold > 1) and len(words) > ONE_WORD * len(ids):
            how = "give their own --vocab" if opt.vocab else "a lower --threshold keeps rarer words"
            notes.add(f"splits with many unknown words; {how}", split)
        lines = {
            "caps": texts[split],
            "imagename": [picture.name for picture in pictures],
            "precaps_stan": [",".join(map(str, one)) for one in ids],
        }
        for name, some in lines.items():
            files[folder / f"{split}_{name}.txt"] = "".join(f"{line}\n" for line in some).encode()
    return files


def write_files(files, vocab, opt):
    """Write the files whose content is new; returns the paths whose content was replaced.

    InputError, before anything is written, where a file has other content and --overwrite is not given.
    """
    table = Path(opt.vocab_path) / f"{opt.data_name}_vocab.json"
    same = [path for path, content in files.items() if holds(path, content)]
    if table.exists() and not other_vocab(vocab, table):
        same.append(table)
    other = [path for path in files if path.exists() and path not in same]
    other = [*filter(None, [other_vocab(vocab, table)]), *other]
    if other and not opt.overwrite:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise InputError(f"{other[0]}{more}: there already, with other content; --overwrite replaces it")
    for path in same:
        print(f"{path}: unchanged")
    if table not in same:
        write_vocab(vocab, table, overwrite=True)
    for path in [path for path in files if path not in same]:
        make_folder(path.parent)
        atomic_write(path, lambda file, path=path: file.write(files[path]))
        print(f"{path}: written")
    return other


def holds(path, content):
    try:
        return path.read_bytes() == content
    except OSError:  # not there; or not a file, which writing will say
        return False


MADE_FROM = {"caps.txt": ["caps.json"], "imagename.txt": ["ims.npy", "ims_bbx.npy", "ims_size.npy"]}


def note_stale(replaced, notes):
    """Note the files that were made from the replaced ones and do not fit any more."""
    for path in replaced:
        split, _, ending = path.name.partition("_")
        for name in MADE_FROM.get(ending, []):
            if (stale := path.with_name(f"{split}_{name}")).exists():
                notes.add("files made from the replaced ones, which must be made again", stale)


# ---- command line


def caption_options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("source", type=Path, help="Karpathy's dataset_*.json, COCO's captions_*.json, a table or a list of captions")
    add(
        "--format",
        default="auto",
        choices=["auto", "karpathy", "coco", "table"],
        help="what the source is (default: auto, seen from it)",
    )
    add(
        "--columns",
        type=lambda text: text.split(","),
        metavar="IMAGE,CAPTION",
        help="a table's columns, by titles or numbers from 1 (default: seen from titles and cells)",
    )
    add("--plain", action="store_true", help="replace entities of web pages (&quot;) and curly quotes in captions")
    add("--data_path", default="./data/", help="folder that holds the data sets (default: ./data/)")
    add("--data_name", required=True, help="data set: the folder under --data_path that is written to")
    add("--vocab_path", default="./vocab/", help="folder of {data_name}_vocab.json (default: ./vocab/)")
    add(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="use this vocabulary, .json or .pkl (default: made of train and dev, or, without train, the one there)",
    )
    add("--threshold", default=4, type=int, help="words seen less often become <unk> (default: 4)")
    add("--split", choices=SPLITS, help="the whole source is this split (default: Karpathy's own, or --dev, --test)")
    add("--dev", default=0, type=whole(0), metavar="N", help="images drawn for dev; the rest is train (default: 0)")
    add("--test", default=0, type=whole(0), metavar="N", help="images drawn for test (default: 0)")
    add("--seed", default=0, type=int, help="fixes the draw (default: 0)")
    add(
        "--restval",
        default="train",
        choices=["train", "drop"],
        help="Karpathy's COCO: where its restval images go (default: train)",
    )
    add(
        "--testall",
        action="store_true",
        help="as for COCO, call the test images testall (five folds), and the first fifth of them test",
    )
    add("--images", type=Path, metavar="DIR", help="folder of the images: check that each is there (default: no check)")
    add(
        "--missing",
        default="stop",
        choices=["stop", "drop"],
        help="with --images, captions whose image is not there: an error, or left out (default: stop)",
    )
    add(
        "--fewer",
        default="drop",
        choices=["drop", "repeat"],
        help="images with fewer than five captions: leave out, or repeat their captions (default: drop)",
    )
    add("--overwrite", action="store_true", help="replace files that are there with other content")
    opt = parser.parse_args(argv)
    if opt.columns and len(opt.columns) != 2:
        parser.error("--columns: needs two, as in --columns image,caption")
    return opt


def main(argv=None):
    opt = caption_options(argv)
    with Notes() as notes:
        pictures = read_source(opt.source, opt.format, opt.restval, opt.columns, notes)
        pictures = clean(pictures, notes, plain if opt.plain else mended)
        check_words(pictures, notes)
        if opt.images:
            pictures = only_there(pictures, opt.images, opt.missing == "drop", notes)
        splits = assign_splits(with_five(pictures, opt.fewer == "repeat", notes), opt)
        texts = {split: [caption.text for p in some for caption in p.captions] for split, some in splits.items()}
        vocab = choose_vocab(texts, opt)
        note_stale(write_files(contents(splits, texts, vocab, opt, notes), vocab, opt), notes)


if __name__ == "__main__":
    run(main)
