"""A step in Lightning's own loop: what is minimised, logged, clipped and scheduled."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lmtemplate import hardware
from lmtemplate.data.datamodule import TokenData
from lmtemplate.data.sampler import block_at
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT, LanguageModel
from lmtemplate.module import LitLanguageModel, log_values
from lmtemplate.optimizers import SGD, MuonAdamW, OptimizerRecipe
from lmtemplate.schedules import Constant, Schedule, WarmupCosine

BLOCK = 16


class Memory(DummyLogger):
    """A logger that keeps what it is given: name -> step -> value."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        step = int(metrics.get("step", step))
        for name, value in metrics.items():
            assert step not in self.values.setdefault(name, {}), f"{name} twice at step {step}"
            self.values[name][step] = value


def build_net(dropout: float = 0.0) -> GPT:
    torch.manual_seed(0)
    net = GPT(257, BLOCK, n_layer=1, n_head=2, n_embd=16, dropout=dropout)
    nn.init.normal_(net.head.weight, std=0.1)
    return net


def train(
    corpus: Path,
    net: LanguageModel,
    recipe: OptimizerRecipe | None = None,
    schedule: Schedule | None = None,
    *,
    steps: int = 4,
    batch_size: int = 4,
    accumulate: int = 1,
    callbacks: list[lightning.Callback] | None = None,
    clip: float | None = None,
    clip_by: str | None = None,
    **settings: Any,
) -> Memory:
    """Train the net in place on the first sequences; returns what was logged."""
    module = LitLanguageModel(net, recipe or SGD(0.1), schedule or Constant(), **settings)
    memory = Memory()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        val_check_interval=steps * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        log_every_n_steps=min(2, steps),
        gradient_clip_val=clip,
        gradient_clip_algorithm=clip_by,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=memory,
        callbacks=callbacks,
    )
    data = TokenData(corpus, block_size=BLOCK, batch_size=batch_size, max_val_blocks=8, seed=3)
    trainer.fit(module, data)
    return memory


def first_sequences(corpus: Path, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets that training begins with."""
    blocks = TokenData(corpus, block_size=BLOCK).blocks("train")
    inputs, targets = blocks[block_at(np.arange(count), len(blocks), 3)]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def flat(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def gradient(net: LanguageModel, inputs: Tensor, targets: Tensor, **regularisers: float) -> Tensor:
    loss = cross_entropy(net(inputs), targets, **regularisers).objective
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*net.parameters()])])


@pytest.mark.parametrize("regularisers", [{}, {"label_smoothing": 0.2, "z_loss": 0.01}], ids=str)
def test_a_step_descends_the_gradient_of_the_objective(
    corpus: Path, regularisers: dict[str, float]
) -> None:
    net = build_net()
    expected = flat(net) - 0.1 * gradient(net, *first_sequences(corpus, 4), **regularisers)
    train(corpus, net, SGD(0.1, momentum=0.0), steps=1, **regularisers)
    torch.testing.assert_close(flat(net), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("recipe", [SGD(0.1), MuonAdamW()], ids=["sgd", "muon"])
def test_accumulation_equals_one_large_batch(corpus: Path, recipe: OptimizerRecipe) -> None:
    # in float64: Muon makes a visible difference of rounding in a gradient that is nearly zero
    whole, parts = build_net().double(), build_net().double()
    train(corpus, whole, recipe, batch_size=12, steps=3)
    train(corpus, parts, recipe, batch_size=4, accumulate=3, steps=3)
    torch.testing.assert_close(flat(parts), flat(whole), rtol=0, atol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_training_loss_is_the_plain_mean_since_it_was_last_logged(
    corpus: Path, accumulate: int
) -> None:
    net, batch = build_net(), 4 * accumulate
    logged = train(
        corpus, net, SGD(0.0), accumulate=accumulate, label_smoothing=0.3, z_loss=0.1
    ).values["train/loss"]
    inputs, targets = first_sequences(corpus, 4 * batch)
    expected = {
        step: cross_entropy(
            net(inputs[(step - 2) * batch : step * batch]),
            targets[(step - 2) * batch : step * batch],
        )
        for step in (2, 4)
    }
    assert logged == pytest.approx(
        {step: (loss.nats / loss.tokens).item() for step, loss in expected.items()}, rel=1e-6
    )


def test_validation_comes_in_full_before_the_first_step_and_at_the_last(corpus: Path) -> None:
    net = GPT(257, BLOCK, n_layer=1, n_head=2, n_embd=16)
    logged = train(corpus, net, label_smoothing=0.3, z_loss=0.1).values
    assert set(logged["val/loss"]) == {0, 4}
    assert logged["val/loss"][0] == pytest.approx(math.log(257), rel=1e-5)
    data = TokenData(corpus, block_size=BLOCK, batch_size=8, max_val_blocks=8)
    inputs, targets = next(iter(data.val_dataloader()))
    loss = cross_entropy(net.eval()(inputs), targets)
    assert logged["val/loss"][4] == pytest.approx((loss.nats / loss.tokens).item(), rel=1e-5)


def test_all_metrics_of_validation_follow_from_its_loss(corpus: Path) -> None:
    logged = train(corpus, build_net()).values
    loss = logged["val/loss"][4]
    assert logged["val/perplexity"][4] == pytest.approx(math.exp(loss), rel=1e-5)
    assert 0 <= logged["val/accuracy"][4] <= 1
    eot_share = 1 - loss / (math.log(2) * logged["val/bits_per_byte"][4])
    assert 0 <= eot_share < 0.05  # a byte is a token, and only ends of documents are no bytes


def test_dropout_is_off_in_validation_alone(corpus: Path) -> None:
    plain, dropping = (train(corpus, build_net(rate), SGD(0.0)).values for rate in (0.0, 0.5))
    assert dropping["val/loss"] == plain["val/loss"]
    assert dropping["train/loss"] != plain["train/loss"]


def test_clipping_bounds_the_step_and_logs_the_norm_before_it(corpus: Path) -> None:
    net = build_net()
    norm = gradient(net, *first_sequences(corpus, 4)).norm().item()
    before = flat(net)
    train(corpus, net, SGD(1.0, momentum=0.0), steps=1, clip=0.01)
    assert norm > 0.1
    assert (flat(net) - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    logged = train(corpus, build_net(), SGD(0.0), clip=0.01).values["optim/grad_norm"]
    unclipped = train(corpus, build_net(), SGD(0.0)).values["optim/grad_norm"]
    assert logged == pytest.approx(unclipped, rel=1e-5)
    inputs, targets = first_sequences(corpus, 8)
    expected = gradient(build_net(), inputs[4:], targets[4:]).norm().item()
    assert unclipped[2] == pytest.approx(expected, rel=1e-5)


def test_clipping_by_value_bounds_every_entry(corpus: Path) -> None:
    net = build_net()
    expected = flat(net) - gradient(net, *first_sequences(corpus, 4)).clamp(-1e-3, 1e-3)
    train(corpus, net, SGD(1.0, momentum=0.0), steps=1, clip=1e-3, clip_by="value")
    torch.testing.assert_close(flat(net), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("clip_by", "order"), [("norm", 2.0), ("value", math.inf)])
def test_the_share_of_clipped_steps_counts_those_since_the_row_before(
    corpus: Path, clip_by: str, order: float
) -> None:
    net, (inputs, targets) = build_net(), first_sequences(corpus, 16)
    batches = zip(inputs.split(4), targets.split(4), strict=True)
    norms = [gradient(net, *batch).norm(order).item() for batch in batches]
    clip = sum(sorted(norms)[1:3]) / 2
    logged = train(corpus, net, SGD(0.0), clip=clip, clip_by=clip_by).values
    clipped = [norm > clip for norm in norms]
    assert logged["optim/clipped_share"] == {2: np.mean(clipped[:2]), 4: np.mean(clipped[2:])}


def test_without_clipping_no_share_of_it_is_logged(corpus: Path) -> None:
    assert "optim/clipped_share" not in train(corpus, build_net()).values


class Rates(lightning.Callback):
    """The learning rates that updates are made with."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(
        self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_update_has_the_rate_that_the_schedule_says(corpus: Path, accumulate: int) -> None:
    schedule, rates = WarmupCosine(warmup_steps=2, floor_ratio=0.1), Rates()
    recipe = MuonAdamW(lr=0.02, adamw_lr=0.003)
    train(corpus, build_net(), recipe, schedule, steps=6, accumulate=accumulate, callbacks=[rates])
    factors = [schedule.factor(step, 6) for step in range(6)]
    assert np.allclose(
        rates.seen, [[0.02 * factor, 0.003 * factor, 0.003 * factor] for factor in factors]
    )


class OldSettings(Rates):
    """As if a checkpoint's optimizer and schedule had been loaded."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        old = {"lr": 99.0, "initial_lr": 99.0, "weight_decay": 99.0}
        for group in trainer.optimizers[0].param_groups:
            group.update(old, counted=7)
        pl_module.on_load_checkpoint(
            {"train_sums": [0.0] * 4, "optimizer_settings": [old] * 3, "latest": {}}
        )
        trainer.lr_scheduler_configs[0].scheduler.base_lrs = [99.0] * 3

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.decays = [group["weight_decay"] for group in groups]
        self.counted = [group["counted"] for group in groups]


def test_settings_given_now_beat_those_of_a_checkpoint(corpus: Path) -> None:
    schedule, old = WarmupCosine(warmup_steps=2), OldSettings()
    recipe = MuonAdamW(lr=0.02, weight_decay=0.3, adamw_lr=0.003, adamw_weight_decay=0.4)
    train(corpus, build_net(), recipe, schedule, callbacks=[old])
    factors = [schedule.factor(step, 4) for step in range(4)]
    assert np.allclose(
        old.seen, [[0.02 * factor, 0.003 * factor, 0.003 * factor] for factor in factors]
    )
    assert old.decays == [0.3, 0.4, 0.0]
    assert old.counted == [7, 7, 7]  # what an optimizer keeps in its groups is its own


def test_a_module_saves_its_net_and_nothing_else() -> None:
    net = build_net()
    module = LitLanguageModel(net, SGD(), Constant())
    assert set(module.state_dict()) == {f"net.{name}" for name in net.state_dict()}


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_cuda"),
    [("auto", False, True), (True, True, True), (False, False, False)],
)
def test_compilation_is_chosen_for_the_device(
    setting: Any, on_cpu: bool, on_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    module = LitLanguageModel(build_net(), SGD(), Constant(), compile=setting)
    assert module.compiles(torch.device("cpu"), 1000) == on_cpu
    assert module.compiles(torch.device("cuda"), 1000) == on_cuda


@pytest.mark.parametrize("terms", [torch.ones(()), {"balance": torch.ones(2)}])
def test_extra_objectives_that_are_no_scalars_are_refused(terms: Any) -> None:
    net = build_net()
    net.extra_objectives = lambda targets: terms  # type: ignore[method-assign]
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ConfigError, match="extra_objectives has to return a dict of scalar"):
        LitLanguageModel(net, SGD(), Constant()).objectives(tokens, tokens)


@pytest.mark.slow
def test_a_compiled_step_is_the_plain_one_and_leaves_the_names_of_weights(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, compile_with = [], torch.compile

    def without_code(function: Any, **settings: Any) -> Any:
        """All of the compiler but its last part, which writes C++ or Triton."""
        made.append(function.__name__)
        return compile_with(function, backend="aot_eager", dynamic=settings["dynamic"])

    monkeypatch.setattr(torch, "compile", without_code)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set")
    plain, compiled = build_net().double(), build_net().double()
    losses = [
        train(corpus, net, MuonAdamW(), compile=wanted).values["train/loss"]
        for net, wanted in ((plain, False), (compiled, True))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=0, atol=1e-8)
    assert made == ["objectives", "muon_update"]


def attached(world_size: int = 1, rank: int = 0) -> LitLanguageModel:
    """A module whose trainer says that there are so many ranks, all with equal sums."""
    module = LitLanguageModel(build_net(), SGD(), Constant())
    strategy = SimpleNamespace(reduce=lambda sums, reduce_op: sums * world_size)
    module._trainer = SimpleNamespace(is_global_zero=rank == 0, strategy=strategy)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_means_contain_what_was_not_logged_yet(world_size: int) -> None:
    """Loss in nats, tokens, clipped steps, steps."""
    module, sums = attached(world_size), torch.tensor([12.5, 64.0, 1.0, 3.0])
    module.train_sums = sums.clone()
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert module.train_sums.equal(sums)
    total = torch.zeros(4)
    for rank in range(world_size):
        resumed = attached(world_size, rank)
        resumed.on_load_checkpoint(checkpoint)
        total += resumed.train_sums
    assert total.equal(sums * world_size)


def log_at(step: int, values: dict[str, float]) -> None:
    trainer = SimpleNamespace(callback_metrics={})
    state: dict[str, Any] = {"latest": {}, "row": {}, "loggers": [], "row_step": step}
    module: Any = SimpleNamespace(**state, trainer=trainer, global_step=step)
    log_values(module, values)
    LitLanguageModel.write_row(module)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(value: float) -> None:
    with pytest.raises(NumbersError, match=f"val/loss is {value} at step 1,200") as end:
        log_at(1200, {"val/perplexity": value, "val/loss": value})
    assert "\n" not in str(end.value)


def test_only_losses_have_to_be_finite() -> None:
    log_at(1, {"val/loss": 900.0, "val/perplexity": math.inf, "optim/grad_norm": math.nan})
