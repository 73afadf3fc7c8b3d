"""A run's training text -> prompts that show what can be learned from it, and what follows them."""

import re
from collections import Counter
from itertools import pairwise
from typing import Any

# Prompt -> words to be compared: agreement, with a misleading noun between; idioms.
LESSONS: dict[str, tuple[str, ...]] = {
    "You": (" are", " is"),
    "The cat": (" sat",),
    "The cat near the dogs": (" is", " are"),
    "Once upon a time": (" there",),
    "The quick brown fox": (" jumps",),
}
OWN_PROMPTS = 3  # pairs of words of the run's own text, which one word nearly always follows
SURE, OFTEN = 0.8, 20  # share of that word, and times that the pair occurs, at least
FOLLOWERS = 4  # that are shown
CONTINUES = r"(\s?\w+|\s?[^\w\s]|\n)"  # what can follow a prompt: a word, a mark, a new line


def what_follows(text: str, prompt: str, most: int) -> tuple[int, list[tuple[str, float]]]:
    """How often a prompt occurs, and what follows it most often, with its share."""
    begins = "" if prompt[:1].isspace() else r"(?<!\w)"
    found = re.findall(rf"{begins}{re.escape(prompt)}(?!\w){CONTINUES}", text)
    return len(found), [(n, c / len(found)) for n, c in Counter(found).most_common(most)]


def as_in(text: str, prompt: str) -> str:
    """The prompt as the text has it most often: in lower case, behind a space.

    Its tokens are others behind a space, where a line rarely begins with it. Of a prompt that the
    text never has, the longest beginning decides that it has.
    """

    def counts(variant: str) -> list[int]:
        words = variant.split()
        parts = (variant[0] + " ".join(words[:n]) for n in range(len(words), 0, -1))
        return [len(re.findall(rf"{re.escape(part)}(?!\w)", f"\n{text}")) for part in parts]

    variants = [before + case for case in (prompt, prompt.lower()) for before in "\n "]
    return max(variants, key=counts).removeprefix("\n")


def own_prompts(text: str) -> list[str]:
    """The most frequent pairs of words that one word nearly always follows."""
    words = re.findall(r"\w+|[^\w\s]|\n", text)
    pairs = Counter(pairwise(words))
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    found, used = list[str](), set[str]()
    for three, count in triples.most_common(2000):
        sure = count >= OFTEN and count >= SURE * pairs[three[:2]]
        if sure and all(map(str.isalpha, three)) and not used & {*three}:
            found.append(as_in(text, " ".join(three[:2])))
            used |= {*three}
    return found[:OWN_PROMPTS]


def choose_prompts(text: str, given: str, config: dict[str, Any]) -> list[str]:
    """The given one alone; else the run's own, the lesson's, and some of the text's idioms."""
    if given:
        return [given]
    match config.get("samples"):
        case {"init_args": {"prompts": [*listed]}}:
            own = [one for one in listed if isinstance(one, str) and one.strip()]
        case _:
            own = []
    return [*dict.fromkeys([*own, *(as_in(text, one) for one in LESSONS), *own_prompts(text)])]


def prompts_in(text: str, prompts: list[str]) -> dict[str, Any]:
    """Prompt -> how often the text has it, what follows there, and the words to be compared.

    How often is None without a text. The words are the lesson's, what follows the whole prompt, and
    what follows its last word alone.
    """
    lessons, found = {prompt.lower(): words for prompt, words in LESSONS.items()}, {}
    for prompt in prompts:
        count, follow = what_follows(text, prompt, FOLLOWERS)
        _, after_last = what_follows(text, (prompt.split() or [prompt])[-1], FOLLOWERS - 1)
        lesson = lessons.get(prompt.strip().lower(), ())
        words = dict.fromkeys([*lesson, *(word for word, _ in (*follow, *after_last))])
        found[prompt] = {"count": count if text else None, "in_text": follow, "words": [*words]}
    return found
