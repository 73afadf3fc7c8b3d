"""The verbs validate and test: a run's checkpoint and a split become a loss."""

import argparse
import functools
from pathlib import Path
from typing import Literal, NoReturn

import lightning.pytorch as lightning

from lmtemplate.callbacks.checkpointing import SafeCheckpointIO
from lmtemplate.callbacks.progress import ProgressBar
from lmtemplate.checkpoint import compatibility, files
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.cli import TrainingCLI
from lmtemplate.errors import ConfigError
from lmtemplate.trainer import machine_settings


class RunReader(argparse.ArgumentParser):
    """Reads the words that `validate` and `test` take beside the flags of `fit`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def evaluate(words: list[str], allowed: list[str], verb: Literal["validate", "test"]) -> None:
    """Print the metrics of a run's checkpoint on one split, in its training precision."""
    reader = RunReader(f"lmtemplate {verb}", description="Flags of `lmtemplate fit` may follow.")
    reader.add_argument("run", metavar="RUN", type=Path, help="run directory")
    reader.add_argument("--checkpoint", default="best", help="best, latest, or a file")
    asked, flags = reader.parse_known_args(words)
    path = resolve(asked.run, asked.checkpoint)
    state = files.read(path)
    cli = TrainingCLI(["--config", str(asked.run / "config.yaml"), *flags], allowed)
    cli.datamodule.setup(verb)
    compatibility.check_same_tokenizer(state, cli.datamodule.tokenizer_json, cli.datamodule.name)
    compatibility.load_net(cli.model.net, state)
    settings, machine = cli.trainer_settings, cli.machine
    trainer = lightning.Trainer(
        **machine_settings(settings),
        default_root_dir=asked.run,  # within a SLURM job Lightning looks there for checkpoints
        plugins=[SafeCheckpointIO({})],
        **{key: settings[key] for key in ("limit_val_batches", "limit_test_batches")},
        precision=machine.precision,  # type: ignore[arg-type]
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        callbacks=[ProgressBar()],
    )
    getattr(trainer, verb)(cli.model, cli.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return
    print(f"{path} (step {state['global_step']:,})")
    for name, value in cli.model.latest.items():
        print(f"  {name:<20} {value:.6f}")


validate = functools.partial(evaluate, verb="validate")  # of the validation split
test = functools.partial(evaluate, verb="test")
