"""`grammar` or `grammar:N` -> N documents of simple English whose entropy is known exactly.

A sentence comes from a rule whose gaps are filled by independent choices, and no two derivations
give the same sentence. So its entropy is that of the rule plus, on average, those of the choices
(tests/data/formats/grammar_entropy.py). A model with a lower loss has memorised. Planted are:

- agreement: "you are late.", "the cat near the dogs is late.", where the nearest noun misleads;
- analogies: king is to queen as man to woman and prince to princess, by age, home, he and she;
- idioms: "once upon a time there was ...", "the quick brown fox jumps ...";
- rare words: "we saw the owl." with a frequency of 1 / rank^2;
- unseen sentences: "the dog sat on the rug." never occurs, though dogs sit and rugs are sat on.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from random import Random

from lmtemplate.data.corpus import Corpus, Document
from lmtemplate.errors import DataError

DOCUMENTS = 20_000  # unless the user says how many

Choice = dict[str, float]  # phrase -> probability
Template = tuple[int, str, tuple[Choice, ...]]  # weight, form, what fills its places

CONTINUE = 0.75  # probability that another sentence follows

ADJECTIVES = ("happy", "hungry", "tired", "quiet", "lost", "ready", "late", "warm")
ANIMALS = ("cat", "dog", "horse", "cow", "bird", "duck", "goat", "pig")
PLACES = ("mat", "rug", "bench", "hill", "road", "table", "bed", "roof")
SEAT = "the {} sat on the {}."
UNSEEN = (("dog", "rug"), ("cat", "road"), ("horse", "hill"), ("cow", "mat"), ("duck", "bench"))
OLD, YOUNG = ("old", "wise", "grey"), ("young", "small", "loud")
NOBLE, COMMON = ("palace", "castle", "tower"), ("village", "cottage", "valley")
PEOPLE = (
    ("king", "he", OLD, NOBLE),
    ("queen", "she", OLD, NOBLE),
    ("prince", "he", YOUNG, NOBLE),
    ("princess", "she", YOUNG, NOBLE),
    ("man", "he", OLD, COMMON),
    ("woman", "she", OLD, COMMON),
    ("boy", "he", YOUNG, COMMON),
    ("girl", "she", YOUNG, COMMON),
)
RARE = """fox owl hare swan wolf bear deer toad moth crow lark seal crab newt wasp lynx otter heron
    stoat finch viper bison ibis quail"""


def _choice(phrases: Iterable[str], power: int = 0) -> Choice:
    """Phrases with probabilities that fall as 1 / rank^power."""
    weights = {phrase: 1 / rank**power for rank, phrase in enumerate(phrases, start=1)}
    return {phrase: weight / sum(weights.values()) for phrase, weight in weights.items()}


def rules() -> list[Template]:
    """All rules; their weights add up to 100."""
    plurals = tuple(animal + "s" for animal in ANIMALS)
    one, many, either = _choice(ANIMALS), _choice(plurals), _choice(ANIMALS + plurals)
    adjective, people = _choice(ADJECTIVES), _choice(person for person, *_ in PEOPLE)
    # Animal and place are one choice, not two, so that the unseen pairs can be omitted.
    seats = _choice(SEAT.format(*pair) for pair in product(ANIMALS, PLACES) if pair not in UNSEEN)
    rare = _choice(RARE.split(), power=2)
    found: list[Template] = [
        (8, "{} are {}.", (_choice(["you", "we", "they"]), adjective)),
        (12, "the {} is {}.", (one, adjective)),
        (12, "the {} are {}.", (many, adjective)),
        (4, "the {} near the {} is {}.", (one, either, adjective)),
        (4, "the {} near the {} are {}.", (many, either, adjective)),
        (14, "{}", (seats,)),
        (10, "we saw the {}.", (rare,)),
        (3, "once upon a time there was a {}.", (people,)),
        (1, "the quick brown fox jumps over the lazy dog.", ()),
    ]
    for person, pronoun, ages, homes in PEOPLE:
        form = f"the {person} is {{}} and {pronoun} lives in the {{}}."
        found.append((4, form, (_choice(ages), _choice(homes))))
    return found


class Grammar:
    """That many documents of the language; each iteration yields the same ones.

    A document has one sentence per line. After each sentence another one follows with probability
    CONTINUE, so the mean is 1 / (1 - CONTINUE) sentences. Document i depends only on seed and i.
    """

    def __init__(self, seed: int = 0, documents: int = DOCUMENTS) -> None:
        self.seed, self.documents = seed, documents
        self.probabilities = dict[str, float]()  # of every sentence
        for weight, form, choices in rules():
            for phrases in product(*choices):
                shares = (choice[phrase] for choice, phrase in zip(choices, phrases, strict=True))
                self.probabilities[form.format(*phrases)] = weight / 100 * math.prod(shares)

    def __len__(self) -> int:
        return self.documents

    def __iter__(self) -> Iterator[str]:
        sentences = list(self.probabilities)
        # No bound for the last sentence: rounding in the sums must not leave a draw without one.
        bounds = list(accumulate(self.probabilities.values()))[:-1]
        for index in range(self.documents):
            # Of random.Random only random() is promised to stay the same across Python versions.
            draw = Random(f"{self.seed}:{index}").random
            document = [sentences[bisect_right(bounds, draw())]]
            while draw() < CONTINUE:
                document.append(sentences[bisect_right(bounds, draw())])
            yield "\n".join(document)


def open_grammar(source: str, seed: int) -> Corpus:
    """Raises DataError for "grammar:N" without a number."""
    _, colon, count = source.partition(":")
    if colon and not (count.isdecimal() and 1 < float(count) < 2**31):
        raise DataError(f"{source!r}: give 2 documents or more, as in grammar:5000")
    grammar = Grammar(seed, int(count or DOCUMENTS))

    def walk() -> Iterator[Document]:
        return (Document("grammar", [text]) for text in grammar)

    signature = f"{len(grammar)} documents of seed {seed}"
    return Corpus(walk, signature, documents=len(grammar))
