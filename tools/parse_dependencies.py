"""Parse captions: {split}_caps.txt -> {split}_caps.json, the word pairs that train.py --is_sparse joins.

    python tools/parse_dependencies.py --data_path data --data_name mine_precomp
    python tools/parse_dependencies.py --data_name mine_precomp --parser corenlp --url http://localhost:9000

The parser gets the words that the word ids stand for, in the captions' own spelling.  Parsed captions are kept in
parts beside the output until it is complete: after an interruption the same command continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import hashlib
import json
import shutil

from tqdm import tqdm

from files.errors import InputError
from files.text import data_folder, read_captions, read_dependencies, read_json
from files.writing import atomic_write, make_folder
from runtime.commandline import Parser, whole
from tools.own_data.parsers import CoreNLP, Spacy, sentences_of
from tools.own_data.splits import SPLITS, splits_asked, unfinished
from tools.own_data.stanford_scheme import is_tree, pairs_of

BATCH = 100  # captions handed to a parser at once
PARSERS = {"spacy": lambda opt: Spacy(opt.spacy_model), "corenlp": lambda opt: CoreNLP(opt.url, opt.timeout)}


# ---- a split


def parse_split(folder, split, parser, opt):
    """Write one split's {split}_caps.json, taking up the parts of an interrupted run.  Returns a line of report."""
    source, target = folder / f"{split}_caps.txt", folder / f"{split}_caps.json"
    captions = read_captions(source)
    parts = folder / f".{split}_caps.parts"
    make_folder(parts)
    starts = range(0, len(captions), opt.part)
    done, reused = [], 0
    with tqdm(total=len(captions), desc=split, unit=" captions", disable=None) as bar:
        for start in starts:
            some = captions[start : start + opt.part]
            key = hashlib.sha256("\n".join([parser.name, *some]).encode()).hexdigest()
            path = parts / f"{start:08}.json"
            pairs = read_part(path, key)
            if pairs is None:
                pairs = parse_part(some, parser, source, start, bar)
                write_json(path, {"of": key, "pairs": pairs})
            else:
                reused += len(some)
                bar.update(len(some))
            done += pairs
    write_json(target, done)
    shutil.rmtree(parts, ignore_errors=True)
    again = f", {reused} of them in an earlier run" if reused else ""
    return f"{target}: dependencies of {len(done)} captions, made by {parser.name}{again}"


def read_part(path, key):
    """The pairs of a part that was written for the same captions and parser, or None."""
    try:
        content = read_json(path)
        return content["pairs"] if content["of"] == key else None
    except (InputError, KeyError, TypeError):
        return None


def parse_part(captions, parser, source, start, bar):
    pairs = []
    for first in range(0, len(captions), BATCH):
        batch = [sentences_of(caption) for caption in captions[first : first + BATCH]]
        for sentences, heads in zip(batch, parser(batch), strict=True):
            line = start + len(pairs) + 1
            if len(heads) != sum(map(len, sentences)) or not is_tree(heads):
                raise InputError(f"{source}, line {line}: {parser.name} gives no tree over the words: {heads}")
            pairs.append(pairs_of(heads))
            bar.update()
    return pairs


def write_json(path, content):
    text = json.dumps(content, separators=(",", ":"))
    atomic_write(path, lambda file: file.write(text.encode()))


def has_dependencies(folder, split):
    """Whether {split}_caps.json is there and covers the captions; InputError where it has another number."""
    target, source = folder / f"{split}_caps.json", folder / f"{split}_caps.txt"
    if not target.exists():
        return False
    there, captions = len(read_dependencies(target)), len(read_captions(source))
    if there != captions:
        raise InputError(
            f"{target}: dependencies of {there} captions, but {source.name} has {captions}; --overwrite makes them anew"
        )
    return True


# ---- command line


def dependency_options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data_path", default="./data/", help="folder that holds the data sets (default: ./data/)")
    add("--data_name", required=True, help="data set: the folder's name under --data_path")
    add("--split", nargs="+", choices=SPLITS, help="splits to parse (default: each that has a {split}_caps.txt)")
    add("--parser", default="spacy", choices=PARSERS, help="what parses (default: spacy)")
    add("--spacy_model", metavar="NAME", help="spaCy's model, a package or folder (default: any installed English one)")
    add("--url", default="http://localhost:9000", help="the CoreNLP server (default: http://localhost:9000)")
    add(
        "--timeout",
        default=120.0,
        type=float,
        metavar="SECONDS",
        help="how long the CoreNLP server may take for 100 captions (default: 120)",
    )
    add("--part", default=2000, type=whole(), metavar="N", help="captions that an interruption may cost")
    add("--overwrite", action="store_true", help="parse again where {split}_caps.json is there already")
    opt = parser.parse_args(argv)
    opt.url = opt.url.rstrip("/")
    if not opt.url.startswith(("http://", "https://")):
        parser.error(f"--url: {opt.url!r} does not begin with http://")
    return opt


def main(argv=None):
    opt = dependency_options(argv)
    folder = data_folder(opt.data_path, opt.data_name)
    splits = splits_asked(
        opt, folder, "caps.txt", "no captions here; tools/prepare_captions.py writes {split}_caps.txt"
    )
    todo = unfinished(opt, folder, splits, has_dependencies, "caps.json", "parses")
    parser = PARSERS[opt.parser](opt) if todo else None
    for split in todo:
        print(parse_split(folder, split, parser, opt))


if __name__ == "__main__":
    run(main)
