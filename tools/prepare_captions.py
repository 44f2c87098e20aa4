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

import vocab as words
from files.errors import InputError
from files.names import find_pictures
from files.text import CAPTIONS_PER_IMAGE, read_bytes
from files.writing import atomic_write, make_folder
from runtime.commandline import Parser, whole
from tools.own_data.caption_sources import read_source
from tools.own_data.shared import SPLITS, add_data_flags, noted

MADE_FROM = {"caps.txt": ["caps.json"], "imagename.txt": ["ims.npy", "ims_bbx.npy", "ims_size.npy"]}


def clean(pictures, notes, tidy):
    """Captions tidied, without empty ones, with notes; InputError for a line break in a name, and for printed bytes."""
    for picture in pictures:
        if "\n" in picture.name or "\r" in picture.name:
            raise InputError(f"{picture.where}: {picture.name!r} has a line break; rename the image")
    pictures = [p._replace(captions=[c._replace(text=tidy(c.text)) for c in p.captions]) for p in pictures]
    captions = [caption for picture in pictures for caption in picture.captions]
    for what, numbers in words.odd_marks([caption.text for caption in captions]):
        notes[f"captions with {what}; --plain replaces them"] += [captions[number].where for number in numbers]
    for caption in captions:
        if not caption.text:
            notes["empty captions left out"].append(caption.where)
        elif any(ch.isalpha() and not ch.isascii() for ch in caption.text):
            notes["captions with letters beyond a-z, cut into words by the rules for English"].append(caption.where)
    if fault := words.fault_of_captions([caption.text for caption in captions if caption.text]):
        if fault == words.PRINTED_BYTES:
            raise InputError(f"{captions[0].where}: {fault}")
        notes[fault].append(captions[0].where)
    return [p._replace(captions=[caption for caption in p.captions if caption.text]) for p in pictures]


def only_there(pictures, folder, drop, notes):
    """The pictures whose files are in the folder, by their path inside it; InputError or a note for others."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder (--images)")
    files = find_pictures(folder, [p.longer_name or p.name for p in pictures], links=True)
    missing = [picture for picture, file in zip(pictures, files) if not file]
    if missing and (not drop or len(missing) == len(pictures)):
        how = "names and files must agree" if len(missing) == len(pictures) else "--missing drop leaves such images out"
        first, count = missing[0], f"{len(missing):,} of {len(pictures):,} are missing"
        raise InputError(f"{first.where}: {first.name} is not in {folder}; {count}; {how}")
    for picture in missing:
        notes[f"images left out that are not in {folder}"].append(f"{picture.where}: {picture.name}")
    found = [(picture, file) for picture, file in zip(pictures, files) if file]
    return [picture._replace(name=file.relative_to(folder).as_posix()) for picture, file in found]


def with_five(pictures, repeat, notes):
    """Five captions for every picture; a picture with fewer is left out, or repeats its captions."""
    kept = []
    for picture in pictures:
        n = len(picture.captions)
        if n < CAPTIONS_PER_IMAGE and not (repeat and n):
            how = "" if repeat else "; --fewer repeat keeps those that have one"
            notes[f"images with fewer than five captions left out{how}"].append(f"{picture.where}: {n}")
            continue
        if n != CAPTIONS_PER_IMAGE:
            how = (
                "more than five captions, the others left out" if n > CAPTIONS_PER_IMAGE else "fewer captions, repeated"
            )
            notes[f"images with {how}"].append(f"{picture.where}: {n}")
        kept.append(picture._replace(captions=[picture.captions[i % n] for i in range(CAPTIONS_PER_IMAGE)]))
    return kept


def assign_splits(pictures, opt):
    """{split: lines of two files}: all in --split, or the source's own splits, or --dev and --test drawn at random."""
    n, count = len(pictures), opt.dev + opt.test
    if not pictures:
        raise InputError(f"{opt.source}: no image with captions is left")
    if opt.split:
        names = [opt.split] * n
    elif pictures[0].split:
        if count:
            raise InputError(f"{opt.source}: has its own splits; leave out --dev and --test, or use --split")
        names = [picture.split for picture in pictures]
    elif not opt.dev or count >= n:
        how = f"say --dev N --test N, together less than the {n} images, or which one it is with --split"
        raise InputError(f"{opt.source}: has no splits; {how}")
    else:
        names = ["train"] * n
        for k, i in enumerate(random.Random(opt.seed).sample(range(n), count)):
            names[i] = "dev" if k < opt.dev else "test"
    splits = {split: [one for one, name in zip(pictures, names) if name == split] for split in SPLITS}
    if opt.testall and splits["test"]:
        if len(splits["test"]) % CAPTIONS_PER_IMAGE:
            raise InputError(f"--testall: {len(splits['test'])} test images make no five folds; need a multiple of 5")
        splits["testall"] = splits["test"]
        splits["test"] = splits["testall"][: len(splits["testall"]) // CAPTIONS_PER_IMAGE]
    return {
        split: {"imagename": [p.name for p in some], "caps": [caption.text for p in some for caption in p.captions]}
        for split, some in splits.items()
        if some
    }


# ---- vocabulary and files


def choose_vocab(splits, opt):
    """The file of --vocab; else a vocabulary of train and dev; without train the data set's own file."""
    if opt.vocab:
        return words.deserialize_vocab(opt.vocab)
    if "train" in splits:
        captions = [text for split in ("train", "dev") if split in splits for text in splits[split]["caps"]]
        return words.vocab_of_captions(captions, opt.threshold)
    try:
        return words.load_vocab(opt.vocab_path, opt.data_name)
    except InputError as error:
        raise InputError(f"{error}; prepare train first, or give --vocab") from None


def contents(splits, vocab, folder):
    """{path: bytes} of all files but the vocabulary; prints a line about each split."""
    files = {}
    for split, lines in splits.items():
        bar = tqdm(lines["caps"], desc=split, unit=" captions", disable=None)
        ids = [words.encode(text, vocab) for text in bar]
        count = sum(len(one) - 2 for one in ids)  # without <start> and <end>
        unknown = 100 * sum(one.count(words.UNK) for one in ids) / count
        print(f"{split}: {len(lines['imagename'])} images, {len(ids)} captions, {unknown:.1f} % of the words <unk>")
        for name, some in {**lines, "precaps_stan": [",".join(map(str, one)) for one in ids]}.items():
            files[folder / f"{split}_{name}.txt"] = "".join(f"{line}\n" for line in some).encode()
    return files


def write_files(files, vocab, opt, notes):
    """Write the files whose content is new; notes the files that were made from those replaced.

    InputError, before anything is written, where a file has other content and --overwrite is not given.
    """
    table = Path(opt.vocab_path) / f"{opt.data_name}_vocab.json"
    new = {path: content for path, content in files.items() if not path.exists() or read_bytes(path) != content}
    other = [path for path in (words.other_vocab(vocab, table), *new) if path and path.exists()]
    if other and not opt.overwrite:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise InputError(f"{other[0]}{more}: there already, with other content; --overwrite replaces it")
    if words.other_vocab(vocab, table) or not table.exists():
        words.write_vocab(vocab, table, overwrite=True)
    for path, content in new.items():
        make_folder(path.parent)
        atomic_write(path, lambda file, content=content: file.write(content))
    print(f"{Path(opt.data_path) / opt.data_name}: {len(new)} files written, {len(files) - len(new)} unchanged")
    for path in other:
        split, _, ending = path.name.partition("_")
        for made in (path.with_name(f"{split}_{name}") for name in MADE_FROM.get(ending, ())):
            if made.exists():
                notes["files made from the replaced ones, which must be made again"].append(made)


def main(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("source", type=Path, help="Karpathy's dataset_*.json, COCO's captions_*.json, a table or a list of captions")
    of_table = "a table's columns, by titles or numbers from 1 (default: seen from titles and cells)"
    add("--columns", type=lambda text: text.split(","), metavar="IMAGE,CAPTION", help=of_table)
    add("--plain", action="store_true", help="replace entities of web pages (&quot;) and curly quotes in captions")
    add_data_flags(parser)
    add("--vocab_path", default="./vocab/", help="folder of {data_name}_vocab.json")
    add("--vocab", type=Path, metavar="FILE", help="vocabulary to use (default: of train and dev, else the one there)")
    add("--threshold", default=4, type=int, help="words seen less often become <unk>")
    add("--split", choices=SPLITS, help="the whole source is this split (default: its own splits, or --dev, --test)")
    add("--dev", default=0, type=whole(0), metavar="N", help="images drawn for dev; the rest is train")
    add("--test", default=0, type=whole(0), metavar="N", help="images drawn for test")
    add("--seed", default=0, type=int, help="fixes the draw")
    add("--restval", default="train", choices=["train", "drop"], help="where the images of COCO's restval go")
    add("--testall", action="store_true", help="call the test images testall (five folds), their first fifth test")
    add("--images", type=Path, metavar="DIR", help="folder of the images: check that each is there")
    add("--missing", default="stop", choices=["stop", "drop"], help="captions whose picture is not in --images")
    add("--fewer", default="drop", choices=["drop", "repeat"], help="what is done with fewer captions than five")
    add("--overwrite", action="store_true", help="replace files that are there with other content")
    opt = parser.parse_args(argv)
    if opt.columns and len(opt.columns) != 2:
        parser.error("--columns: needs two, as in --columns image,caption")
    with noted() as notes:
        pictures = read_source(opt.source, opt.restval, opt.columns, notes)
        pictures = clean(pictures, notes, words.plain if opt.plain else words.mended)
        if opt.images:
            pictures = only_there(pictures, opt.images, opt.missing == "drop", notes)
        splits = assign_splits(with_five(pictures, opt.fewer == "repeat", notes), opt)
        vocab = choose_vocab(splits, opt)
        write_files(contents(splits, vocab, Path(opt.data_path) / opt.data_name), vocab, opt, notes)


if __name__ == "__main__":
    run(main)
