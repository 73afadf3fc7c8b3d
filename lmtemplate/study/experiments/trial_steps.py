"""Words after a verb -> a config's net and optimizer, ready for steps that no run directory sees."""

import argparse
from typing import Any

import torch
from torch import Tensor

from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.data.datamodule import Batch, LanguageData
from lmtemplate.errors import ConfigError
from lmtemplate.fit import load_first_weights, make_plan
from lmtemplate.trainer import quieten

Flags = dict[str, dict[str, Any]]  # name -> what argparse takes


def whole(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return int(text)


SEEDS: Flags = {
    "seeds": {
        "type": whole,
        "metavar": "N",
        "help": "as many runs, in RUN/seed-S; the first has seed_everything, then + 1",
    }
}


def split_words(verb: str, words: list[str], flags: Flags) -> tuple[argparse.Namespace, list[str]]:
    """The values of a verb's own flags, and the words of fit. Raises ConfigError."""
    parser = argparse.ArgumentParser(f"lmtemplate {verb}", exit_on_error=False, allow_abbrev=False)
    parser.epilog = "All other flags are those of lmtemplate fit."
    for name, how in flags.items():
        parser.add_argument(f"--{name}", **how)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    try:
        return parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{verb}: {error}") from error


class TrialSteps:
    """A config's training step, outside of Lightning: nothing is logged, saved or scheduled."""

    def __init__(self, verb: str, words: list[str], allowed: list[str]) -> None:
        """Raises what a config that cannot train raises."""
        quieten()
        self.cli = TrainingCLI(words, allowed, verb)
        self.cli.datamodule.setup("fit")
        self.length = make_plan(self.cli)
        check_settings(self.cli, self.length.steps)
        if self.cli.config.init_from:
            load_first_weights(self.cli.config.init_from, self.cli)
        assert isinstance(self.cli.datamodule, LanguageData)
        self.data, self.device = self.cli.datamodule, self.cli.machine.device
        self.module = self.cli.model
        self.net = self.module.net.to(self.device).train()
        self.optimizer = self.module.recipe.build(self.net)
        self._loader = iter(self.data.train_dataloader())

    def next_batch(self) -> Batch:
        """Of the config's own data, from the start again where it ends."""
        if (batch := next(self._loader, None)) is None:
            self._loader = iter(self.data.train_dataloader())
            batch = next(self._loader)
        return batch

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """One update; returns the mean loss before it, in nats, when the device has made it."""
        dtype = self.cli.machine.autocast
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            loss, _ = self.module.objectives(inputs.to(self.device), targets.to(self.device))
        loss.objective.backward()
        if clip := self.cli.config.trainer.gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.nats / loss.tokens)
