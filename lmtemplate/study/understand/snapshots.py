"""A run -> the files of all weights that it keeps; a net and a prompt -> the text that it writes."""

from pathlib import Path

from lmtemplate.checkpoint.files import file_name
from lmtemplate.checkpoint.resume import resolve, steps_saved
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.errors import CheckpointError
from lmtemplate.generate import columns, encode_prompt, generate_batch, stream_text
from lmtemplate.models.base import LanguageModel
from lmtemplate.run_dir import folder_of


def snapshot_files(run: Path) -> dict[int, Path]:
    """Step -> file: milestones, the newest checkpoint, the best. Raises CheckpointError for one."""
    best, folder = resolve(run, "best"), folder_of(run)
    newest = [folder / file_name(step) for step in steps_saved(run)[-1:]]
    found = [p for p in (*folder.glob("milestones/step-*.ckpt"), *newest) if p.is_file()]
    files = {int(path.stem[5:]): path for path in (*found, best) if path.stem[5:].isdecimal()}
    if len(files) < 2:
        raise CheckpointError(
            f"{run} keeps one snapshot of its weights, and this needs two; train with milestones "
            "(checkpoint.milestones, 12 unless set to null)"
        )
    return dict(sorted(files.items()))


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
