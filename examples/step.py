"""Batch -> loss, by a step of one's own: some input tokens are replaced before the net sees them.

    lmtemplate fit --config configs/quickstart.yaml --config examples/step.yaml \\
        --run_dir runs/noisy --allow examples
"""

import torch
from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor

from lmtemplate.models import LanguageModel
from lmtemplate.module import Batch, LitLanguageModel
from lmtemplate.optimizers import OptimizerCallable, OptimizerRecipe
from lmtemplate.schedules import Schedule


class NoisyInputs(LitLanguageModel):
    """Trains with random tokens among the inputs, against overfitting; validates without.

    Args:
        net: the architecture.
        optimizer: a recipe of lmtemplate, or any class with torch's interface.
        schedule: learning rate over the run.
        noise: share of the input tokens that are replaced.
    """

    def __init__(
        self,
        net: LanguageModel,
        optimizer: OptimizerRecipe | OptimizerCallable,
        schedule: Schedule | LRSchedulerCallable,
        noise: float = 0.1,
    ) -> None:
        super().__init__(net, optimizer, schedule)
        self.noise = noise

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch  # (B, T) each
        replaced = torch.rand(inputs.shape, device=inputs.device) < self.noise
        others = torch.randint_like(inputs, self.net.vocab_size)
        self.log("train/replaced", replaced.float().mean())
        return super().training_step((torch.where(replaced, others, inputs), targets), batch_idx)
