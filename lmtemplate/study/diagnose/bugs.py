"""Batches, steps and weights of a run -> bugs. While there is one of them, no curve can be read."""

import math
from collections.abc import Iterator

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.settings import number_of
from lmtemplate.study.diagnose.trend import Trend, spread

PREDICTED = {0: "its input", 2: "the token after the next one", -1: "the token before its input"}


def of_batches(trend: Trend, facts: Facts) -> Iterator[tuple[str, str]]:
    """Targets that do not follow, padding, the same sequences, as the log tells."""
    names = (vitals.NEXT, vitals.UNCOUNTED, vitals.LONGEST_RUN, vitals.TWICE)
    logged = [trend.logged(name) for name in names]
    following, ignored, run, twice = (x.mean() if len(x) else math.nan for x in logged)
    texts, read = len(np.unique(trend.logged(vitals.UNIGRAM))), len(trend.logged(vitals.UNIGRAM))
    is_cut = bool(facts.settings.get("data.max_train_blocks"))  # to memorise few sequences
    if following < limit.FOLLOWING:
        yield (
            "wrong_targets",
            f"only {following:.0%} of the targets are the token after their input",
        )
    if ignored > limit.WITHOUT_LOSS:
        yield "padding", f"{ignored:.0%} of the targets carry no loss: so much computing is lost"
    if run > limit.ONE_TOKEN:
        yield "padding", f"on average {run:.0%} of a sequence is one token, again and again"
    if twice >= limit.REPEATED and not is_cut:
        yield "repeated_data", f"{twice:.0%} of the sequences of a batch stand in it more than once"
    if read >= limit.ROWS and texts < limit.REPEATED * read and not is_cut:
        yield "repeated_data", f"{read} batches that were looked at hold {texts} different texts"


def of_tokens(trend: Trend, facts: Facts) -> Iterator[tuple[str, str]]:
    """Tokens that are not as frequent as in the prepared text, always or in parts of the run."""
    logged, expected = trend.logged(vitals.UNIGRAM), facts.train_unigram_loss
    if len(logged) < limit.ROWS or facts.settings.get("data.max_train_blocks"):
        return

    def differs(one: float, other: float, errors: float, deviation: float, rows: int) -> bool:
        return abs(one - other) > max(limit.OTHER_TOKENS, errors * deviation / math.sqrt(rows))

    parts = np.array_split(logged, limit.RUN_PARTS)
    levels = [float(np.median(part)) for part in parts]  # a few bad batches do not move them
    level, text = float(np.median(logged)), "by the frequencies of the whole text, the targets cost"
    if expected is not None and differs(
        level, expected, limit.OTHER_TOKENS_ERRORS, spread(logged), len(logged)
    ):
        yield "other_tokens", f"{text} {level:.2f} nats, and {expected:.2f} in that text"
    within = spread(np.concatenate([part - np.median(part) for part in parts]))
    if differs(max(levels), min(levels), limit.PARTS_ERRORS, within, len(parts[-1])):
        costs = f"{min(levels):.2f} nats in one part of the run and {max(levels):.2f} in another"
        yield "training_text_changes", f"{text} {costs}: the text is read in some order"


def of_net(trend: Trend, facts: Facts) -> Iterator[tuple[str, str]]:
    """What the net does: it reads ahead, predicts another token, or returns probabilities."""
    if facts.ahead is not None and facts.ahead > limit.AHEAD:
        says = f"changing later tokens changes earlier logits, by {facts.ahead:.0%} of the largest"
        yield "reads_ahead", f"{says}: the net sees what it has to predict"
    if facts.is_probability:
        says = "the outputs of the net are at least 0 and add up to 1"
        yield "double_softmax", f"{says}: no logits, probabilities"
    if facts.shift_loss is not None and facts.shift not in (1, None):
        known = min(facts.val_measured or math.inf, facts.unigram_loss or math.inf)
        # with tied embeddings, a young net finds its own input likely
        if facts.shift_loss < (known - limit.SHIFTED if facts.shift == 2 else known / 2):
            says = f"the net predicts {PREDICTED[facts.shift or 0]} (loss {facts.shift_loss:.2f}"
            next_one = f"better than the next token ({facts.val_measured:.2f})"
            yield "wrong_targets", f"{says} nats) {next_one}"
    if facts.is_random:
        says = "in eval mode the net gives other logits each time"
        yield "reload_differs", f"{says}: dropout, or else it draws"
    lowest = min(trend.val_loss, default=math.inf)
    if facts.ahead is None and lowest < limit.FAR_BELOW * (facts.bigram_loss or 1.0):
        against = f"; token pairs give {facts.bigram_loss:.2f}" if facts.bigram_loss else ""
        says = f"validation reaches {lowest:.3f} nats, which hardly any text allows{against}"
        yield "too_good", says


def of_steps(trend: Trend, facts: Facts) -> Iterator[Finding]:
    """Weights that do not move, or move by gradients that pile up."""
    record, updates = trend.record, trend.updates
    still, step = facts.still_tensors or (), facts.checkpoint_step or 0
    known = int((~np.isnan(updates)).any(0).sum())  # rows that say how far weights moved
    standing = {
        "the learning rate is 0": (record.learning_rate == 0, len(record)),
        "no weight moves": ((updates < limit.STILL).all(0), known),
    }
    for what, (rows, among) in standing.items():
        if among and rows.sum() > limit.STANDING * among:
            first = record.steps[np.flatnonzero(rows)[0]]
            says = f"{what} in {rows.sum() / among:.0%} of the run, first at step {first:,}."
            yield conclude("standstill", says, first, trend.last_step)
    if still and step >= limit.FIRST_MOVES:
        names = ", ".join(still[:3]) + (" ..." if len(still) > 3 else "")
        says = f"{len(still)} of {facts.tensors} tensors have not moved by step {step:,}: {names}."
        name = "standstill" if len(still) == facts.tensors else "parameters_not_trained"
        yield conclude(name, says, 0, step)
    if len(left := trend.logged(vitals.LEFT)):
        says = f"in {len(left)} steps the gradients of the one before were there as new ones came."
        yield conclude("gradients_pile_up", says, 0, trend.last_step)


def of_checkpoint(trend: Trend, facts: Facts) -> Iterator[Finding]:
    """A checkpoint that has other losses than the run had when it was saved."""
    step, record = facts.checkpoint_step or 0, trend.record
    val, train = facts.val_measured, facts.train_measured
    recorded = trend.val_loss[trend.val_steps == step]
    if val is None or train is None:
        return
    most = max(limit.DIFFERS, limit.ERRORS * (facts.val_error or 0.0))
    if len(recorded) and abs(val - recorded[0]) > most:
        says = (
            f"at step {step:,} the run recorded a validation loss of {recorded[0]:.2f} nats; its "
            f"checkpoint, loaded anew, has {val:.2f} on the validation text."
        )
        yield conclude("reload_differs", says, step, step)
    place = int(np.searchsorted(record.steps, step))
    near = record.train_loss[max(0, place - 2) : place + 3]
    dropout = number_of(facts.settings.get("model.net.init_args.dropout"))
    usual = limit.TRAINING_DIFFERS + (0.0 if math.isnan(dropout) else dropout)
    room = max(usual, limit.ERRORS * (facts.train_error or 0.0))
    # text that was read before is partly known by heart: by what validation lies above it
    known = max(0.0, val - train)
    # a row is a mean: while the loss falls, it begins higher than that and ends lower
    course = np.array([trend.start, *record.train_loss])
    course = np.append(course, min(course[-1], 2 * course[-1] - course[-2]))
    around = course[max(0, place - 1) : place + 4]
    is_far = not around.min() - room - known <= train <= around.max() + room
    if is_far and trend.rows >= limit.ROWS:
        says = (
            f"about step {step:,} the run recorded a training loss of {np.median(near):.2f} nats; "
            f"its checkpoint has {train:.2f} on the training text: something else was trained."
        )
        name = "other_tokens" if train > around.max() else "training_differs"
        yield conclude(name, says, step, step)


def bugs(trend: Trend, facts: Facts) -> list[Finding]:
    """What is seen in batches, steps and net; those that explain the others first.

    Where there is nothing, what the checkpoint's losses say: these differ beside any other bug.
    """

    def of_run(told: Iterator[tuple[str, str]]) -> list[Finding]:
        return [conclude(name, f"{says}.", 0, trend.last_step) for name, says in told]

    found = [
        *of_run(of_batches(trend, facts)),
        *of_steps(trend, facts),
        *of_run(of_tokens(trend, facts)),
        *of_run(of_net(trend, facts)),
    ]
    return found or [*of_checkpoint(trend, facts)][:1]
