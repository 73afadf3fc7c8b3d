"""A net -> the contract that training and generation rely on: one check each, with its figure.

All of it is computed on the CPU in float32, on a batch of two sequences of random tokens.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.check.environment import Check, judged
from lmtemplate.study.diagnose.probes import change_from_later_tokens

SEQUENCES, LONGEST = 2, 64  # sequences, and tokens of each at most
ROUNDING = 1e-5  # logits that ought to be equal may differ by this share of the largest, or of 10
NATS = 0.5  # difference of the first loss from ln V
SHARE = 0.1  # of its first value, below which the loss of a memorised batch falls
MEMORISING_STEPS, SECONDS, LR = 400, 60.0, 2e-3  # for memorising, with AdamW
OTHERS_NEED = ("net", "extra terms")  # where one of these fails, the others would name it wrongly

Build = Callable[[], LanguageModel]


def _loss(net: LanguageModel, tokens: Tensor) -> Tensor:
    """Mean nats of each token of (B, T+1) but the first."""
    return cross_entropy(net(tokens[:, :-1]), tokens[:, 1:]).objective


def _same(subject: str, what: str, change: float, largest: float, cause: str) -> Check:
    """Whether logits, of which the largest is given, change by no more than rounding."""
    is_same = change <= ROUNDING * max(10.0, largest)  # false for NaN as well
    return judged(is_same, subject, f"{what} changes logits by {change:.1e} at most", cause)


def _distance(logits: Tensor, others: Tensor) -> tuple[float, float]:
    return (logits - others).abs().max().item(), logits.abs().max().item()


@torch.no_grad()
def shape_of_logits(net: LanguageModel, tokens: Tensor) -> Check:
    """Which net it is, and whether there is a logit for each token of the vocabulary."""
    name = f"{type(net).__module__}.{type(net).__qualname__}"
    found, wanted = tuple(net(tokens).shape), (*tokens.shape, net.vocab_size)
    text = f"{name}, {net.parameter_count():,} parameters: tokens {tuple(tokens.shape)} -> {found}"
    return judged(found == wanted, "net", text, f"forward has to return (B, T, V), here {wanted}")


@torch.no_grad()
def extra_terms(net: LanguageModel, tokens: Tensor) -> list[Check]:
    """Whether the terms that the net adds to the loss are scalars."""
    net.train()(tokens[:, :-1])
    terms = net.extra_objectives(tokens[:, 1:])
    net.eval()
    wrong = [name for name, term in terms.items() if getattr(term, "shape", None) != ()]
    cause = f"each has to be a scalar tensor, and these are not: {', '.join(wrong)}"
    text = f"extra_objectives: {', '.join(terms)}"
    return [judged(not wrong, "extra terms", text, cause)] if terms else []


@torch.no_grad()
def first_loss(net: LanguageModel, tokens: Tensor) -> Check:
    """Whether an untrained net finds all tokens about equally likely."""
    loss, uniform = _loss(net, tokens).item(), torch.tensor(net.vocab_size).log().item()
    text = f"{loss:.2f} nats before training, ln V = {uniform:.2f}"
    cause = "initial weights of the output are too large"
    return judged(abs(loss - uniform) <= NATS, "first loss", text, cause)


def memorised(net: LanguageModel, tokens: Tensor) -> list[Check]:
    """Train on one batch: whether the loss falls, and whether a gradient reaches every parameter.

    The net is trained in place.
    """
    trainable = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR)
    without = {name for name, _ in net.named_parameters()}
    first = loss = _loss(net.eval(), tokens).item()
    start, step = time.perf_counter(), 0
    while (
        step < MEMORISING_STEPS
        and not loss < SHARE * first
        and time.perf_counter() - start < SECONDS
    ):
        optimizer.zero_grad()
        objective = _loss(net.train(), tokens)
        sum(net.extra_objectives(tokens[:, 1:]).values(), start=objective).backward()
        without -= {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        step += 1
        if step % 10 == 0 or step == MEMORISING_STEPS:
            with torch.no_grad():
                loss = _loss(net.eval(), tokens).item()
    net.eval()
    text = f"{first:.2f} -> {loss:.2f} nats on {tokens[:, 1:].numel()} tokens in {step} AdamW steps"
    if loss >= SHARE * first and step < MEMORISING_STEPS:
        batch = Check("warning", "one batch", f"{text}, more take over {SECONDS:g} s on this CPU")
    else:
        cause = "it does not learn what it sees again"
        batch = judged(loss < SHARE * first, "one batch", text, cause)
    if not without:
        count = sum(1 for _ in net.parameters())
        return [batch, Check("ok", "gradient", f"reaches all {count} parameter tensors")]
    names = ", ".join(sorted(without)[:5]) + (" ..." if len(without) > 5 else "")
    reason = f"{len(without)} parameter tensors get none (frozen, detached or unused): {names}"
    return [batch, Check("problem", "gradient", reason)]


def causal(net: LanguageModel, tokens: Tensor) -> Check:
    """Whether logits depend on earlier tokens alone."""
    if tokens.size(1) < 2:
        return Check("warning", "causal", "a block of one token has no later token")
    change, largest = change_from_later_tokens(net, tokens)
    cause = "a causal mask is missing, or something else reads ahead"
    return _same("causal", "a later token", change, largest, cause)


@torch.no_grad()
def cached(net: LanguageModel, tokens: Tensor) -> Check:
    """Whether generation with caches sees what training sees: a prompt, then token by token."""
    caches = net.new_caches(SEQUENCES)
    if caches is None:
        return Check("ok", "cache", "none kept; generation reads the whole context for each token")
    prompt = max(1, tokens.size(1) // 2)
    parts = [tokens[:, :prompt], *tokens[:, prompt:].split(1, dim=1)]
    logits = torch.cat([net(part, caches) for part in parts], dim=1)
    distance = _distance(net(tokens), logits)
    return _same("cache", "generation with caches", *distance, "a cache is out of step")


@torch.no_grad()
def reloaded(net: LanguageModel, build: Build, tokens: Tensor) -> Check:
    """Whether a new net with the saved state is the same net."""
    torch.manual_seed(1)  # what is drawn in the constructor and not saved is now another
    other = build().eval()
    other.load_state_dict(net.state_dict())
    cause = "something random is not in the state_dict (a buffer with persistent=False?)"
    distance = _distance(net(tokens), other(tokens))
    return _same("saved", "saving and loading", *distance, cause)


def check_net(build: Build) -> list[Check]:
    """The contract of a net: shape, initial loss, one batch, gradients, causal, caches, save and load.

    Args:
        build: makes the net as a config does. Called twice: what one has saved, the other loads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build().eval()
        length = min(net.block_size, LONGEST)
        tokens = torch.randint(net.vocab_size, (SEQUENCES, length + 1))
        inputs, done = tokens[:, :-1], list[Check]()
        # the last three look at the trained net: a new one may have logits of zero, which hide all
        checks: dict[str, Callable[[], list[Check]]] = {
            "net": lambda: [shape_of_logits(net, inputs)],
            "extra terms": lambda: extra_terms(net, tokens),
            "first loss": lambda: [first_loss(net, tokens)],
            "one batch": lambda: memorised(net, tokens),
            "causal": lambda: [causal(net, inputs)],
            "cache": lambda: [cached(net, inputs)],
            "saved": lambda: [reloaded(net, build, inputs)],
        }
        for subject, check in checks.items():
            try:
                done += check()
            except Exception as error:  # whatever the code of a net may raise
                text = f"{type(error).__name__}: {' '.join(str(error).split())}"
                done.append(Check("problem", subject, text))
            if subject in OTHERS_NEED and done[-1].status == "problem":
                break
    return done
