"""Weights -> text that they write, in the record and in TensorBoard, after each validation."""

import textwrap
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.callbacks.loggers import RecordLogger
from lmtemplate.data.datamodule import LanguageData
from lmtemplate.errors import ConfigError
from lmtemplate.generate import columns, encode_prompt, generate_batch, stream_text
from lmtemplate.module import LitLanguageModel


class Samples(Callback):
    """Let the model continue the same prompts with the same seeds, so that only the weights differ.

    Args:
        prompts: texts to continue; an empty one begins a new document.
        max_new_tokens: tokens to write for each.
        temperature: below 1 sharpens the distribution, above 1 flattens it.
        seed: of the first prompt's random draws; each further prompt has the next number.
    """

    def __init__(
        self,
        prompts: tuple[str, ...] = ("",),
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        seed: int = 1337,
    ) -> None:
        for name, value in (("max_new_tokens", max_new_tokens), ("temperature", temperature)):
            if not value >= 0:
                raise ConfigError(f"samples.{name}={value} has to be 0 or more")
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed

    def write(self, module: LitLanguageModel, data: LanguageData) -> dict[str, str]:
        """Prompt -> continuation, for all prompts; none where the data has no tokenizer."""
        tokenizer, was_training = data.tokenizer, module.net.training
        if tokenizer is None:
            return {}
        module.net.eval()
        starts = [encode_prompt(tokenizer, prompt) for prompt in self.prompts]
        rows = generate_batch(
            module.net,
            starts,
            self.max_new_tokens,
            temperature=self.temperature,
            seeds=[self.seed + number for number in range(len(starts))],
            stop_id=tokenizer.eot_id,
        )
        texts = {
            prompt: "".join(stream_text(tokenizer, start, iter(ids)))
            for prompt, start, ids in zip(
                self.prompts, starts, columns(rows, len(starts)), strict=True
            )
        }
        module.net.train(was_training)
        return texts

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, LitLanguageModel) and isinstance(data, LanguageData)
        texts = self.write(pl_module, data)
        for logger in trainer.loggers:
            if isinstance(logger, RecordLogger):
                logger.log_samples(texts, trainer.global_step)
            board: Any = getattr(logger, "experiment", None)
            if not hasattr(board, "add_text"):
                continue
            for number, (prompt, text) in enumerate(texts.items(), start=1):
                lines = (textwrap.wrap(line, 100) for line in f"{prompt}{text}".splitlines())
                # indented, so that Markdown keeps the text's characters as they are
                quoted = "\n".join(f"    {part}" for line in lines for part in line or [""])
                with suppress(OSError):  # a full disk is told by the loggers
                    board.add_text(f"samples/{number}", quoted, trainer.global_step)
