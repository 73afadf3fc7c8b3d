"""Words after a verb -> a config's net and optimizer, ready for steps that no run directory sees."""

import torch
from torch import Tensor

from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.data.datamodule import Batch, LanguageData
from lmtemplate.fit import load_first_weights, make_plan
from lmtemplate.optimizers import clip_gradients, gradient_norm


class TrialSteps:
    """A config's training step, outside of Lightning: nothing is logged, saved or scheduled."""

    def __init__(self, verb: str, words: list[str], allowed: list[str]) -> None:
        """Raises what a config that cannot train raises."""
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
        trainer = self.cli.config.trainer
        if limit := trainer.gradient_clip_val:
            by_value = trainer.gradient_clip_algorithm == "value"
            norm = None if by_value else gradient_norm(self.optimizer)
            clip_gradients(self.optimizer, limit, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.nats / loss.tokens)
