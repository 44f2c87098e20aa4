"""Dependency trees: spaCy's scheme rewritten to Stanford's, and trees as the pairs of {split}_caps.json.

Heads are numbers of words from 1, heads[i] that of word i + 1; 0 marks a root. docs/data.md has examples.
"""

BE = {"be", "is", "are", "was", "were", "am", "been", "being", "'s", "'re", "'m"}
PREPOSITIONS = {"prep", "agent", "dative"}  # spaCy's labels of 'in', of the passive's 'by', of 'to' somebody
OBJECTS = {"pobj", "pcomp"}
PREDICATES = {"attr", "acomp"}


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


# ---- from heads to the file ----


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
