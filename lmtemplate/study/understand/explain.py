"""A run and a text -> one training step on it, walked through with numbers that anyone can check."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lmtemplate.checkpoint.compatibility import build_net
from lmtemplate.checkpoint.files import CheckpointDict, file_name, read
from lmtemplate.checkpoint.resume import resolve, steps_saved
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, UserError, own_line
from lmtemplate.models.base import LanguageModel
from lmtemplate.muon import MuonAdamWOptimizer
from lmtemplate.optimizers import OptimizerRecipe, check_moments, recipe_of
from lmtemplate.plug import load_named
from lmtemplate.run_dir import folder_of, to_json
from lmtemplate.study.diagnose.artifacts import open_run_corpus
from lmtemplate.study.progress import progress_shown
from lmtemplate.study.run_files import check_kinds
from lmtemplate.study.understand.before_after import film_of
from lmtemplate.study.understand.film import film_text, write_film
from lmtemplate.study.understand.forward import copy_of
from lmtemplate.study.understand.one_step import explain_step
from lmtemplate.study.understand.story import walk_through, write_story

USED = {  # of a checkpoint, beside what every reader checks
    "current_model_state": dict,
    "config": {
        "data": dict,
        "model": {"optimizer": {"class_path": str}},
        "trainer": {"gradient_clip_val": float, "gradient_clip_algorithm": str},
    },
}
PEAK_RATE = "peak_rate"  # in a checkpoint whose rate is no longer 0
OWN_TOKENS = 12  # of the run's own text that the step is made on, where none is given


def newest_that_steps(run: Path) -> tuple[CheckpointDict, Path]:
    """The newest checkpoint whose learning rate is above 0; the newest if all have come to 0.

    A schedule that ends at 0 leaves a last checkpoint from which no step leads anywhere. Raises
    CheckpointError where there is none, or one without an optimizer.
    """
    newest = resolve(run, "latest")
    for path in (folder_of(run) / file_name(step) for step in reversed(steps_saved(run))):
        state = read(path)
        try:
            (optimizer,) = state["optimizer_states"]
            if any(float(group["lr"]) for group in optimizer["param_groups"]):
                return state, path
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} holds no state of one optimizer; use another run"
            ) from error
    state = read(newest)
    for group in state["optimizer_states"][0]["param_groups"]:
        group["lr"] = group.get("initial_lr", 0.0)
    return {**state, PEAK_RATE: True}, newest


def build_optimizer(
    state: CheckpointDict, net: nn.Module, allow: Sequence[str]
) -> torch.optim.Optimizer:
    """The optimizer that a checkpoint describes, with its state.

    Raises ConfigError for a class of a package that is not allowed, CheckpointError where the class
    or its state does not fit.
    """
    try:
        described = state["config"]["model"]["optimizer"]
        name, settings = str(described["class_path"]), dict(described.get("init_args") or {})
        kind = load_named(name, "the checkpoint's optimizer", ["torch.optim", *allow])
        if not issubclass(kind, OptimizerRecipe | torch.optim.Optimizer):
            raise TypeError(f"{name} is not an optimizer")
        own = issubclass(kind, OptimizerRecipe)
        recipe = kind(**settings) if own else recipe_of(partial(kind, **settings))
        saved, trial_net = state["optimizer_states"][0], copy_of(net)
        trial = recipe.build(trial_net)
        trial.load_state_dict(copy.deepcopy(saved))
        check_moments(trial)
        for parameter in trial_net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trial.step()  # shows whether its state fits
        optimizer: torch.optim.Optimizer = recipe.build(net)
        optimizer.load_state_dict(saved)
        for group in optimizer.param_groups:  # the formulas are shown with numbers
            group.update({k: v.item() for k, v in group.items() if isinstance(v, torch.Tensor)})
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything for settings of another class
        raise CheckpointError(
            f"the checkpoint's optimizer cannot be built here: {str(error)[:200]}; use the version "
            "of the code that trained it"
        ) from error
    if isinstance(optimizer, MuonAdamWOptimizer):
        optimizer.matmul_dtype = torch.float32
    if hasattr(optimizer, "train"):  # schedule-free: the weights that it trains
        optimizer.train()
    return optimizer


def ids_of(text: str, run: Path, tokenizer: Tokenizer, block_size: int) -> list[int]:
    """The text in tokens; some from the middle of the run's validation text where there is none.

    Raises ConfigError for one that the model cannot read at once, or that leaves nothing to
    predict; DataError where the run's corpus is gone.
    """
    if text:
        ids = [int(token) for token in tokenizer.encode([text])[0]]
    else:
        try:
            inputs, *_ = open_run_corpus(run).batch("val", block_size, 3)
        except UserError as error:
            raise type(error)(f"{error}; or give a text of your own: --text") from error
        ids = inputs[len(inputs) // 2, : OWN_TOKENS + 1].tolist()
    if not 2 <= len(ids) <= block_size + 1:
        raise ConfigError(
            f"--text has {len(ids)} tokens, and a step needs two or more, at most {block_size} to "
            "read and one more to predict"
        )
    return ids


def step_notes(state: CheckpointDict, net: LanguageModel, found: dict[str, Any]) -> list[str]:
    """In what this step differs from the run's own, in sentences."""
    model, data = state["config"]["model"], state["config"].get("data", {})
    sizes = " × ".join(str(data[key]) for key in ("batch_size", "block_size") if key in data)
    others = [key for key in ("loss", "label_smoothing", "z_loss") if model.get(key)]
    if type(net).extra_objectives is not LanguageModel.extra_objectives:
        others.append("extra_objectives")
    notes = {
        "All checkpoints have a rate of 0, so the step is made with the peak rate.": PEAK_RATE
        in state,
        f"The batch of this step is one text, {len(found['predictions'])} tokens to predict"
        f"{sizes and f', where the run has {sizes}'}; all in float32, without dropout.": True,
        "The weights are those that are trained, not their running average.": "current_model_state"
        in state,
        f"The run minimises more than this cross-entropy: {', '.join(others)}.": others,
        f"No formulas stand here for {type(net).__qualname__}: up to the logits its modules are "
        "shown as they are.": not found["by_hand"],
        f"No formulas stand here for {model['optimizer']['class_path']}: its update is the "
        "measured difference.": not all(row["known"] for row in found["updates"]),
    }
    return [note for note, holds in notes.items() if holds]


def step_of_run(run: Path, text: str, allow: Sequence[str]) -> dict[str, Any]:
    """All numbers of one training step from a run's newest checkpoint; see `explain_step`."""
    (state, path), newest = newest_that_steps(run), resolve(run, "latest")
    check_kinds(state, USED, path)
    if "current_model_state" in state:
        own = state["current_model_state"].items()
        state["state_dict"] = {k: v for k, v in own if isinstance(v, torch.Tensor)}
    net = build_net(state, allow)
    optimizer = build_optimizer(state, net, allow)
    tokenizer = parse_tokenizer(state["tokenizer"])
    ids = ids_of(text, run, tokenizer, net.block_size)

    def spell(token: int) -> str:
        return "end of text" if token == tokenizer.eot_id else tokenizer.decode([token])

    trainer, kind = state["config"].get("trainer", {}), type(net)
    limit, by = trainer.get("gradient_clip_val"), trainer.get("gradient_clip_algorithm") or "norm"
    try:
        found = explain_step(net, ids, optimizer, spell, (float(limit), by) if limit else None)
    except (ArithmeticError, TypeError, ValueError, LinAlgError) as error:
        if own_line(error):
            raise
        says = f"{path}: no step can be shown with its numbers: {error!s:.200}"
        raise CheckpointError(says) from error
    earlier = f"The rate of {newest.name} is 0, so the step is made from {path.name}."
    return {
        "run": str(run),
        "checkpoint": str(path),
        "step": state["global_step"],
        "net": f"{kind.__module__}.{kind.__qualname__}",
        "optimizer": state["config"]["model"]["optimizer"]["class_path"],
        "text": tokenizer.decode(ids),
        "notes": [*step_notes(state, net, found), *([earlier] if path != newest else [])],
        **found,
    }


def explain_training(
    run: Path,
    text: str = "",
    before_after: bool = False,
    json: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Walk through one training step of a run, and write it as a page: RUN/explain.html.

    The step is a what-if from the newest checkpoint: nothing else in the run directory changes.

    Args:
        run: run directory.
        text: the text that the step is made on; a piece of the validation text if left out.
        before_after: instead of the step, let all snapshots of the run read the same prompts (with
            --text, that one), and write RUN/before_after.html.
        json: print one JSON object and nothing else, and write no page.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    with progress_shown(unless=json):
        found = (film_of if before_after else step_of_run)(run, text, allow or ())
    if json:
        print(to_json(found))
        return
    print(film_text(found) if before_after else walk_through(found))
    print(f"\npage: {(write_film if before_after else write_story)(found, run)}")
