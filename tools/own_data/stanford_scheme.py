"""Dependency trees: spaCy's scheme rewritten to Stanford's, and trees as the pairs of {split}_caps.json.

Heads are numbers of words from 1, heads[i] that of word i + 1; 0 marks a root. docs/data.md has examples.
"""

BE = {"be", "is", "are", "was", "were", "am", "been", "being", "'s", "'re", "'m"}
PREPOSITIONS = {"prep", "agent", "dative"}  # spaCy's labels of 'in', of the passive's 'by', of 'to' somebody
OBJECTS = {"pobj", "pcomp"}
PREDICATES = {"attr", "acomp"}


def to_stanford(words, heads, labels):
    """The heads of spaCy's tree (English models, ClearNLP labels) in Stanford's basic dependencies.

    words, heads, labels: n items each. Three things differ in structure, and are rewritten in this order:
    prepositions depend on their objects (case), forms of 'be' on their predicates (cop), and all parts
    of a conjunction on its first. Returns n heads; words keep their places.
    """
    tree = Tree(heads, labels)
    for word in tree.deepest_first():
        lower_preposition(tree, word)
    for word in tree.deepest_first():
        if words[word - 1].lower() in BE:
            lower_copula(tree, word)
    flatten_conjunctions(tree)
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
        while self.heads[word]:
            word, depth = self.heads[word], depth + 1
        return depth

    def deepest_first(self):
        return sorted(range(1, len(self.heads)), key=self.depth, reverse=True)

    def swap(self, upper, lower, label):
        """Put `lower` where its head `upper` stands, with all else that hung there; `upper` goes below it."""
        for i, head in enumerate(self.heads):
            if i and head == upper:
                self.heads[i] = lower
        self.heads[lower], self.labels[lower] = self.heads[upper], self.labels[upper]
        self.heads[upper], self.labels[upper] = lower, label


def lower_preposition(tree, word):
    """in -> hat becomes hat -> in. Without an object of its own ('out of the house') it takes that of the next."""
    objects = tree.below(word, OBJECTS)
    if not objects and tree.labels[word] in PREPOSITIONS:
        objects = [i for i in tree.below(word, PREPOSITIONS) if i > word]
    if objects:
        tree.swap(word, objects[0], "case")


def lower_copula(tree, word):
    """is -> happy becomes happy -> is; so does is -> (in the) street. 'There is a dog' stays as it is."""
    if tree.labels[word] in ("aux", "auxpass") or tree.below(word, {"expl"}):
        return
    predicates = tree.below(word, PREDICATES) or [i for i in tree.below(word, PREPOSITIONS) if i > word]
    if predicates:
        tree.swap(word, predicates[0], "cop")


def flatten_conjunctions(tree):
    """a -> b -> c becomes a -> b, a -> c; the comma or 'and' that stood between b and c follows."""
    for word in range(1, len(tree.heads)):
        while tree.labels[word] == "conj" and tree.labels[tree.heads[word]] == "conj":
            before = tree.heads[word]
            for i in tree.below(before, {"cc", "punct"}):
                if before < i < word:
                    tree.heads[i] = tree.heads[before]
            tree.heads[word] = tree.heads[before]


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
