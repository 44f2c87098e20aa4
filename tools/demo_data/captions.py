"""Captions of small scenes with their dependency trees, as Stanford's parser would give them.

A caption is written with brackets: in '(the star) lies (above a circle) (.)' the last word of a phrase that stands in
no inner bracket governs the phrase's other words and the inner phrases. So prepositions depend on their noun, copulas
on their predicate, and 'and' on the first of its parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tools.demo_data.scenes import OPPOSITE, SIZES, Scene

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
VERBS = ("is", "sits", "lies", "stands", "floats", "hangs", "is placed", "is seen")
PICTURES = ("picture", "drawing", "photo")
PAIRS = (  # thing a, thing b and where a is, seen from b
    "({a}) is ({place})",
    "{a} ({place})",
    "there is {a} ({place})",
    "({a}) {verb} ({place})",
    "{picture} {a} ({place}))",
    "{b} (with {a} ({place}))",
    "({place}) is ({a})",
    "({b}) has ({a}) ({place})",
)


@dataclass(frozen=True)
class Caption:
    """``depends``: [governor, dependent] pairs of word positions from 1, [0, root] first; ``facts``: what it
    claims about the scene, [relation, a, b(, c)] with numbers of things."""

    text: str
    depends: list[list[int]]
    facts: list[tuple]


def parse(brackets: str) -> tuple[str, list[list[int]]]:
    """A caption with brackets -> the caption, its dependencies."""
    words, heads = [], {}

    def phrase(tokens) -> int:
        """Reads up to the end of a phrase; returns the position of its head."""
        own, inner = [], []
        for token in tokens:
            if token == ")":
                break
            if token == "(":
                inner.append(phrase(tokens))
            else:
                words.append(token)
                own.append(len(words))
        *others, head = own
        heads.update(dict.fromkeys(others + inner, head))
        return head

    root = phrase(iter(re.findall(r"[()]|[^\s()]+", brackets)))
    return " ".join(words), [[0, root], *([heads[k], k] for k in sorted(heads))]


class Speaker:
    """Says things about one scene; the methods from ``pair`` on return (caption with brackets, facts)."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def chance(self, share: float) -> bool:
        return self.rng.uniform() < share

    def other(self, word: str) -> str:
        return self.pick(*SYNONYMS.get(word, (word,)))

    def noun(self, k: int, article: str | None = None) -> str:
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
        return " ".join(["an" if article == "a" and words[0][0] in "aeiou" else article, *words])

    def where(self, relation: str, noun: str) -> str:
        """The relation to a noun: 'to the left (of a star)', 'above a star'."""
        if relation in ("above", "below"):
            return f"{self.other(relation)} {noun}"
        return f"{self.pick('to the ', 'to the ', 'on the ', '')}{relation} (of {noun})"

    def beside(self, relation: str) -> str:
        """The relation to what was named before: 'on its left', 'above it'."""
        if relation in ("above", "below"):
            return f"{self.other(relation)} it"
        return f"{self.pick('on', 'to')} its {relation}"

    def pair(self, a: int, b: int):
        """Thing a in relation to thing b, in one of many wordings."""
        relation = self.scene.relation(a, b)
        noun_a, noun_b, form = self.noun(a), self.noun(b), self.rng.integers(len(PAIRS))
        if form in (2, 5, 7):
            noun_a = self.noun(a, "a")
        verb = self.pick(*VERBS[1:]) if form == 3 else "is"
        place = self.beside(relation) if form in (5, 7) else self.where(relation, noun_b)
        picture = f"a {self.pick(*PICTURES)} ({self.pick('of', 'with')}" if form == 4 else ""
        text = PAIRS[form].format(a=noun_a, b=noun_b, verb=verb, place=place, picture=picture)
        return text, [(relation, a, b)]

    def double(self, a: int, b: int, c: int):
        """Thing a in relation to two others."""
        first, second = self.scene.relation(a, b), self.scene.relation(a, c)
        places = f"{self.where(first, self.noun(b))} (and) ({self.where(second, self.noun(c))})"
        return f"({self.noun(a, 'the')}) is ({places})", [(first, a, b), (second, a, c)]

    def between(self, a: int, b: int, c: int):
        middle = f"between {self.noun(b)} (and) ({self.noun(c)})"
        noun = self.noun(a)
        text = f"({noun}) {self.pick(*VERBS)} ({middle})" if self.chance(0.5) else f"{noun} ({middle})"
        return text, [("between", a, b, c)]

    def listing(self):
        """All things in any order: no relation."""
        nouns = [self.noun(int(k), "a") for k in self.rng.permutation(len(self.scene.things))]
        text = nouns[0] + "".join(f" (,) ({noun})" for noun in nouns[1:-1]) + f" (and) ({nouns[-1]})"
        form = self.rng.integers(4)
        if form == 1:
            text = f"there are {text}"
        elif form == 2:
            text = f"a {self.pick(*PICTURES)} (of {text})"
        elif form == 3:
            text = f"{self.pick('you can see', 'we see')} ({text})"
        return text, []

    def compare(self, a: int, b: int):
        """Sizes, no relation in space."""
        difference = _larger(self.scene, a, b)
        if difference == 0:
            phrase, fact = "is as big (as", ("equal", a, b)
        elif difference > 0:
            phrase, fact = f"is {self.pick('bigger', 'larger')} (than", ("bigger", a, b)
        else:
            phrase, fact = "is smaller (than", ("bigger", b, a)
        noun_b = self.noun(b)
        return f"({self.noun(a)}) {phrase} {noun_b})", [fact]

    def near(self, a: int, b: int):
        """Side by side, without saying on which side: true of both twins."""
        place = self.pick(f"beside {self.noun(b)}", f"next (to {self.noun(b)})")
        noun = self.noun(a)
        text = f"{noun} ({place})" if self.chance(0.5) else f"({noun}) {self.pick(*VERBS)} ({place})"
        return text, [("beside", a, b)]

    def neutral(self):
        """What is true of both twins."""
        level = [p for p in self.scene.clear_pairs() if self.scene.relation(*p) in ("left", "right")]
        if level and self.chance(0.4):
            return self.near(*self.pick(*level))
        return self.compare(*(int(k) for k in self.rng.permutation(len(self.scene.things))[:2]))

    def involved(self):
        """Of three things where there are such relations, else of two."""
        pairs, betweens = self.scene.clear_pairs(), self.scene.betweens()
        if betweens and self.chance(0.6):
            return self.between(*self.pick(*betweens))
        doubles = [(a, b, c) for a, b in pairs for d, c in pairs if a == d and b != c]
        if doubles and self.chance(0.6):
            return self.double(*self.pick(*doubles))
        return self.pair(*self.pick(*pairs))


def describe(scene: Scene, pair_rng: np.random.Generator, rng: np.random.Generator) -> list[Caption]:
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
        (free, free.involved),
        (free, lambda: free.pick(free.neutral, free.involved)()),
    )
    captions: dict[str, Caption] = {}
    for count, (speaker, kind) in enumerate(kinds, 1):
        while len(captions) < count:
            brackets, facts = kind()
            text, depends = parse(brackets + (" (.)" if speaker.chance(0.6) else ""))
            captions.setdefault(text, Caption(text, depends, facts))
    return [list(captions.values())[k] for k in rng.permutation(len(captions))]


def fact_holds(scene: Scene, fact: tuple) -> bool:
    """Whether a caption's claim (see Caption.facts) is true of a scene with the same things."""
    kind, a, b, *c = fact
    if kind in OPPOSITE:
        return scene.relation(a, b) == kind
    if kind == "between":
        return (a, b, *c) in scene.betweens()
    if kind == "beside":
        return scene.relation(a, b) in ("left", "right")
    return _larger(scene, a, b) > 0 if kind == "bigger" else _larger(scene, a, b) == 0


def _larger(scene: Scene, a: int, b: int) -> int:
    """Above 0 if thing a is the larger one, 0 if both have one size."""
    first, second = (list(SIZES).index(scene.things[k].size) for k in (a, b))
    return first - second
