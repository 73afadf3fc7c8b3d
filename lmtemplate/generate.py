"""Checkpoint and prompt -> text, token by token."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmtemplate.checkpoint.compatibility import build_net
from lmtemplate.checkpoint.files import read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer
from lmtemplate.errors import ConfigError
from lmtemplate.models.base import LanguageModel

Device = Literal["auto", "cpu", "cuda", "mps"]
COLDEST = 1e-6  # temperature; logits divided by less can be infinite


def logits_to_probs(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """(V,) logits of the next token -> (V,) probabilities to draw from; see `generate`.

    A temperature below COLDEST puts everything on the likeliest. top_p (Holtzman et al. 2020,
    section 3.1) is taken after temperature and top_k.
    """
    logits = logits.float()
    if temperature < COLDEST:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        likeliest, order = probabilities.sort(descending=True)
        beyond = likeliest.cumsum(-1) - likeliest >= top_p  # the first is always kept
        probabilities = probabilities.index_fill(0, order[beyond], 0.0)
        probabilities = probabilities / probabilities.sum()
    return probabilities


@torch.inference_mode()
def generate_tokens(
    net: LanguageModel,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 1337,
    stop_id: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that follow the prompt, ending before `stop_id`.

    A full context is cut to its last half and read again, so that the cost of a token stays
    bounded. The net should be in evaluation mode; no random state but its own is touched.
    """
    # `net.forward` below, not `net`: a compiled net would be compiled anew for each length
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    known = fresh = list(prompt)[-net.block_size :]  # fresh: what the caches have not seen
    caches = net.new_caches(1) if use_cache else None
    for _ in range(max_new_tokens):
        if len(known) > net.block_size:
            known = fresh = known[-max(1, net.block_size // 2) :]
            caches = net.new_caches(1) if use_cache else None
        shown = torch.tensor([known if caches is None else fresh], device=device)
        logits = net.forward(shown, caches) if caches is not None else net.forward(shown)
        probabilities = logits_to_probs(logits[0, -1], temperature, top_k, top_p)
        token = int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
        if token == stop_id:
            return
        yield token
        known.append(token)
        fresh = [token]


def stream_text(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """Yield the text of the tokens after the prompt, as soon as its characters are complete.

    Tokens are decoded behind those before them: some tokenizers write a space only between words.
    """
    context, pending = prompt[-8:], list[int]()
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(context + pending)[len(tokenizer.decode(context)) :]
        if not text.endswith("\ufffd") or len(pending) > 8:
            yield text
            context, pending = pending, []
    yield tokenizer.decode(context + pending)[len(tokenizer.decode(context)) :]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of the prompt; an empty one is the start of a document."""
    return [int(token) for token in tokenizer.encode([prompt])[0]] or [tokenizer.eot_id]


def check_draw(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    """Raises ConfigError, with the flag, for a number that nothing can be drawn with."""
    for flag, sound, says in (
        (f"max_new_tokens {max_new_tokens}", max_new_tokens >= 0, "0 or more"),
        (f"temperature {temperature}", temperature >= 0, "0 or more"),
        (f"top_k {top_k}", top_k is None or top_k >= 1, "1 or more"),
        (f"top_p {top_p}", top_p is None or 0 < top_p <= 1, "above 0, at most 1"),
        (f"seed {seed}", -(2**63) <= seed < 2**64, "of 64 bits: from -2^63 to below 2^64"),
    ):
        if not sound:
            raise ConfigError(f"--{flag} has to be {says}")


def build_net_on(device: Device, state: dict[str, Any], allow: list[str]) -> LanguageModel:
    """The net of a checkpoint, on a device. Raises ConfigError where there is no such device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return build_net(state, allow).to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # torch without that device
        raise ConfigError(f"--device {device} is not available on this machine; use cpu") from error


def generate(
    run: Path,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 1337,
    checkpoint: str = "best",
    device: Device = "auto",
    allow: list[str] | None = None,
) -> None:
    """Continue a prompt with a trained model; the text alone goes to standard output.

    Args:
        run: run directory.
        prompt: text to continue; empty begins a new document.
        max_new_tokens: tokens to write at most; a document's end stops earlier.
        temperature: below 1 sharpens the distribution, above 1 flattens it, 0 takes the likeliest.
        top_k: draw from the k likeliest tokens.
        top_p: draw from the fewest likeliest tokens that together reach this probability.
        seed: of the draw.
        checkpoint: best, latest, or the path of a checkpoint.
        device: where to compute; auto takes CUDA if there is any.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    check_draw(max_new_tokens, temperature, top_k, top_p, seed)
    state = read(resolve(run, checkpoint))
    net, tokenizer = build_net_on(device, state, allow or []), parse_tokenizer(state["tokenizer"])
    start = encode_prompt(tokenizer, prompt)
    tokens = generate_tokens(
        net,
        start,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_id=tokenizer.eot_id,
    )
    for text in itertools.chain([prompt], stream_text(tokenizer, start, tokens)):
        print(text, end="", flush=True)
    print()
