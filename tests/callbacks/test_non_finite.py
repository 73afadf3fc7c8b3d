"""Numbers that are not finite -> no update, another attempt, an end; never a checkpoint."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from lmtemplate.callbacks.non_finite import SCALER_SKIPS, NonFiniteGuard
from lmtemplate.data.datamodule import Batch
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.loss import Loss, cross_entropy, training_loss
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import SGD, Adam, AdamW, MuonAdamW, OptimizerRecipe, skip_step_if
from lmtemplate.record import read_record
from tests.conftest import Command
from tests.runs import equal, is_finite, load, train

Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Let the loss be such a number at these steps."""
    step_of, now = LitLanguageModel.training_step, [0]

    def at(steps: set[int], number: float = math.nan) -> None:
        def training_step(module: LitLanguageModel, batch: Batch, batch_idx: int) -> torch.Tensor:
            now[0] = module.global_step + 1
            return step_of(module, batch, batch_idx)

        def bad_loss(*batch: Any, **settings: float) -> Loss:
            loss = training_loss(*batch, **settings)
            bad = number if now[0] in steps else 1.0
            return Loss(loss.objective * bad, loss.nats * bad, loss.tokens)

        monkeypatch.setattr(LitLanguageModel, "training_step", training_step)
        monkeypatch.setattr("lmtemplate.module.training_loss", bad_loss)

    return at


def checkpoints(run: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=True) for path in (run / "checkpoints").rglob("*.ckpt")]


TOKENS = torch.arange(8)[None]
RECIPES: list[OptimizerRecipe] = [AdamW(), Adam(), SGD(), MuonAdamW()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_a_held_step_changes_neither_weights_nor_moments(recipe: OptimizerRecipe) -> None:
    torch.manual_seed(1)
    net = GPT(20, 8, n_layer=1, n_head=2, n_embd=16)
    optimizer = recipe.build(net)

    def step(bad: bool) -> None:
        cross_entropy(net(TOKENS), TOKENS).objective.backward()
        if bad:
            for parameter in net.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(math.nan)
        skip_step_if(torch.tensor(bad), optimizer)
        optimizer.step()
        optimizer.zero_grad()

    step(bad=False)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    moments = {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state.items()}
    step(bad=True)
    assert equal(dict(net.state_dict()), weights)
    assert equal({k: dict(s) for k, s in optimizer.state.items()}, moments)
    step(bad=False)
    assert not equal(dict(net.state_dict()), weights)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_on_a_gpu_nothing_waits_to_know_whether_a_step_is_held(recipe: OptimizerRecipe) -> None:
    net = GPT(20, 8, n_layer=1, n_head=2, n_embd=16)
    optimizer = recipe.build(net)
    cross_entropy(net(TOKENS), TOKENS).objective.backward()
    optimizer.step()  # SGD has something to hold only after the first one
    skip_step_if(torch.tensor(True, device="meta"), optimizer)  # whose value nobody can ask for
    with pytest.raises(RuntimeError):
        skip_step_if(torch.tensor(True, device="meta"), torch.optim.Rprop(optimizer.param_groups))


def test_muon_told_by_a_tensor_holds_as_still_as_without_gradients() -> None:
    """The way of a GPU, where nobody waits to know whether the step is held."""
    torch.manual_seed(1)
    net = GPT(20, 8, n_layer=1, n_head=2, n_embd=16)
    optimizer = MuonAdamW(weight_decay=0.1, adamw_weight_decay=0.1).build(net)

    def step(held: float) -> None:
        cross_entropy(net(TOKENS), TOKENS).objective.backward()
        for parameter in net.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(math.nan if held else 1.0)
        optimizer.found_inf = torch.tensor(held)
        optimizer.step()
        optimizer.zero_grad()

    step(0.0)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    step(1.0)
    assert equal(dict(net.state_dict()), weights)
    momenta = [state for state in optimizer.state.values() if "momentum" in state]
    assert is_finite([dict(state) for state in optimizer.state.values()])
    assert momenta
    step(0.0)
    assert not equal(dict(net.state_dict()), weights)
    assert is_finite(dict(net.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_bad_step_is_skipped_named_and_left_out_of_the_mean(
    fit: Command, poison: Poison, tmp_path: Path, number: float
) -> None:
    poison({5}, number)
    shown = fit(tmp_path / "run", "--trainer.log_every_n_steps=3")
    assert shown.code == 0
    assert re.search(r"step 5: the gradient is (nan|-?inf), update skipped \(1/3\)", shown.out)
    record = read_record(tmp_path / "run")
    assert record.nonfinite_steps == (5,)
    assert record.steps.tolist() == [3, 4, 6, 8, 9, 12]
    assert all(5 < loss < 6 for loss in record.train_loss)
    assert not any(math.isnan(rate) for rate in record.learning_rate)
    assert all(is_finite(checkpoint) for checkpoint in checkpoints(tmp_path / "run"))


@pytest.mark.slow
def test_the_weights_of_a_skipped_step_are_those_before_it(
    corpus: Path, poison: Poison, tmp_path: Path
) -> None:
    poison({4})
    folder = train(tmp_path / "run", corpus) / "checkpoints" / "milestones"
    third, fourth, fifth = (
        torch.load(folder / f"step-{step:09d}.ckpt", weights_only=True)["state_dict"]
        for step in (3, 4, 5)
    )
    assert equal(third, fourth)
    assert not equal(fourth, fifth)


@pytest.mark.slow
def test_bad_steps_that_do_not_end_send_the_run_back_to_other_data(
    fit: Command, poison: Poison, tmp_path: Path
) -> None:
    poison({6, 7, 8})
    flags = ["--guard.skips=1", "--trainer.log_every_n_steps=1"]
    shown = fit(tmp_path / "run", *flags)
    # the steps are poisoned, not the data: the second attempt fails as the first
    assert shown.code == 4
    assert shown.out.count("going back") == 2
    assert "the gradient was nan 2 times, up to step 7" in shown.error
    assert re.search(
        r"Before: step \d: loss .* step 5: loss 5\.\d+, rate 0\.\d+, gradient", shown.error
    )
    assert all(is_finite(checkpoint) for checkpoint in checkpoints(tmp_path / "run"))


@pytest.mark.slow
def test_a_rewind_leaves_out_what_was_read_since_the_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad data: two batches whose gradient is not finite, wherever they come."""
    seen: list[tuple[int, bool]] = []
    step_of = LitLanguageModel.training_step
    bad = list[torch.Tensor]()

    def training_step(module: LitLanguageModel, batch: Batch, batch_idx: int) -> torch.Tensor:
        if module.global_step in (5, 6) and len(bad) < 2:
            bad.append(batch[0].clone())
        is_bad = any(torch.equal(batch[0], one) for one in bad)
        seen.append((module.global_step + 1, is_bad))
        return step_of(module, batch, batch_idx) * (math.nan if is_bad else 1.0)

    monkeypatch.setattr(LitLanguageModel, "training_step", training_step)
    run = train(tmp_path / "run", corpus, "--guard.skips=1", "--trainer.log_every_n_steps=1")
    # at step 7 back to the checkpoint of step 4, and on with sequences that were not read yet
    assert [step for step, _ in seen] == [*range(1, 8), *range(5, 13)]
    assert [step for step, is_bad in seen if is_bad] == [6, 7]
    assert load(run, 12)["global_step"] == 12
    record = read_record(run)
    assert record.nonfinite_steps == (6, 7)
    assert record.steps.tolist() == list(range(1, 13))
    assert record.values["data/tokens"][-1] == (12 + 3) * 64  # three steps were read in vain


@pytest.mark.slow
def test_each_attempt_may_skip_anew(fit: Command, poison: Poison, tmp_path: Path) -> None:
    poison({7, 8, 9, 10})  # the checkpoint of step 8 stands in the middle of them
    flags = ["--guard.skips=2", "--guard.rewinds=1", "--trainer.log_every_n_steps=1"]
    shown = fit(tmp_path / "run", *flags)
    assert re.findall(r"step (\d+): the gradient is nan, update skipped", shown.out) == [
        *("7", "8"),
        *("9", "10"),  # 9 sent it back; the second time it is the first
    ]
    assert shown.code == 0


@pytest.mark.slow
def test_the_same_bad_data_give_the_same_run_again(
    corpus: Path, tmp_path: Path, poison: Poison
) -> None:
    poison({3, 9})
    one, other = train(tmp_path / "a", corpus), train(tmp_path / "b", corpus)
    assert equal(load(one, 12)["state_dict"], load(other, 12)["state_dict"])


@pytest.mark.slow
def test_a_resumed_run_counts_on_where_it_was(fit: Command, poison: Poison, tmp_path: Path) -> None:
    poison({4, 5})
    flags = ["--guard.skips=1", "--guard.rewinds=0", "--trainer.log_every_n_steps=1"]
    assert fit(tmp_path / "run", *flags, "--trainer.max_steps=4").code == 0
    assert fit(tmp_path / "run", *flags, "--resume=auto").code == 4


@pytest.mark.slow
def test_null_turns_it_off(fit: Command, poison: Poison, tmp_path: Path) -> None:
    poison({2})
    assert fit(tmp_path / "run", "--guard=null").code == 4


@pytest.mark.parametrize("setting", [{"skips": -1}, {"rewinds": -1}])
def test_settings_out_of_range_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="has to be 0 or more"):
        NonFiniteGuard(**setting)


def test_in_float16_only_a_scaler_that_never_finds_its_scale_ends_the_run() -> None:
    guard = NonFiniteGuard()
    now = {"accumulate_grad_batches": 1, "log_every_n_steps": 1, "fit_loop.batch_idx": 0}
    trainer = Mock(precision="16-mixed", loggers=[], val_check_interval=1, global_step=40, **now)
    guard.norms = [torch.tensor(math.inf)] * SCALER_SKIPS
    guard.on_train_batch_end(trainer, Mock())
    guard.norms = [torch.tensor(math.inf)]
    with pytest.raises(NumbersError, match=f"{SCALER_SKIPS + 1} times"):
        guard.on_train_batch_end(trainer, Mock())
