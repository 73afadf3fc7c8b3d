"""Checkpoint and prompt -> text, token by token."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmtemplate.checkpoint.compatibility import build_net
from lmtemplate.checkpoint.files import read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.models.base import LanguageModel
from lmtemplate.plain_file import read_plain

Device = Literal["auto", "cpu", "cuda", "mps"]
COLDEST = 1e-6  # temperature; logits divided by less can be infinite


def logits_to_probs(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """(..., V) logits of the next token -> (..., V) probabilities to draw from; see `generate`.

    A temperature below COLDEST puts everything on the likeliest. top_p (Holtzman et al. 2020,
    section 3.1) is taken after temperature and top_k.
    """
    logits = logits.float()
    if temperature < COLDEST:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.size(-1)).float()
    logits = logits / temperature
    if top_k is not None and top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        likeliest, order = probabilities.sort(descending=True)
        beyond = likeliest.cumsum(-1) - likeliest >= top_p  # the first is always kept
        probabilities = likeliest.masked_fill(beyond, 0.0).gather(-1, order.argsort(-1))
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def choose(probabilities: Tensor, luck: list[float]) -> list[int]:
    """(B, V) probabilities, B numbers from 0 to 1 -> B ids: where the sums of a row pass its number.

    Sums are float64: in float32 those of a large vocabulary would not tell rare tokens apart.
    """
    sums = probabilities.cpu().double().cumsum(-1)
    if not sums[:, -1].isfinite().all():
        raise NumbersError("the model's numbers are not finite; take an earlier checkpoint")
    place = torch.tensor(luck, dtype=torch.float64)[:, None] * sums[:, -1:]
    return list(torch.searchsorted(sums, place, right=True)[:, 0].tolist())


@torch.inference_mode()
def generate_batch(
    net: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seeds: Sequence[int],
    stop_id: int | None = None,
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield, step by step, the next id of each text; None for one that is at rest.

    Every text is what it would be alone, with its own seed and its own `max_new_tokens` ids, fewer
    if `stop_id` comes. All have one length, without padding: the shortest prompt is read, and where
    others are longer, their next token is taken instead of a drawn one. A full context is cut to
    its last half and read again. The net should be in evaluation mode.
    """
    # `net.forward` below, not `net`: a compiled net would be compiled anew for each length
    device, half = next(net.parameters()).device, max(1, net.block_size // 2)
    texts = [list(prompt)[-net.block_size :] for prompt in prompts]
    draws, left = [random.Random(seed) for seed in seeds], [max_new_tokens] * len(texts)
    # how much of each text the caches hold, and how much there is, less what is still to be read
    read, end = 0, min(map(len, texts), default=0)
    while any(left):
        if end > net.block_size:
            texts, read, end = [text[-half:] for text in texts], 0, half
        if read == 0:
            caches = net.new_caches(len(texts)) if use_cache else None
        shown = torch.tensor([text[read:end] for text in texts], device=device)
        logits = net.forward(shown, caches) if caches is not None else net.forward(shown)
        read = end if caches is not None else 0
        probabilities = logits_to_probs(logits[:, -1], temperature, top_k, top_p)
        drawing = [len(text) == end and count > 0 for text, count in zip(texts, left, strict=True)]
        luck = [one.random() if now else 0.0 for one, now in zip(draws, drawing, strict=True)]
        new: list[int | None] = [None] * len(texts)
        for row, token in enumerate(choose(probabilities, luck)):
            if len(texts[row]) == end:
                texts[row].append(token)
            if drawing[row]:
                left[row] = 0 if token == stop_id else left[row] - 1
                new[row] = None if token == stop_id else token
        yield new
        end += 1


def columns(rows: Iterable[list[int | None]], count: int) -> list[list[int]]:
    """What `generate_batch` yields -> the ids of each of its `count` texts."""
    texts = list(zip(*rows, strict=True)) or [()] * count
    return [[token for token in text if token is not None] for text in texts]


def stream_text(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """Yield the text of the tokens after the prompt, as soon as its characters are complete.

    Tokens are decoded behind those before them: some tokenizers write a space only between words.
    """
    context, pending, text = prompt[-8:], list[int](), ""
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(context + pending)[len(tokenizer.decode(context)) :]
        if not text.endswith("\ufffd") or len(pending) > 8:
            yield text
            context, pending, text = pending, [], ""
    yield text


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of the prompt; an empty one is the start of a document."""
    return [int(token) for token in tokenizer.encode([prompt])[0]] or [tokenizer.eot_id]


def check_draw(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Raises ConfigError, with the flag, for a number that nothing can be drawn with."""
    for flag, is_sound, says in (
        (f"max_new_tokens {max_new_tokens}", max_new_tokens >= 0, "0 or more"),
        (f"temperature {temperature}", temperature >= 0, "0 or more"),
        (f"top_k {top_k}", top_k is None or top_k >= 1, "1 or more"),
        (f"top_p {top_p}", top_p is None or 0 < top_p <= 1, "above 0, at most 1"),
    ):
        if not is_sound:
            raise ConfigError(f"--{flag} has to be {says}")


def read_prompts(prompt: str, path: Path | None) -> list[str]:
    """The prompt, or the lines of a file. Raises ConfigError for both, and for no lines."""
    if path is None:
        return [prompt]
    if prompt:
        raise ConfigError(f"--prompts {path} and --prompt are two things; give one")
    try:
        lines = read_plain(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path} cannot be read: {error}") from error
    if not lines:
        raise ConfigError(f"--prompts {path} is empty; write a prompt a line")
    return lines


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
    prompts: Path | None = None,
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
        prompts: instead, a file with a prompt in each line: all are continued at once, as each would
            be alone; an empty line stands after each text.
        checkpoint: best, latest, or the path of a checkpoint.
        device: where to compute; auto takes CUDA if there is any.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    check_draw(max_new_tokens, temperature, top_k, top_p)
    texts, state = read_prompts(prompt, prompts), read(resolve(run, checkpoint))
    net, tokenizer = build_net_on(device, state, allow or []), parse_tokenizer(state["tokenizer"])
    starts = [encode_prompt(tokenizer, text) for text in texts]
    rows = generate_batch(
        net,
        starts,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seeds=[seed] * len(texts),
        stop_id=tokenizer.eot_id,
    )
    one = (token for (token,) in rows if token is not None)  # shown as it comes
    ids = map(iter, columns(rows, len(texts))) if prompts else [one]
    for text, start, tokens in zip(texts, starts, ids, strict=True):
        print(text, end="", flush=True)
        for piece in stream_text(tokenizer, start, tokens):
            print(piece, end="", flush=True)
        print("\n" if prompts else "")
