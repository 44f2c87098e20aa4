"""Captions of small scenes with their dependency trees, as Stanford's parser would give them.

A caption is built as a tree of words (basic dependencies: prepositions depend on their noun as
'case', copulas on their predicate, 'and' on the first of its parts), so words and heads come out of one traversal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.demo_data.scenes import OPPOSITE, Scene

# other words for the same thing; the first is the usual one
SYNONYMS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "cross": ("cross", "cross", "plus"),
    "purple": ("purple", "purple", "violet"),
    "small": ("small", "small", "tiny", "little"),
    "big": ("big", "big", "large", "huge"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under", "beneath"),
}
VERBS = ("sits", "lies", "stands", "floats", "hangs", "is placed", "is seen")
WORDS_FOR_PICTURE = ("picture", "drawing", "photo")


@dataclass
class Node:
    """A word with its dependents, those before it and those after it, in order."""

    word: str
    before: list[Node] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class ParsedCaption:
    """``words``; ``depends``: [governor, dependent] pairs of 1-based word positions, [0, root] first;
    ``facts``: what it claims about the scene, [relation, a, b(, c)] with numbers of things."""

    words: tuple[str, ...]
    depends: tuple[tuple[int, int], ...]
    facts: tuple[tuple, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def node(words: str, *after: Node, before: tuple[Node, ...] = ()) -> Node:
    """The last of ``words`` governs the others, which stand before it, after the nodes ``before``."""
    *first, last = words.split()
    return Node(last, [*before, *map(Node, first)], list(after))


def flatten(root: Node) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Words in order, and [governor, dependent] pairs: [0, root], then the rest by dependent."""
    words, heads = [], {}

    def visit(tree: Node) -> int:
        left = [visit(child) for child in tree.before]
        words.append(tree.word)
        own = len(words)
        for child in left + [visit(child) for child in tree.after]:
            heads[child] = own
        return own

    top = visit(root)
    return tuple(words), ((0, top), *((heads[d], d) for d in sorted(heads)))


def case(preposition: str, noun: Node) -> Node:
    """The noun with a preposition (or any words) in front, depending on it."""
    return Node(noun.word, [*map(Node, preposition.split()), *noun.before], noun.after)


class Speaker:
    """Says things about one scene; every method returns (tree, facts)."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def chance(self, share: float) -> bool:
        return self.rng.uniform() < share

    def other(self, word: str) -> str:
        return self.pick(*SYNONYMS.get(word, (word,)))

    def sentence(self, kind) -> ParsedCaption:
        """What ``kind`` says, with or without a full stop."""
        tree, facts = kind()
        if self.chance(0.6):
            tree.after.append(Node("."))
        return ParsedCaption(*flatten(tree), tuple(facts))

    def noun(self, k: int, article: str | None = None) -> Node:
        """Thing k as a noun phrase that fits no other thing of the scene."""
        thing, rest = self.scene.things[k], [t for j, t in enumerate(self.scene.things) if j != k]
        shape, colour = self.other(thing.shape), self.other(thing.colour)
        words = [self.other(thing.size)] if thing.size != "medium" and self.chance(0.3) else []
        if self.chance(0.1) and all(t.colour != thing.colour for t in rest):
            words += [colour, self.pick("shape", "object")]
        elif self.chance(0.1) and all(t.shape != thing.shape for t in rest):
            words += [shape]
        else:
            words += [colour, shape]
        article = article or self.pick("a", "the")
        if article == "a" and words[0][0] in "aeiou":
            article = "an"
        return node(" ".join([article, *words]))

    def where(self, relation: str, noun: Node) -> Node:
        """The relation to a noun, as a dependent of the thing's noun."""
        if relation in ("above", "below"):
            return case(self.other(relation), noun)
        return node(self.pick("to the ", "to the ", "on the ", "") + relation, case("of", noun))

    def beside(self, relation: str) -> Node:
        """The relation to what was named before: 'on its left', 'above it'."""
        if relation in ("above", "below"):
            return node(self.other(relation) + " it")
        return node(f"{self.pick('on', 'to')} its {relation}")

    def pair(self, a: int, b: int):
        """Thing a in relation to thing b, in one of many wordings."""
        relation = self.scene.relation(a, b)
        noun_a, noun_b = self.noun(a), self.noun(b)
        form = self.rng.integers(8)
        if form == 0:
            tree = node("is", self.where(relation, noun_b), before=(noun_a,))
        elif form == 1:
            noun_a.after.append(self.where(relation, noun_b))
            tree = noun_a
        elif form == 2:
            tree = case("there is", self.noun(a, "a"))
            tree.after.append(self.where(relation, noun_b))
        elif form == 3:
            tree = node(self.pick(*VERBS), self.where(relation, noun_b), before=(noun_a,))
        elif form == 4:
            noun_a.after.append(self.where(relation, noun_b))
            tree = node(f"a {self.pick(*WORDS_FOR_PICTURE)}", case(self.pick("of", "with"), noun_a))
        elif form == 5:
            noun_a = case("with", self.noun(a, "a"))
            noun_a.after.append(self.beside(relation))
            noun_b.after.append(noun_a)
            tree = noun_b
        elif form == 6:
            tree = node("is", noun_a, before=(self.where(relation, noun_b),))
        else:
            tree = node("has", self.noun(a, "a"), self.beside(relation), before=(noun_b,))
        return tree, [(relation, a, b)]

    def double(self, a: int, b: int, c: int):
        """Thing a in relation to two others."""
        first, second = self.scene.relation(a, b), self.scene.relation(a, c)
        place = self.where(first, self.noun(b))
        place.after += [Node("and"), self.where(second, self.noun(c))]
        return node("is", place, before=(self.noun(a, "the"),)), [(first, a, b), (second, a, c)]

    def between(self, a: int, b: int, c: int):
        middle = case("between", self.noun(b))
        middle.after += [Node("and"), self.noun(c)]
        noun_a = self.noun(a)
        if self.chance(0.5):
            tree = node(self.pick("is", *VERBS), middle, before=(noun_a,))
        else:
            noun_a.after.append(middle)
            tree = noun_a
        return tree, [("between", a, b, c)]

    def listing(self):
        """All things in any order: no relation."""
        order = [int(k) for k in self.rng.permutation(len(self.scene.things))]
        first, *rest = [self.noun(k, "a") for k in order]
        for k, noun in enumerate(rest):
            first.after += [node("and" if k == len(rest) - 1 else ","), noun]
        form = self.rng.integers(4)
        if form == 1:
            first = case("there are", first)
        elif form == 2:
            first = node(f"a {self.pick(*WORDS_FOR_PICTURE)}", case("of", first))
        elif form == 3:
            first = node(self.pick("you can see", "we see"), first)
        return first, []

    def compare(self, a: int, b: int):
        """Sizes, no relation in space."""
        order = ("small", "medium", "big")
        difference = order.index(self.scene.things[a].size) - order.index(self.scene.things[b].size)
        if difference == 0:
            phrase, link, fact = "is as big", "as", ("equal", a, b)
        elif difference > 0:
            phrase, link, fact = f"is {self.pick('bigger', 'larger')}", "than", ("bigger", a, b)
        else:
            phrase, link, fact = "is smaller", "than", ("bigger", b, a)
        return node(phrase, case(link, self.noun(b)), before=(self.noun(a),)), [fact]

    def near(self, a: int, b: int):
        """Side by side, without saying on which side: true of both twins."""
        place = self.pick(case("beside", self.noun(b)), node("next", case("to", self.noun(b))))
        noun_a = self.noun(a)
        if self.chance(0.5):
            noun_a.after.append(place)
            return noun_a, [("beside", a, b)]
        return node(self.pick("is", *VERBS), place, before=(noun_a,)), [("beside", a, b)]


def _neutral(speaker: Speaker):
    scene = speaker.scene
    level = [p for p in scene.clear_pairs() if scene.relation(*p) in ("left", "right")]
    if level and speaker.chance(0.4):
        return speaker.near(*speaker.pick(*level))
    return speaker.compare(*(int(k) for k in speaker.rng.permutation(len(scene.things))[:2]))


def _involved(speaker: Speaker):
    scene, pairs = speaker.scene, speaker.scene.clear_pairs()
    betweens = scene.betweens()
    if betweens and speaker.chance(0.6):
        return speaker.between(*speaker.pick(*betweens))
    doubles = [(a, b, c) for a, b in pairs for d, c in pairs if a == d and b != c]
    if doubles and speaker.chance(0.6):
        return speaker.double(*speaker.pick(*doubles))
    return speaker.pair(*speaker.pick(*pairs))


def describe(scene: Scene, pair_rng: np.random.Generator, rng: np.random.Generator) -> list[ParsedCaption]:
    """Five different captions: two of one relation (in twin scenes: of the exchanged things, so they
    are false of the twin), one of any relation or two at once, one list of things, one of either kind.

    The first two are worded by ``pair_rng``: given equal generators, twins get the same two sentences
    but for left and right, above and below. ``rng`` words the rest and puts the five in order.
    """
    same, free = Speaker(scene, pair_rng), Speaker(scene, rng)
    a, b = scene.swapped or same.pick(*scene.clear_pairs())
    kinds = (
        (same, lambda: same.pair(a, b)),
        (same, lambda: same.pair(b, a)),
        (free, free.listing),
        (free, lambda: _involved(free)),
        (free, lambda: free.pick(_neutral, _involved)(free)),
    )
    captions: list[ParsedCaption] = []
    for speaker, kind in kinds:
        caption = speaker.sentence(kind)
        while caption.words in [c.words for c in captions]:
            caption = speaker.sentence(kind)
        captions.append(caption)
    return [captions[k] for k in rng.permutation(len(captions))]


def fact_holds(scene: Scene, fact: tuple) -> bool:
    """Whether a caption's claim (see ParsedCaption.facts) is true of a scene with the same things."""
    kind, a, b, *c = fact
    if kind in OPPOSITE:
        return scene.relation(a, b) == kind
    if kind == "between":
        return (a, b, *c) in scene.betweens()
    if kind == "beside":
        return scene.relation(a, b) in ("left", "right")
    order = ("small", "medium", "big")
    first, second = order.index(scene.things[a].size), order.index(scene.things[b].size)
    return first > second if kind == "bigger" else first == second
