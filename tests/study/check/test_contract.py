"""The contract of a net: both of ours keep it, and each way of breaking it is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtemplate.models import GPT, GPT2, LanguageModel
from lmtemplate.models.layers import KVCache
from lmtemplate.study.check import contract
from lmtemplate.study.check.contract import check_net
from tests.conftest import Command


def gpt() -> GPT:
    return GPT(61, 16, n_layer=2, n_head=2, n_embd=32)


def gpt2() -> GPT2:
    return GPT2(61, 16, n_layer=2, n_head=2, n_embd=32)


def problems(build: Callable[[], LanguageModel]) -> dict[str, str]:
    """Subject -> text of each check that fails."""
    return {c.subject: c.text for c in check_net(build) if c.status == "problem"}


@pytest.mark.slow
@pytest.mark.parametrize("build", [gpt, gpt2])
def test_our_nets_keep_the_contract(build: Callable[[], LanguageModel]) -> None:
    checks = check_net(build)
    assert [check.subject for check in checks] == [
        *("net", "first loss", "one batch", "gradient", "causal", "cache", "saved")
    ]
    assert {check.status for check in checks} == {"ok"}
    assert f"models.{build.__name__}.{type(build()).__qualname__}, " in checks[0].text
    assert "ln V = 4.11" in checks[1].text  # ln 61


def test_a_missing_causal_mask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values)

    monkeypatch.setattr("lmtemplate.models.layers.causal_attention", without_mask)
    monkeypatch.setattr(contract, "MEMORISING_STEPS", 1)
    assert "a causal mask is missing" in problems(gpt2)["causal"]


@pytest.mark.slow
def test_initial_weights_that_are_too_large_are_named() -> None:
    def build() -> LanguageModel:
        net = gpt2()
        nn.init.normal_(net.embedding.weight, std=1.0)
        return net

    assert "initial weights" in problems(build)["first loss"]


class Detached(GPT2):
    """Its second block is computed without gradients."""

    def __init__(self) -> None:
        super().__init__(61, 16, n_layer=2, n_head=2, n_embd=32)
        self.blocks[1].register_forward_hook(
            lambda _m, given, out: (out - given[0]).detach() + given[0]
        )


def frozen() -> LanguageModel:
    net = gpt2()
    net.blocks[1].requires_grad_(False)
    return net


@pytest.mark.slow
@pytest.mark.parametrize("build", [Detached, frozen])
def test_a_detached_or_frozen_block_is_named(build: Callable[[], LanguageModel]) -> None:
    found = problems(build)
    assert found.keys() == {"gradient"}
    assert "16 parameter tensors get none" in found["gradient"]
    assert "blocks.1.attention.key.bias" in found["gradient"]


@pytest.mark.slow
def test_an_unused_parameter_is_named() -> None:
    def build() -> LanguageModel:
        net = gpt()
        net.spare = nn.Parameter(torch.zeros(3))
        return net

    found = problems(build)
    assert found.keys() == {"gradient"}
    assert found["gradient"].endswith(": spare")


@pytest.mark.slow
def test_a_cache_that_is_one_position_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    extend = KVCache.extend

    def one_short(self: KVCache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        extended = extend(self, keys, values)
        self.length -= self.length > 1
        return extended

    monkeypatch.setattr(KVCache, "extend", one_short)
    assert problems(gpt2).keys() == {"cache"}
    assert problems(gpt).keys() == {"cache"}


class Turned(GPT):
    """Its logits are (B, V, T), as torch's cross-entropy takes them."""

    def forward(self, tokens: Tensor, caches: object = None) -> Tensor:
        return super().forward(tokens).mT


class Vectors(GPT):
    """Keeps what it has computed, and returns a term for each token."""

    def forward(self, tokens: Tensor, caches: object = None) -> Tensor:
        self.seen = super().forward(tokens)
        return self.seen

    def extra_objectives(self, targets: Tensor) -> dict[str, Tensor]:
        return {"mean": self.seen.mean(), "size": self.seen.square().mean(-1)}


@pytest.mark.parametrize(
    ("kind", "subject", "says"),
    [
        (Turned, "net", "Turned, 28,512 parameters: tokens (2, 16) -> (2, 61, 16); forward has to "
        "return (B, T, V), here (2, 16, 61)"),
        (Vectors, "extra terms", "scalar tensor, and these are not: size"),
    ],
)  # fmt: skip
def test_what_all_other_checks_need_is_named_alone(
    kind: type[GPT], subject: str, says: str
) -> None:
    found = problems(lambda: kind(61, 16, n_layer=2, n_head=2, n_embd=32))
    assert found.keys() == {subject}
    assert found[subject].endswith(says)


class RandomFeatures(GPT):
    """Its embedding is multiplied by signs that are drawn anew for each object."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__(61, 16, n_layer=2, n_head=2, n_embd=32)
        self.register_buffer("signs", torch.randn(32).sign(), persistent=persistent)
        self.embedding.register_forward_hook(lambda _m, _i, out: out * self.signs)


@pytest.mark.slow
def test_a_random_buffer_that_is_not_saved_is_named() -> None:
    assert "state_dict" in problems(lambda: RandomFeatures(persistent=False))["saved"]
    assert problems(lambda: RandomFeatures(persistent=True)) == {}


class Blind(GPT):
    """Knows how often each token comes, and never looks at its input."""

    def __init__(self) -> None:
        super().__init__(61, 16, n_layer=1, n_head=1, n_embd=16)

    def forward(self, tokens: Tensor, caches: object = None) -> Tensor:
        return super().forward(torch.zeros_like(tokens))


@pytest.mark.slow
def test_a_net_that_cannot_memorise_a_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "MEMORISING_STEPS", 50)
    assert "does not learn" in problems(Blind)["one batch"]


def test_a_net_that_is_too_slow_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "SECONDS", 0.0)
    (batch,) = [check for check in check_net(gpt) if check.subject == "one batch"]
    assert (batch.status, "in 0 AdamW steps" in batch.text) == ("warning", True)


@pytest.mark.slow
def test_an_error_of_a_net_is_a_problem_and_the_other_checks_go_on() -> None:
    class Broken(GPT):
        def new_caches(self, batch_size: int) -> list[object]:
            raise IndexError("list index\nout of range")

    found = problems(lambda: Broken(61, 16, n_layer=2, n_head=2, n_embd=32))
    assert found == {"cache": "IndexError: list index out of range"}


NET = """
from lmtemplate.models import GPT

class Future(GPT):
    def forward(self, tokens, caches=None):
        return super().forward(tokens, caches) + super().forward(tokens.flip(1))
"""


@pytest.mark.slow
def test_doctor_checks_the_net_of_a_config_and_of_an_allowed_package(
    command: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doctors_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run_dir: {tmp_path / 'run'}\n"
        f"data: {{path: {corpus}, block_size: 16, batch_size: 4}}\n"
        "model: {net: {class_path: doctors_net.Future, init_args: {n_layer: 1, n_embd: 32}}}\n"
        "trainer: {max_steps: 150, accelerator: cpu}\n"
    )
    monkeypatch.setattr("lmtemplate.study.check.environment.BLOCK", 8)
    refused = command("doctor", "--config", config)
    assert (refused.code, "--allow doctors_net" in refused.out) == (1, True)
    result = command("doctor", "--config", config, "--allow", "doctors_net")
    assert result.code == 1
    lines = {line.split()[1]: line for line in result.out.splitlines()}
    assert "a run of 150 steps" in lines["config"]
    assert lines["causal"].startswith("✗ causal")
    assert str(corpus) in lines["data"]
    assert not (tmp_path / "run").exists()
    config.write_text(config.read_text().replace("doctors_net.Future", "GPT"))
    healthy = command("doctor", "--config", config)
    assert (healthy.code, "✓ causal" in healthy.out) == (0, True)
