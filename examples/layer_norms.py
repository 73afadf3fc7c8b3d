"""Gradients of each layer -> their norms, logged as grad_norm/<layer>.

    lmtemplate fit --config configs/quickstart.yaml --config examples/layer_norms.yaml \\
        --run_dir runs/norms --allow examples
"""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lmtemplate.module import is_logged


class LayerNorms(Callback):
    """Logs where the gradient is large, at the steps at which train/loss is logged."""

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not is_logged(trainer, trainer.global_step + 1):
            return
        layers: dict[str, list] = {}
        for name, parameter in pl_module.net.named_parameters():
            if parameter.grad is not None:
                parts = name.split(".")
                layer = ".".join(parts[: 2 if parts[1].isdecimal() else 1])  # "blocks.0" or "head"
                layers.setdefault(layer, []).append(parameter.grad)
        norms = {f"grad_norm/{layer}": get_total_norm(grads) for layer, grads in layers.items()}
        pl_module.log_dict(norms)
