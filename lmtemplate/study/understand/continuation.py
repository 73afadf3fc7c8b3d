"""A net and a prompt -> the text that it writes next."""

from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.generate import columns, encode_prompt, generate_batch, stream_text
from lmtemplate.models.base import LanguageModel


def continuation(
    net: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    seed: int,
) -> str:
    """At most so many tokens, fewer where the document ends; without the prompt."""
    start = encode_prompt(tokenizer, prompt)
    rows = generate_batch(
        net,
        [start],
        max_new_tokens,
        temperature=temperature,
        seeds=[seed],
        stop_id=tokenizer.eot_id,
    )
    return "".join(stream_text(tokenizer, start, iter(columns(rows, 1)[0])))
