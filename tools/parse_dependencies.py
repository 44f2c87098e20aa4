"""Parse captions: {split}_caps.txt -> {split}_caps.json, the word pairs that train.py --is_sparse joins.

    python tools/parse_dependencies.py --data_path data --data_name mine_precomp
    python tools/parse_dependencies.py --data_name mine_precomp --parser corenlp --url http://localhost:9000

The parser gets the words that the word ids stand for, in the captions' own spelling. Parsed captions are kept in
parts beside the output until it is complete: after an interruption the same command continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import json
import shutil

from tqdm import tqdm

from files.text import read_captions, read_dependencies
from files.writing import atomic_write
from runtime.commandline import Parser, whole
from tools.own_data.parsers import CoreNLP, Spacy, dependencies
from tools.own_data.shared import add_data_flags, add_split_flags, parts_folder, splits_to_make

PARSERS = {
    "spacy": lambda opt: Spacy(opt.spacy_model),
    "corenlp": lambda opt: CoreNLP(opt.url.rstrip("/"), opt.timeout),
}


def parse_split(folder, split, parser, opt):
    """Write one split's {split}_caps.json, taking up the parts of an interrupted run. Returns a line of report."""
    source, target = folder / f"{split}_caps.txt", folder / f"{split}_caps.json"
    captions, done = read_captions(source), []
    places = [f"{source}, line {number}" for number in range(1, len(captions) + 1)]
    parts = parts_folder(target, [parser.name, opt.part, captions])
    for start in tqdm(range(0, len(captions), opt.part), desc=split, unit=" parts", disable=None):
        path, part = parts / f"{start:08}.json", slice(start, start + opt.part)
        if not path.exists():
            write_json(path, [*dependencies(parser, captions[part], places[part])])
        done += read_dependencies(path)
    write_json(target, done)
    shutil.rmtree(parts, ignore_errors=True)
    return f"{target}: dependencies of {len(done)} captions, made by {parser.name}"


def write_json(path, content):
    text = json.dumps(content, separators=(",", ":"))
    atomic_write(path, lambda file: file.write(text.encode()))


def main(argv=None):
    flags = Parser(description=__doc__)
    add_data_flags(flags)
    add_split_flags(flags, "caps.txt", "parse")
    add = flags.add_argument
    add("--parser", default="spacy", choices=PARSERS, help="what parses")
    add("--spacy_model", metavar="NAME", help="spaCy's model, a package or folder (default: any installed English one)")
    add("--url", default="http://localhost:9000", help="the CoreNLP server")
    add("--timeout", default=120.0, type=float, metavar="SECONDS", help="for the server's answer on 100 captions")
    add("--part", default=500, type=whole(), metavar="N", help="captions that an interruption may cost")
    opt = flags.parse_args(argv)
    if not opt.url.startswith(("http://", "https://")):
        flags.error(f"--url: {opt.url!r} does not begin with http://")
    folder, todo = splits_to_make(opt, "caps.txt", ["caps.json"], read_captions, read_dependencies)
    parser = PARSERS[opt.parser](opt) if todo else None
    for split in todo:
        print(parse_split(folder, split, parser, opt))


if __name__ == "__main__":
    run(main)
