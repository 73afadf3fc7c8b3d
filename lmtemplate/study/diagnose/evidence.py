"""Run directory, corpus, weights -> what is known of a run beyond its curves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.generate import columns, generate_batch
from lmtemplate.record import Ints, last_lines
from lmtemplate.study.diagnose.artifacts import Artifacts, Model, RunCorpus, open_artifacts
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.ngrams import (
    frequencies,
    longest_copy,
    ngram_losses,
    repeated_share,
    shared_share,
    window_hashes,
)
from lmtemplate.study.diagnose.probes import (
    AT_ONCE,
    change_from_later_tokens,
    look_at_outputs,
    measure_losses,
    still_tensors,
)
from lmtemplate.study.run_files import read_settings, read_summary

TRAINING_TOKENS = 5_000_000  # at most this many training tokens are counted
VALIDATION_TOKENS = 500_000  # and this many validation tokens
WINDOW_TOKENS, WINDOW_BYTES = 32, 120  # a window has at least as many of both
LONGEST_WINDOW = 4096  # tokens, whatever an index says of their bytes
SAMPLE_TOKENS = 100  # length of a sample, or two windows if that is more
ALL_SAMPLES_TOKENS = 1000  # all samples together
FEWEST_SAMPLES = 4
PROMPT_TOKENS = 16
PROBED_TOKENS = 4096  # of each split, whose loss is measured anew
TEMPERATURE = 0.8


def _from_files(run: Path) -> dict[str, Any]:
    """What summary, config and record say; the record is newer where a run still goes on."""
    settings, summary = read_settings(run), read_summary(run)
    last = next(iter(last_lines(run, metric_names.TOKENS, 1)), {})
    planned = summary.get("max_steps") or settings.get("trainer.max_steps")
    tokens = (summary.get("tokens"), last.get(metric_names.TOKENS))
    passes = (summary.get("passes"), last.get(metric_names.EPOCH))
    return {
        "max_steps": planned if planned and planned > 0 else None,
        "warmup_steps": settings.get("model.schedule.init_args.warmup_steps"),
        "optimizer": str(settings.get("model.optimizer.class_path") or "").split(".")[-1] or None,
        "parameters": summary.get("parameters"),
        "tokens": max((int(value) for value in tokens if value is not None), default=None),
        "passes": max((value for value in passes if value is not None), default=None),
        "settings": settings,
    }


def window_length(bytes_per_token: float) -> int:
    """Tokens of a window: the smallest power of two with WINDOW_TOKENS and WINDOW_BYTES.

    Counting bytes excludes chance: 32 letters repeat in any book, 32 words do not.
    """
    length = WINDOW_TOKENS
    while length * bytes_per_token < WINDOW_BYTES and length < LONGEST_WINDOW:
        length *= 2
    return length


def _from_corpus(corpus: RunCorpus, training: Ints) -> dict[str, Any]:
    held_out, size = corpus.validation_tokens(VALIDATION_TOKENS), corpus.vocab_size
    unigram, bigram = ngram_losses(training, held_out, size)
    own = float(-np.log(frequencies(training, size)[training]).mean())
    known = {"vocab_size": size, "unigram_loss": unigram, "bigram_loss": bigram}
    known["train_unigram_loss"], length = own, window_length(corpus.bytes_per_token)
    if min(len(training), len(held_out)) >= length:
        windows = np.sort(window_hashes(training, length))
        known["repeated_share"] = repeated_share(windows)
        known["overlap_share"] = shared_share(window_hashes(held_out, length), windows)
    return known


def _prompts(training: Ints, eot_id: int, samples: int) -> Iterator[list[int]]:
    """In turn: an end-of-text token alone, and one with the beginning of a training document."""
    starts = np.flatnonzero(training[:-PROMPT_TOKENS] == eot_id) + 1
    starts = np.concatenate([np.zeros(1, dtype=np.int64), starts])
    for number in range(samples):
        start = starts[number * len(starts) // samples]
        beginning = training[start : start + PROMPT_TOKENS].tolist()
        yield [eot_id] if number % 2 == 0 else [eot_id, *beginning]


def write_samples(model: Model, training: Ints, tokens: int) -> list[Ints]:
    """Samples of `tokens` ids each, without their prompts; the same at each call."""
    samples = max(FEWEST_SAMPLES, ALL_SAMPLES_TOKENS // tokens)
    prompts = list(_prompts(training, model.tokenizer.eot_id, samples))
    seeds = range(samples)
    rows = generate_batch(model.net, prompts, tokens, temperature=TEMPERATURE, seeds=seeds)
    return [np.array(ids, dtype=np.int64) for ids in columns(rows, samples)]


def _from_weights(model: Model, corpus: RunCorpus | None) -> dict[str, Any]:
    """What has become of the weights, and what the net does with text of the run."""
    net = model.net
    known: dict[str, Any] = {"checkpoint_step": model.step, "vocab_size": net.vocab_size}
    known["tensors"] = sum(p.requires_grad for p in net.parameters())
    known["still_tensors"] = still_tensors(net, model.before) if model.before else None
    if corpus is None:
        return known
    device, sequences = next(net.parameters()).device, max(4, PROBED_TOKENS // net.block_size)
    for split, loss, error in (
        ("train", "train_measured", "train_error"),
        ("val", "val_measured", "val_error"),
    ):
        parts = (part.to(device) for part in corpus.batch(split, net.block_size, sequences))
        inputs, targets, among = parts
        found = measure_losses(net, inputs, targets, int(among))
        known |= {loss: found.loss, error: found.error}
    change, largest = change_from_later_tokens(net, inputs[:AT_ONCE])
    known |= {"shift": found.shift, "shift_loss": found.shift_loss}
    known["ahead"] = change / max(10.0, largest)
    known["is_random"], known["is_probability"] = look_at_outputs(net, inputs[:AT_ONCE])
    return known


def facts_of(artifacts: Artifacts) -> Facts:
    """What is known from these files; None where the corpus or the weights are gone.

    Only a sample of a large corpus is read (TRAINING_TOKENS, VALIDATION_TOKENS), so the repeated,
    overlapping and copied amounts are lower bounds.
    """
    known, corpus, model = _from_files(artifacts.run), artifacts.corpus, artifacts.model
    if model is not None:
        known["max_steps"] = known["max_steps"] or model.planned_steps
        known["parameters"] = known["parameters"] or model.net.parameter_count()
        known |= _from_weights(model, corpus)
    if corpus is not None:
        training = corpus.training_tokens(TRAINING_TOKENS)
        known |= _from_corpus(corpus, training)
        if model is not None:
            tokens = max(SAMPLE_TOKENS, 2 * window_length(corpus.bytes_per_token))
            copied = longest_copy(write_samples(model, training, tokens), training)
            known["copied_tokens"] = len(copied)
            known["copied_text"] = model.tokenizer.decode(copied.tolist())
    return Facts(**known)


def gather(run: Path, *, deep: bool = True, allow: Sequence[str] = ()) -> Facts:
    """What is known of a run; what its best checkpoint does only if `deep`."""
    return facts_of(open_artifacts(run, deep=deep, allow=allow))
