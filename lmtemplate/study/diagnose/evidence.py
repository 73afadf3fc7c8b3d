"""Run directory, corpus, weights -> what is known of a run beyond its curves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmtemplate import metric_names
from lmtemplate.generate import generate_tokens
from lmtemplate.record import Ints, read_lines
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
    Measured,
    change_from_later_tokens,
    look_at_outputs,
    measure,
    still_tensors,
)
from lmtemplate.study.run_files import read_settings, read_summary

TRAINING_TOKENS = 5_000_000  # at most this many training tokens are counted
VALIDATION_TOKENS = 500_000  # and this many validation tokens
WINDOW_TOKENS, WINDOW_BYTES = 32, 120  # a window has at least as many of both
SAMPLE_TOKENS = 100  # length of a sample, or two windows if that is more
ALL_SAMPLES_TOKENS = 1000  # all samples together
FEWEST_SAMPLES = 4
PROMPT_TOKENS = 16
PROBED_TOKENS = 4096  # of each split, whose loss is measured anew
TEMPERATURE = 0.8


def _from_files(run: Path) -> Facts:
    """What summary, config and record say; the record is newer where a run still goes on."""
    settings, summary = read_settings(run), read_summary(run)
    rows = [line for line in read_lines(run) if metric_names.TOKENS in line]
    planned = summary.get("max_steps") or settings.get("trainer.max_steps")
    optimizer = (settings.get("model.optimizer.class_path") or "").rpartition(".")[2]
    tokens = [summary.get("tokens"), *(row[metric_names.TOKENS] for row in rows[-1:])]
    passes = [summary.get("passes"), *(row.get(metric_names.EPOCH) for row in rows[-1:])]
    return Facts(
        max_steps=planned if planned and planned > 0 else None,
        warmup_steps=settings.get("model.schedule.init_args.warmup_steps"),
        optimizer=optimizer or None,
        parameters=summary.get("parameters"),
        tokens=max((int(value) for value in tokens if value is not None), default=None),
        passes=max((value for value in passes if value is not None), default=None),
        settings=settings,
    )


def window_length(bytes_per_token: float) -> int:
    """Tokens of a window: the smallest power of two with WINDOW_TOKENS and WINDOW_BYTES.

    Counting bytes excludes chance: 32 letters repeat in any book, 32 words do not.
    """
    length = WINDOW_TOKENS
    while length * bytes_per_token < WINDOW_BYTES:
        length *= 2
    return length


def _from_corpus(facts: Facts, corpus: RunCorpus, training: Ints) -> Facts:
    held_out = corpus.validation_tokens(VALIDATION_TOKENS)
    unigram, bigram = ngram_losses(training, held_out, corpus.vocab_size)
    facts = replace(
        facts,
        vocab_size=corpus.vocab_size,
        unigram_loss=unigram,
        bigram_loss=bigram,
        train_unigram_loss=float(
            -np.log(frequencies(training, corpus.vocab_size)[training]).mean()
        ),
    )
    length = window_length(corpus.bytes_per_token)
    if min(len(training), len(held_out)) < length:
        return facts
    windows = np.sort(window_hashes(training, length))
    return replace(
        facts,
        repeated_share=repeated_share(windows),
        overlap_share=shared_share(window_hashes(held_out, length), windows),
    )


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
    prompts = enumerate(_prompts(training, model.tokenizer.eot_id, samples))
    drawn = (
        generate_tokens(model.net, prompt, tokens, temperature=TEMPERATURE, seed=number)
        for number, prompt in prompts
    )
    return [np.fromiter(ids, dtype=np.int64) for ids in drawn]


def _from_weights(facts: Facts, model: Model, corpus: RunCorpus | None) -> Facts:
    """What has become of the weights, and what the net does with text of the run."""
    net = model.net
    facts = replace(
        facts,
        checkpoint_step=model.step,
        tensors=sum(p.requires_grad for p in net.parameters()),
        still_tensors=still_tensors(net, model.before) if model.before else None,
    )
    if corpus is None:
        return facts
    device, sequences = next(net.parameters()).device, max(4, PROBED_TOKENS // net.block_size)
    found = dict[str, Measured]()
    for split in ("train", "val"):
        inputs, targets, among = (
            part.to(device) for part in corpus.batch(split, net.block_size, sequences)
        )
        found[split] = measure(net, inputs, targets, int(among))
    val, train = found["val"], found["train"]
    change, largest = change_from_later_tokens(net, inputs[:AT_ONCE])
    is_random, is_probability = look_at_outputs(net, inputs[:AT_ONCE])
    return replace(
        facts,
        ahead=change / max(10.0, largest),
        is_random=is_random,
        is_probability=is_probability,
        val_measured=val.loss,
        val_error=val.error,
        shift=val.shift,
        shift_loss=val.shift_loss,
        train_measured=train.loss,
        train_error=train.error,
    )


def facts_of(artifacts: Artifacts) -> Facts:
    """What is known from these files; None where the corpus or the weights are gone.

    Only a sample of a large corpus is read (TRAINING_TOKENS, VALIDATION_TOKENS), so the repeated,
    overlapping and copied amounts are lower bounds.
    """
    facts, corpus, model = _from_files(artifacts.run), artifacts.corpus, artifacts.model
    if model is not None:
        facts = replace(
            facts,
            max_steps=facts.max_steps or model.planned_steps,
            vocab_size=model.net.vocab_size,
            parameters=facts.parameters or model.net.parameter_count(),
        )
        facts = _from_weights(facts, model, corpus)
    if corpus is not None:
        training = corpus.training_tokens(TRAINING_TOKENS)
        facts = _from_corpus(facts, corpus, training)
        if model is not None:
            tokens = max(SAMPLE_TOKENS, 2 * window_length(corpus.bytes_per_token))
            copied = longest_copy(write_samples(model, training, tokens), training)
            text = model.tokenizer.decode(copied.tolist())
            facts = replace(facts, copied_tokens=len(copied), copied_text=text)
    return facts


def gather(run: Path, *, deep: bool = True, allow: Sequence[str] = ()) -> Facts:
    """What is known of a run; what its best checkpoint does only if `deep`."""
    return facts_of(open_artifacts(run, deep=deep, allow=allow))
