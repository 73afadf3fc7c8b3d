"""What steps did to the weights, and what the trained net does -> bugs of net, loss and loop."""

import numpy as np

from lmtemplate import metric_names
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend, updates_of


def standstill(trend: Trend, facts: Facts) -> Finding | None:
    """For much of the run the learning rate is 0, or no weight moves."""
    rate, steps = trend.record.learning_rate, trend.record.steps
    updates = updates_of(trend)
    without = {
        "the learning rate is 0": rate == 0,
        "no weight moves": (updates < limit.STILL).all(0) & bool(len(updates)),
    }
    for what, rows in without.items():
        if rows.mean() > limit.STANDING:
            first = steps[np.flatnonzero(rows)[0]]
            says = f"{what} in {rows.mean():.0%} of the run, first at step {first:,}."
            return conclude("standstill", says, first, trend.last_step)
    if facts.still_tensors and len(facts.still_tensors) == facts.tensors:
        says = f"at step {facts.checkpoint_step:,} all weights are those of step 0."
        return conclude("standstill", says, 0, trend.last_step)
    return None


def parameters_not_trained(trend: Trend, facts: Facts) -> Finding | None:
    """Some parameters are at the end what they were at the start, but for weight decay."""
    still, step = facts.still_tensors, facts.checkpoint_step or 0
    if not still or step < limit.FIRST_MOVES:
        return None
    names = ", ".join(still[:3]) + (" ..." if len(still) > 3 else "")
    says = f"{len(still)} of {facts.tensors} tensors have not moved by step {step:,}: {names}."
    return conclude("parameters_not_trained", says, 0, step)


def gradients_pile_up(trend: Trend, facts: Facts) -> Finding | None:
    """The norm of the gradient grows as if each were added to those before."""
    norms = trend.logged(metric_names.GRAD_NORM)
    if len(norms) < limit.ROWS:
        return None
    first, last = float(np.median(norms[:3])), float(np.median(norms[-len(norms) // 4 :]))
    steady = float(np.median(np.abs(np.diff(np.log(np.maximum(norms, 1e-30)))[len(norms) // 4 :])))
    if last < limit.PILE * first or steady > limit.PILE_STEADY:
        return None
    says = (
        f"the norm of the gradient grows steadily, from {first:.3g} to {last:.3g}, as if gradients "
        "were added up and never set to zero."
    )
    return conclude("gradients_pile_up", says, trend.first_step, trend.last_step)


def reads_ahead(trend: Trend, facts: Facts) -> Finding | None:
    """Later tokens change earlier logits."""
    if facts.ahead is None or facts.ahead <= limit.AHEAD:
        return None
    says = (
        f"changing later tokens changes earlier logits, by {facts.ahead:.0%} of the largest one: "
        "the net sees what it has to predict, so its losses mean nothing."
    )
    return conclude("reads_ahead", says, 0, trend.last_step)


def double_softmax(trend: Trend, facts: Facts) -> Finding | None:
    """The net returns probabilities, and the loss takes them for logits."""
    if not facts.is_probability:
        return None
    says = (
        "the outputs of the net are at least 0 and add up to 1: probabilities, which the loss "
        "takes for logits."
    )
    return conclude("double_softmax", says, 0, trend.last_step)


def reload_differs(trend: Trend, facts: Facts) -> Finding | None:
    """The checkpoint has another validation loss than the run had when it was saved."""
    step, measured = facts.checkpoint_step, facts.val_measured
    recorded = trend.val_loss[trend.val_steps == step]
    if measured is None or not len(recorded):
        return None
    most = max(limit.DIFFERS, limit.ERRORS * (facts.val_error or 0.0))
    if abs(measured - recorded[0]) <= most:
        return None
    says = (
        f"at step {step:,} the run recorded a validation loss of {recorded[0]:.2f} nats; its "
        f"checkpoint, loaded anew, has {measured:.2f} on the validation text."
    )
    return conclude("reload_differs", says, step or 0, step or 0)


def too_good(trend: Trend, facts: Facts) -> Finding | None:
    """Validation is far below what counting tokens explains, and no probe has cleared it."""
    if not len(trend.val_loss) or facts.ahead is not None:
        return None
    lowest, bigram = float(trend.val_loss.min()), facts.bigram_loss
    if lowest > limit.FAR_BELOW * (1.0 if bigram is None else bigram):
        return None
    against = "" if bigram is None else f"; counting token pairs gives {bigram:.2f}"
    says = f"validation reaches {lowest:.3f} nats per token, which hardly any text allows{against}."
    return conclude("too_good", says, 0, trend.last_step)


def training_differs(trend: Trend, facts: Facts) -> Finding | None:
    """The checkpoint has another loss on the training text than the run had while training."""
    measured, step = facts.train_measured, facts.checkpoint_step or 0
    if measured is None or not len(trend.record):
        return None
    place = int(np.searchsorted(trend.record.steps, step))
    near = trend.record.train_loss[max(0, place - 2) : place + 3]
    dropout = facts.settings.get("model.net.init_args.dropout") or 0.0
    room = max(limit.TRAINING_DIFFERS + dropout, limit.ERRORS * (facts.train_error or 0.0))
    if not len(near) or near.min() - room <= measured <= near.max() + room:
        return None
    says = (
        f"about step {step:,} the run recorded a training loss of {np.median(near):.2f} nats; its "
        f"checkpoint has {measured:.2f} on the training text"
    )
    if measured > near.max():
        return conclude("other_tokens", f"{says}: it was trained on other tokens.", step, step)
    return conclude("training_differs", f"{says}: something else was trained.", step, step)
