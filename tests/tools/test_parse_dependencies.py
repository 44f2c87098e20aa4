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
from tools.own_data.parsers import BE, is_tree, join_sentences, pairs_of, to_stanford
from vocab import tokenize

# Each word as word/label/head in spaCy's scheme/head in Stanford's.
EXAMPLES = {
    "preposition": "man/nsubj/4/4 in/prep/1/3 hat/pobj/2/1 runs/ROOT/0/0 with/prep/4/7 a/det/7/7 dog/pobj/5/4",
    "preposition below preposition": "man/nsubj/2/2 looks/ROOT/0/0 out/prep/2/6 of/prep/3/6 a/det/6/6 window/pobj/4/2",
    "nested": "in/prep/8/2 front/pobj/1/8 of/prep/2/5 a/det/5/5 house/pobj/3/2 a/det/7/7 dog/nsubj/8/8 sleeps/ROOT/0/0",
    "preposition with a clause": "he/nsubj/2/2 wins/ROOT/0/0 by/prep/2/4 running/pcomp/3/2",
    "prepositions joined": "runs/ROOT/0/0 on/prep/1/3 sand/pobj/2/1 and/cc/2/3 in/conj/2/6 water/pobj/5/3",
    "preposition without object": "he/nsubj/2/2 walks/ROOT/0/0 in/prep/2/2",
    "agent, passive auxiliary": "ball/nsubjpass/3/3 is/auxpass/3/3 thrown/ROOT/0/0 by/agent/3/5 boys/pobj/4/3",
    "adjective": "The/det/2/2 dog/nsubj/4/5 has/aux/4/5 been/ROOT/0/5 happy/acomp/4/0 ./punct/4/5",
    "noun": "she/nsubj/2/4 is/ROOT/0/4 a/det/4/4 clown/attr/2/0",
    "place": "dog/nsubj/2/5 is/ROOT/0/5 on/prep/2/5 the/det/5/5 grass/pobj/3/0 today/npadvmod/2/5",
    "relative clause": "man/ROOT/0/0 who/nsubj/3/4 is/relcl/1/4 old/acomp/3/1 and/cc/3/4 sleeps/conj/3/4",
    "existential": "There/expl/2/2 is/ROOT/0/0 a/det/4/4 dog/attr/2/2 in/prep/4/6 snow/pobj/5/4",
    "conjunction": "men/nsubj/7/7 ,/punct/1/1 women/conj/1/1 ,/punct/3/1 and/cc/3/1 dogs/conj/3/1 run/ROOT/0/0",
    "marker": "he/nsubj/2/2 waits/ROOT/0/0 while/mark/5/5 they/nsubj/5/5 try/advcl/2/2 to/aux/7/7 swim/xcomp/5/5",
    "one word": "dog/ROOT/0/0",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewriting(name):
    words, labels, heads, expected = zip(*(word.rsplit("/", 3) for word in EXAMPLES[name].split()))
    assert to_stanford(words, list(map(int, heads)), labels) == list(map(int, expected))


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
    assert pairs_of([3, 1, 0]) == [[0, 3], [3, 1], [1, 2]]  # the root's first


@pytest.mark.parametrize("heads", [[1], [0, 0], [2, 1, 0], [0, 3], [0, -1], [0, 2]])
def test_what_is_no_tree(heads):
    assert not is_tree(heads)


# ---- the tool, with a parser that chains the words


CAPTIONS = ["A dog runs.", "Two cats. They sleep!", "İstanbul at night", "one", "It's red.", "Man (left) waves", "b c"]


class Chain:
    """Every word depends on the one before it. Breaks off when it is asked for `limit` captions more."""

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
    """The parsers made so far."""
    made = []
    monkeypatch.setitem(parse_dependencies.PARSERS, "spacy", lambda opt: made.append(Chain(opt)) or made[-1])
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
    # in the caption's own spelling
    assert chain[0].seen[:2] == [(("A", "dog", "runs", "."),), (("Two", "cats", "."), ("They", "sleep", "!"))]


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_run_goes_on_unless_the_captions_changed(folder, chain, monkeypatch, changed):
    monkeypatch.setattr(Chain, "limit", 5)
    with pytest.raises(KeyboardInterrupt):
        parse(folder, "--part", "2")
    assert not (folder / "dev_caps.json").exists()
    captions = [*CAPTIONS[:5], "many more words in this one", CAPTIONS[6]] if changed else CAPTIONS
    (folder / "dev_caps.txt").write_text("\n".join(captions), encoding="utf-8")
    monkeypatch.setattr(Chain, "limit", 7 if changed else 3)  # two parts of two are there
    assert [len(one) for one in parse(folder, "--part", "2")] == [len(tokenize(text)) for text in captions]
    assert sorted(path.name for path in folder.iterdir()) == ["dev_caps.json", "dev_caps.txt"]


def test_a_complete_file_stays_unless_overwritten(folder, chain, capsys):
    ready = [[[0, 1]]] * len(CAPTIONS)
    (folder / "dev_caps.json").write_text(json.dumps(ready))
    assert parse(folder) == ready and "complete" in capsys.readouterr().out and not chain
    assert parse(folder, "--overwrite") != ready


@pytest.mark.parametrize("there, what", [("[[[0, 1]]]", "dev_caps.json: .*--overwrite"), (None, "line 1: chain")])
def test_what_does_not_fit_is_told(folder, chain, monkeypatch, there, what):
    """A file for another number of captions; and what is no tree."""
    monkeypatch.setattr(Chain, "__call__", lambda self, captions: iter([[1] * 4] * len(captions)))
    if there:
        (folder / "dev_caps.json").write_text(there)
    with pytest.raises(InputError, match=what):
        parse(folder)
    (folder / "dev_caps.txt").unlink()
    with pytest.raises(InputError, match="prepare_captions"):
        parse(folder)


# ---- parsers


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
    monkeypatch.setitem(sys.modules, "spacy", both)
    assert "en_small" in parsers.Spacy().name
    for name in ("en_blank", "en_nothing"):
        with pytest.raises(InputError, match=f"{name}: pip install"):
            parse(folder, "--spacy_model", name)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match="pip install spacy"):
        parse(folder)


@pytest.fixture(scope="module")
def spacy():
    pytest.importorskip("spacy")
    try:
        return parsers.Spacy()
    except InputError as error:
        pytest.skip(str(error))


def test_spacy(spacy):
    captions = ["A man in a red hat is happy.", "The dog runs. It barks."]
    first, second = spacy(list(map(parsers.sentences_of, captions)))
    assert first == [2, 8, 6, 6, 6, 2, 8, 0, 8]
    assert second == [2, 3, 0, 3, 6, 3, 6]


def test_spacy_agrees_with_the_reference(spacy):
    source = shared("real/f30k_precomp/test_caps.txt")
    captions = read_captions(source)[:300]
    ours = map(pairs_of, spacy(list(map(parsers.sentences_of, captions))))
    both = list(zip(ours, read_dependencies(source.with_suffix(".json"))))
    same = sum(pair in reference for pairs, reference in both for pair in pairs)
    assert same / sum(len(reference) for _, reference in both) > 0.98  # other versions of the model differ a little


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
        pairs = [{"dep": "dep", "governor": head, "dependent": i} for i, head in heads.items()]
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


def each_sentence(**changes):
    return lambda answer: {"sentences": [{**one, **changes} for one in answer["sentences"]]}


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda answer: b"<html>", "CoreNLP server"),
        (lambda answer: {"error": 1}, "CoreNLP server"),
        (lambda answer: {"sentences": answer["sentences"][1:]}, "sentences came back"),
        (each_sentence(tokens=[]), r"no parse of .*A dog runs"),
        (each_sentence(basicDependencies=[]), "no parse of"),
    ],
)
def test_corenlp_that_answers_wrongly(folder, server, monkeypatch, damage, told):
    monkeypatch.setattr(Server, "damage", staticmethod(damage))
    with pytest.raises(InputError, match=told):
        parse(folder, *server)


def test_no_corenlp(folder):
    with pytest.raises(InputError, match="StanfordCoreNLPServer"):
        parse(folder, "--parser", "corenlp", "--url", "http://127.0.0.1:9")
