"""Metrics against arithmetic on small numbers, and against many."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from lmtemplate.data import IGNORED
from lmtemplate.data.datamodule import TokenData
from lmtemplate.errors import ConfigError
from lmtemplate.loss import cross_entropy
from lmtemplate.metrics import Measures, TokenMetrics, snake_case
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import SGD
from lmtemplate.schedules import Constant


def one_hot_logits(winners: list[list[int]], vocabulary: int = 5) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(winners), vocabulary).float()


def measured(metrics: TokenMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.compute().items()}


def test_values_are_those_worked_out_by_hand() -> None:
    metrics = TokenMetrics(torch.tensor([1, 2, 4, 8, 16]))
    targets = torch.tensor([[0, 1, 2], [3, IGNORED, IGNORED]])
    metrics.update(torch.tensor(6.0), one_hot_logits([[0, 1, 4], [3, 0, 0]]), targets)
    assert measured(metrics) == pytest.approx(
        {
            "loss": 6 / 4,
            "perplexity": math.exp(6 / 4),
            "accuracy": 3 / 4,
            "bits_per_byte": 6 / (math.log(2) * (1 + 2 + 4 + 8)),
        },
        rel=1e-12,
    )


def test_every_token_weighs_the_same_however_full_its_batch() -> None:
    metrics = TokenMetrics()
    metrics.update(torch.tensor(1.0), one_hot_logits([[0] * 9]), torch.zeros(1, 9).long())
    metrics.update(torch.tensor(5.0), one_hot_logits([[1]]), torch.zeros(1, 1).long())
    assert measured(metrics)["loss"] == pytest.approx(6 / 10)
    assert measured(metrics)["accuracy"] == pytest.approx(9 / 10)


def test_a_batch_of_padding_alone_changes_nothing() -> None:
    metrics = TokenMetrics(torch.ones(5).long())
    metrics.update(torch.tensor(3.0), one_hot_logits([[0, 1]]), torch.tensor([[0, 2]]))
    before = measured(metrics)
    metrics.update(torch.tensor(0.0), one_hot_logits([[0, 0]]), torch.full((1, 2), IGNORED))
    assert measured(metrics) == before


def test_without_known_bytes_there_are_no_bits_per_byte() -> None:
    metrics = TokenMetrics()
    metrics.update(torch.tensor(3.0), one_hot_logits([[0]]), torch.tensor([[0]]))
    assert set(metrics.compute()) == {"loss", "perplexity", "accuracy"}


def test_reset_forgets() -> None:
    metrics = TokenMetrics()
    metrics.update(torch.tensor(100.0), one_hot_logits([[1]]), torch.tensor([[0]]))
    metrics.reset()
    metrics.update(torch.tensor(2.0), one_hot_logits([[0]]), torch.tensor([[0]]))
    assert measured(metrics)["loss"] == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_stay_exact_in_a_model_of_lower_precision(dtype: torch.dtype) -> None:
    net = GPT(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4)
    metrics = LitLanguageModel(net, SGD(), Constant()).to(dtype).metrics.tokens
    logits, targets = one_hot_logits([[0] * 100]).to(dtype), torch.zeros(1, 100).long()
    metrics.update(torch.tensor(2.0**30), logits, targets)
    for _ in range(300):
        metrics.update(torch.tensor(1.0), logits, targets)
    expected = (2**30 + 300) / 30_100
    assert measured(metrics)["loss"] == pytest.approx(expected, rel=1e-12)
    assert metrics.nats.dtype == torch.float64


@torch.no_grad()
def measure(corpus: Path, net: GPT, batch_size: int) -> dict[str, float]:
    data = TokenData(corpus, block_size=net.block_size, batch_size=batch_size)
    metrics = TokenMetrics(data.token_bytes)
    for inputs, targets in data.val_dataloader():
        logits = net(inputs)
        metrics.update(cross_entropy(logits, targets).nats, logits, targets)
    assert metrics.tokens == data.index["splits"]["val"]["tokens"] - 1
    return measured(metrics)


def test_the_batch_size_does_not_change_validation(corpus: Path) -> None:
    torch.manual_seed(0)
    net = GPT(257, 64, n_layer=1, n_head=2, n_embd=16).eval()
    torch.nn.init.normal_(net.head.weight, std=0.5)
    one, four, sixteen = (measure(corpus, net, batch_size) for batch_size in (1, 4, 16))
    assert one["loss"] > 1
    for others in (four, sixteen):
        assert others["loss"] == pytest.approx(one["loss"], rel=0, abs=1e-6)
        assert others == pytest.approx(one, rel=1e-6)


def test_further_metrics_see_the_tokens_that_count_under_names_in_snake_case() -> None:
    targets = torch.tensor([[0, 1, IGNORED], [3, 2, IGNORED]])
    logits = one_hot_logits([[0, 1, 1], [3, 0, 1]])  # 3 of the 4 that count are right
    more = Measures([MulticlassAccuracy(5, average="micro"), Perplexity(ignore_index=IGNORED)])
    nats = cross_entropy(logits, targets)
    more.update(nats.nats, logits, targets)
    values = more.compute()
    assert values["multiclass_accuracy"] == 3 / 4
    assert values["perplexity"].item() == pytest.approx(math.exp(nats.objective.item()))
    assert values["loss"].item() == pytest.approx(nats.objective.item())
    more.update(nats.nats, logits[:1], targets[:1])
    assert more.compute()["multiclass_accuracy"] == 1  # each validation begins anew


def test_a_metric_that_computes_no_single_number_is_named() -> None:
    logits, targets = one_hot_logits([[0, 1]]), torch.tensor([[0, 1]])
    more = Measures([MulticlassAccuracy(5, average=None)])
    more.update(cross_entropy(logits, targets).nats, logits, targets)
    with pytest.raises(ConfigError, match=r"multiclass_accuracy computes .*, not one number"):
        more.compute()


@pytest.mark.parametrize(
    ("name", "snake"), [("TopFive", "top_five"), ("BLEUScore", "bleuscore"), ("F1", "f1")]
)
def test_class_names_become_snake_case(name: str, snake: str) -> None:
    assert snake_case(name) == snake


def test_two_metrics_of_one_class_are_refused_for_one_would_be_lost() -> None:
    with pytest.raises(ConfigError, match="two of one class have one name"):
        Measures([MulticlassAccuracy(5, average="micro"), MulticlassAccuracy(5, top_k=2)])
