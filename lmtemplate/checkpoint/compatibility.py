"""A checkpoint's content -> whether this run may go on from it, and a net with its weights."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lmtemplate import run_dir
from lmtemplate.checkpoint.files import CheckpointDict
from lmtemplate.data.tokenizer import parse_tokenizer
from lmtemplate.errors import CheckpointError, UserError
from lmtemplate.models.base import LanguageModel
from lmtemplate.plug import load_named

NET = "net."  # prefix of the net's weights in the LightningModule's state_dict


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: key path -> (before, now); a setting that is absent counts as None."""
    old, new = flatten(before), flatten(now)
    keys = sorted({*old, *new})
    return {k: (old.get(k), new.get(k)) for k in keys if repr(old.get(k)) != repr(new.get(k))}


def _must_stay(description: dict[str, Any]) -> dict[str, Any]:
    """The settings that may not change within a run. Raises CheckpointError where one is missing."""
    try:
        config, model = description["config"], description["config"]["model"]
        data = ("vocab_size", "block_size", "tokenizer", "fingerprint")
        return {
            "seed_everything": config["seed_everything"],  # the order of the data depends on it
            "model.net": model["net"],
            "model.optimizer.class_path": model["optimizer"]["class_path"],
            "data": {key: description[key] for key in data},
        }
    except (LookupError, TypeError) as error:
        raise CheckpointError(f"the checkpoint does not describe its run (no {error})") from error


def announce(
    run: Path, before: CheckpointDict | None, description: dict[str, Any]
) -> dict[str, Any] | None:
    """Say where the run goes on and what differs from before; returns that, for the manifest."""
    if before is None:
        if run_dir.is_used(run):
            print(f"no checkpoint in {run} yet: starting at step 0")
        return None
    changed = differences(before["config"], description["config"])
    now = description["environment"]
    other = differences(before.get("environment", now), now)
    print(f"continuing {run} at step {before['global_step']:,}")
    for key, (old, new) in changed.items():
        print(f"  changed: {key}: {old} -> {new}")
    if other:
        listed = ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in other.items())
        print(f"  not bit for bit as it would have gone on before: {listed}")
    return {"step": before["global_step"], "changed": changed, "environment": other}


def check_same_model_and_data(checkpoint: CheckpointDict, description: dict[str, Any]) -> None:
    """Raises CheckpointError where architecture, optimizer, seed or corpus differ."""
    if changed := differences(_must_stay(checkpoint), _must_stay(description)):
        if "data.tokenizer" in changed:  # each value is a whole file
            changed["data.tokenizer"] = ("..", "another")
        fields = ", ".join(f"{k}: {old!s:.40} -> {new!s:.40}" for k, (old, new) in changed.items())
        run = description["config"].get("run_dir", "RUN")
        raise CheckpointError(
            f"{run} holds a run with another model, optimizer, seed or corpus ({fields}); set it "
            "back, name another run (make train RUN=runs/NAME), or delete this one "
            f"(rm -r {shlex.quote(run)})"
        )


def check_same_tokenizer(checkpoint: CheckpointDict, tokenizer_json: str, data: str) -> None:
    """Raises CheckpointError where a checkpoint's tokens mean something else than the data's."""
    if checkpoint.get("tokenizer") != tokenizer_json:
        raise CheckpointError(
            f"the checkpoint has another tokenizer than the text in {data}; prepare it "
            "with the tokenizer.json of that run (lmtemplate prepare --tokenizer FILE)"
        )


def _form(weight: Tensor | None) -> str:
    """Shape of a weight, and its type where that is none of the floats that nets are trained in."""
    if weight is None:
        return "missing"
    is_usual = weight.is_floating_point() and weight.itemsize > 1
    return f"{tuple(weight.shape)}{'' if is_usual else f' of {weight.dtype}'}"


def load_net(net: nn.Module, checkpoint: CheckpointDict) -> None:
    """Put a checkpoint's weights into a net. Raises CheckpointError naming what does not fit."""
    weights = {k.removeprefix(NET): v for k, v in checkpoint["state_dict"].items()}
    wanted = net.state_dict()
    try:
        for name in sorted({*weights, *wanted}):
            if (have := _form(weights.get(name))) != (need := _form(wanted.get(name))):
                raise CheckpointError(
                    f"the checkpoint is of another architecture: {name} is {have} there, {need} here"
                )
        net.load_state_dict(weights)
    except RuntimeError as error:  # as of sparse or nested tensors
        raise CheckpointError("the checkpoint's weights are no plain tensors") from error


def build_net(checkpoint: CheckpointDict, allowed: Sequence[str] = ()) -> LanguageModel:
    """The net that a checkpoint describes; no package is imported that is not allowed."""
    try:
        described = checkpoint["config"]["model"]["net"]
        class_path, settings = str(described["class_path"]), dict(described.get("init_args", {}))
        settings.update({key: checkpoint[key] for key in ("vocab_size", "block_size")})
        if "tokenizer" not in checkpoint or settings["block_size"] < 1:
            raise KeyError("tokenizer")  # nobody could read what the net writes
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError("the checkpoint does not describe its net") from error
    try:
        architecture = load_named(class_path, "the checkpoint's net", allowed)
        if not (isinstance(architecture, type) and issubclass(architecture, LanguageModel)):
            raise TypeError("it is not a LanguageModel")
        net = architecture(**settings)
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything for settings of another class
        raise CheckpointError(
            f"the checkpoint's net {class_path} cannot be built here: {error!s:.300}; use the version of "
            "the code that trained it"
        ) from error
    load_net(net, checkpoint)
    text = checkpoint["tokenizer"]  # empty where the data has none
    if text and (ids := parse_tokenizer(text).vocab_size) != checkpoint["vocab_size"]:
        says = f"its tokenizer has {ids:,} ids, its net {checkpoint['vocab_size']:,}"
        raise CheckpointError(f"the checkpoint does not fit together: {says}")
    return net.eval()
