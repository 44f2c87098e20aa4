"""Captions of small scenes with their dependency trees, as Stanford's parser would give them.

A caption is written with brackets: in '(the star) is (above a circle) (.)' the last word of a phrase that stands in no
inner bracket governs the phrase's other words and the inner phrases. So prepositions depend on their noun, copulas on
their predicate, and 'and' on the first of its parts.
"""

import re
from dataclasses import dataclass

import numpy as np

from tools.demo_data.scenes import Scene

PLACES = {"left": "to the left (of {})", "right": "to the right (of {})", "above": "above {}", "below": "below {}"}
PAIRS = ("({a}) is ({place})", "{a} ({place})", "there is {a} ({place})", "({place}) is ({a})")
LISTS = ("{}", "there are {}", "a picture (of {})", "we see ({})")


@dataclass(frozen=True)
class Caption:
    """``depends``: [governor, dependent] pairs of word positions from 1, [0, root] first; ``facts``: what it
    claims about the scene, (relation, a, b) with numbers of things."""

    text: str
    depends: list[list[int]]
    facts: list[tuple[str, int, int]]


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


@dataclass
class Speaker:
    """Says things about one scene; all methods but the first two return (caption with brackets, facts)."""

    scene: Scene
    rng: np.random.Generator

    def pick(self, choices):
        return choices[self.rng.integers(len(choices))]

    def noun(self, k: int, articles=("a", "the")) -> str:
        """Thing k as a noun phrase that fits no other thing of the scene."""
        thing, article = self.scene.things[k], self.pick(articles)
        size = thing.size if thing.size != "medium" and self.rng.uniform() < 0.3 else ""
        words = f"{size} {thing.colour} {thing.shape}".split()
        return " ".join(["an" if article == "a" and words[0][0] in "aeiou" else article, *words])

    def relate(self, a: int, *others: int):
        """Thing a in relation to one or more others."""
        facts = [(self.scene.relation(a, other), a, other) for other in others]
        first, *more = (PLACES[relation].format(self.noun(other)) for relation, _, other in facts)
        place = first + "".join(f" (and) ({other})" for other in more)
        form = PAIRS[0] if more else self.pick(PAIRS)
        return form.format(a=self.noun(a), place=place), facts

    def listing(self):
        """All things in any order: no relation."""
        first, *middle, last = (self.noun(k, ["a"]) for k in self.rng.permutation(len(self.scene.things)))
        text = first + "".join(f" (,) ({noun})" for noun in middle) + f" (and) ({last})"
        return self.pick(LISTS).format(text), []

    def relations(self):
        """Of three things, if there are such relations, else of two."""
        pairs = self.scene.clear_pairs()
        return self.relate(*self.pick([(a, b, c) for a, b in pairs for d, c in pairs if a == d and b != c] or pairs))


def describe(scene: Scene, pair_rng: np.random.Generator, rng: np.random.Generator) -> list[Caption]:
    """Five different captions: two of one relation (in twin scenes: of the exchanged things, so they are false of
    the twin), one of two relations, two lists of things.

    The first two are worded by ``pair_rng``: given equal generators, twins get the same two sentences but for left and
    right, above and below. ``rng`` words the rest and puts the five in order.
    """
    same, free = Speaker(scene, pair_rng), Speaker(scene, rng)
    a, b = scene.swapped or same.pick(scene.clear_pairs())
    first, second = (lambda: same.relate(a, b)), (lambda: same.relate(b, a))
    captions: dict[str, Caption] = {}
    for count, kind in enumerate((first, second, free.listing, free.relations, free.listing), 1):
        while len(captions) < count:
            brackets, facts = kind()
            text, depends = parse(f"{brackets} (.)")
            captions.setdefault(text, Caption(text, depends, facts))
    return [list(captions.values())[k] for k in rng.permutation(len(captions))]
