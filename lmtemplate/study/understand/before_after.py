"""A run's snapshots -> what the same prompts lead to in each: from a guess to the next word.

Top tokens, the probability of whole words, entropy, a sample; neighbours of words and analogies in
the table of embeddings. The snapshots are the untrained net, every milestone, and the best one.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmtemplate.checkpoint.compatibility import build_net, load_net
from lmtemplate.checkpoint.files import read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, UserError
from lmtemplate.generate import encode_prompt
from lmtemplate.models.base import LanguageModel
from lmtemplate.run_dir import folder_of
from lmtemplate.study.understand.continuation import continuation
from lmtemplate.study.understand.embedding import (
    NEAREST,
    WordVectors,
    frequent_words,
    known_analogies,
    table_of,
    watched_words,
)
from lmtemplate.study.understand.forward import softmax_of
from lmtemplate.study.understand.one_step import Comparisons
from lmtemplate.study.understand.prompts import choose_prompts, prompts_in, training_text

LIKELIEST = 5  # tokens that are shown
SAMPLE_LENGTH, HEAT, FIRST_SEED = 24, 0.8, 1337


class Snapshot(NamedTuple):
    """Weights that the run has kept."""

    name: str
    step: int
    path: Path


def snapshots_of(run: Path) -> list[Snapshot]:
    """All milestones, and the best checkpoint unless it is one of them, in their order.

    Raises CheckpointError where there are fewer than two.
    """
    best = resolve(run, "best")
    found = [*(folder_of(run) / "milestones").glob("step-*.ckpt"), best]
    paths = {int(p.stem[5:]): p for p in reversed(found) if p.stem[5:].isdecimal()}
    last = int(best.stem[5:])
    if len(paths) < 2:
        raise CheckpointError(
            f"{run} has one snapshot, and before and after need two; train with milestones "
            "(checkpoint.milestones, 12 unless set to null)"
        )
    names = {0: "untrained", last: f"best, step {last:,}"}
    return [Snapshot(names.get(n, f"step {n:,}"), n, path) for n, path in sorted(paths.items())]


@torch.no_grad()
def word_probability(
    net: LanguageModel, tokenizer: Tokenizer, prompt: str, word: str
) -> float | None:
    """That the text goes on with these characters: the product over the word's tokens.

    None where the tokens of the prompt are others when the word follows, or there are too many.
    """
    before, all_ids = encode_prompt(tokenizer, prompt), encode_prompt(tokenizer, prompt + word)
    too_long = len(all_ids) > net.block_size + 1
    if all_ids[: len(before)] != before or len(all_ids) == len(before) or too_long:
        return None
    logs = net(torch.tensor([all_ids[:-1]]))[0].log_softmax(-1)
    places = range(len(before) - 1, len(all_ids) - 1)
    return float(torch.stack([logs[n, all_ids[n + 1]] for n in places]).sum().exp())


@torch.no_grad()
def look_at_prompt(
    net: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    words: list[str],
    seed: int,
    compared: Comparisons,
) -> dict[str, Any]:
    """What a net makes of one prompt."""
    start = encode_prompt(tokenizer, prompt)
    logits: Tensor = net(torch.tensor([start]))[0, -1]
    probabilities = softmax_of(logits)
    compared.hold("probabilities", probabilities, logits.softmax(-1))
    likeliest = probabilities.topk(min(LIKELIEST, len(probabilities)))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum()
    return {
        "top": [[tokenizer.decode([token]), share] for token, share in pairs],
        "words": {word: word_probability(net, tokenizer, prompt, word) for word in words},
        "entropy": entropy.item(),
        "sample": continuation(net, tokenizer, prompt, SAMPLE_LENGTH, temperature=HEAT, seed=seed),
    }


def words_in(net: LanguageModel, tokenizer: Tokenizer, words: list[str]) -> dict[str, Any]:
    """Neighbours and analogies in a net's table of embeddings; neither where it has none."""
    if table_of(net) is None or len(words) < 2 * NEAREST:
        return {"neighbours": {}, "analogies": []}
    vectors = WordVectors(net, tokenizer, words)
    return {
        "neighbours": {word: vectors.neighbours(word) for word in watched_words(words)},
        "analogies": [vectors.analogy(*four) for four in known_analogies(words)],
    }


def film_notes(
    net: LanguageModel, tokenizer: Tokenizer, words: list[str], shots: list[Any]
) -> list[str]:
    """What to know of these numbers, in sentences."""
    notes = [f"Samples are drawn at a temperature of {HEAT}, each prompt with a seed of its own."]
    alike = math.log(net.vocab_size) - 1e-4
    if all(look["entropy"] > alike for look in shots[0]["prompts"].values()):
        notes.append(f"Untrained, all {net.vocab_size:,} tokens are equally likely to this net.")
    if not shots[-1]["neighbours"]:
        return [
            *notes,
            "Nothing is said of embeddings: the net has no such table, or the text few words.",
        ]
    sizes = [len(ids) for ids in tokenizer.encode([f" {word}" for word in words])]
    notes.append(
        f"A word's vector is the mean of its tokens ({sum(sizes) / len(sizes):.2f} a word) in the "
        f"table of embeddings, less the mean of {len(words)} frequent words."
    )
    ranks = [[row["rank"] for row in shot["analogies"]] for shot in (shots[0], shots[-1])]
    if not ranks[0]:
        return [*notes, "The text has no four words of an analogy often enough."]
    before, after = (sum(rank == 1 for rank in found) for found in ranks)
    count, among = len(ranks[0]), len(words) - 3
    notes.append(
        f"Of {count} analogies {after} come out first, {before} in the first snapshot; by chance "
        f"one in {among} does."
    )
    if 2 * after < count:
        notes.append(
            "So analogies do not work here: they need a text that says much of these words, and "
            "longer training."
        )
    return notes


def film_of(run: Path, given: str, allow: Sequence[str]) -> dict[str, Any]:
    """All numbers of a run's way from untrained to its best; of prompts that the model can read.

    Raises CheckpointError with fewer than two snapshots, ConfigError for a prompt that the model
    cannot read at once.
    """
    shots, state = snapshots_of(run), read(resolve(run, "best"))
    net, tokenizer = build_net(state, allow), parse_tokenizer(state["tokenizer"])
    missing = list[str]()
    try:
        text = training_text(run, tokenizer)
    except UserError as error:
        text, missing = "", [f"What follows in the training text is not known: {error}."]
    chosen = choose_prompts(text, given, state["config"])
    sizes = {prompt: len(encode_prompt(tokenizer, prompt)) for prompt in chosen}
    fitting = [prompt for prompt, size in sizes.items() if size <= net.block_size]
    if not fitting:
        shortest, most = min(sizes.values()), net.block_size
        raise ConfigError(f"--text has {shortest} tokens, and the model reads at most {most}")
    prompts = prompts_in(text, fitting)
    words = frequent_words(Counter(re.findall(r"\w+", text)))
    compared, rows = Comparisons(), list[dict[str, Any]]()
    for shot in shots:
        load_net(net, read(shot.path))
        looks = {
            prompt: look_at_prompt(
                net, tokenizer, prompt, about["words"], FIRST_SEED + number, compared
            )
            for number, (prompt, about) in enumerate(prompts.items())
        }
        row = {"name": shot.name, "step": shot.step, "prompts": looks}
        rows.append({**row, **words_in(net, tokenizer, words)})
    return {
        "run": str(run),
        "notes": [*missing, *film_notes(net, tokenizer, words, rows)],
        "prompts": prompts,
        "snapshots": rows,
        **compared.result(),
    }
