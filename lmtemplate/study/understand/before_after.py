"""A run's snapshots -> what the same prompts lead to in each: from a guess to the next word.

Top tokens, the probability of whole words, entropy, a sample; neighbours of words and analogies in
the table of embeddings. The snapshots are the untrained net, every milestone, and the best one.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmtemplate.checkpoint.compatibility import build_net, load_net
from lmtemplate.checkpoint.files import read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.generate import encode_prompt
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.diagnose.artifacts import open_run_corpus
from lmtemplate.study.progress import pieces
from lmtemplate.study.understand.embedding import frequent_words, words_in
from lmtemplate.study.understand.one_step import Comparisons
from lmtemplate.study.understand.predictions import likeliest, softmax_of
from lmtemplate.study.understand.prompts import choose_prompts, prompts_in
from lmtemplate.study.understand.snapshots import continuation, snapshot_files

SAMPLE_LENGTH, HEAT, FIRST_SEED = 24, 0.8, 1337
FILM_TOKENS = 1_000_000  # of the training text, in which words are counted


@torch.no_grad()
def word_probability(
    net: LanguageModel, tokenizer: Tokenizer, prompt: str, word: str
) -> float | None:
    """That the text goes on with these characters: the product over the word's tokens.

    None where the tokens of the prompt are others when the word follows, or there are too many.
    """
    before, ids = encode_prompt(tokenizer, prompt), encode_prompt(tokenizer, prompt + word)
    known, most = len(before), net.block_size + 1
    if ids[:known] != before or not known < len(ids) <= most:
        return None
    logs = net(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[known - 1 :]
    return float(logs.gather(1, torch.tensor(ids[known:])[:, None]).sum().exp())


@torch.no_grad()
def reads(
    net: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    words: list[str],
    seed: int,
    compared: Comparisons,
) -> dict[str, Any]:
    """What a net makes of one prompt."""
    logits: Tensor = net(torch.tensor([encode_prompt(tokenizer, prompt)]))[0, -1]
    probabilities = softmax_of(logits)
    compared.hold("probabilities", probabilities, logits.softmax(-1))
    entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum()
    return {
        "top": [[tokenizer.decode([n]), probabilities[n].item()] for n in likeliest(probabilities)],
        "words": {word: word_probability(net, tokenizer, prompt, word) for word in words},
        "entropy": entropy.item(),
        "sample": continuation(net, tokenizer, prompt, SAMPLE_LENGTH, temperature=HEAT, seed=seed),
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
        says = "Nothing is said of embeddings: the net has no such table, or the text few words."
        return [*notes, says]
    per_word = sum(len(ids) for ids in tokenizer.encode([f" {w}" for w in words])) / len(words)
    notes.append(
        f"A word's vector is the mean of its tokens ({per_word:.2f} a word) in the table of "
        f"embeddings, less the mean of {len(words)} frequent words."
    )
    first, *_, last = ([row["rank"] for row in shot["analogies"]] for shot in shots)
    if not last:
        return [*notes, "The text has no four words of an analogy often enough."]
    notes.append(
        f"Of {len(last)} analogies {last.count(1)} come out first, {first.count(1)} in the first "
        f"snapshot; by chance one in {len(words) - 3} does."
    )
    if 2 * last.count(1) < len(last):
        notes.append(
            "Fewer than half of them come out: analogies need a text that says much of these "
            "words, and longer training."
        )
    return notes


def film_of(run: Path, given: str, allow: Sequence[str]) -> dict[str, Any]:
    """All numbers of a run's way from untrained to its best; of prompts that the model can read.

    Raises CheckpointError with fewer than two snapshots, ConfigError for a prompt that the model
    cannot read at once.
    """
    files, best = snapshot_files(run), resolve(run, "best")
    state, text, notes = read(best), "", list[str]()
    net, tokenizer = build_net(state, allow), parse_tokenizer(state["tokenizer"])
    try:
        text = tokenizer.decode(open_run_corpus(run).training_tokens(FILM_TOKENS).tolist())
    except UserError as error:
        notes.append(f"What follows in the training text is not known: {error}.")
    chosen = choose_prompts(text, given, state["config"])
    sizes = {prompt: len(encode_prompt(tokenizer, prompt)) for prompt in chosen}
    prompts = prompts_in(text, [one for one in chosen if sizes[one] <= net.block_size])
    if not prompts:
        shortest, most = min(sizes.values()), net.block_size
        raise ConfigError(f"--text has {shortest} tokens, and the model reads at most {most}")
    words = frequent_words(Counter(re.findall(r"\w+", text)))
    compared, rows = Comparisons(), list[dict[str, Any]]()
    for step, path in pieces([*files.items()], "snapshots"):
        load_net(net, read(path))
        looks = {
            prompt: reads(net, tokenizer, prompt, about["words"], FIRST_SEED + number, compared)
            for number, (prompt, about) in enumerate(prompts.items())
        }
        name = f"step {step:,}" if step else "untrained"
        name = f"best, {name}" if step == int(best.stem[5:]) else name
        known = words_in(net, tokenizer, words)
        rows.append({"name": name, "step": step, "prompts": looks, **known})
    return {
        "run": str(run),
        "notes": [*notes, *film_notes(net, tokenizer, words, rows)],
        "prompts": prompts,
        "snapshots": rows,
        **compared.result(),
    }
