"""What each depth knows, against shallower nets, least squares, and labels that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from lmtemplate.data.tokenizer import ByteTokenizer
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT, GPT2, LanguageModel
from lmtemplate.study.understand import knowledge as study


def random_net(kind: type[GPT | GPT2], n_layer: int = 3) -> LanguageModel:
    torch.manual_seed(0)
    net = kind(257, 12, n_layer=n_layer, n_head=2, n_embd=16).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize("kind", [GPT, GPT2])
def test_the_head_after_some_layers_is_a_net_that_has_only_those(kind: type[GPT | GPT2]) -> None:
    net, tokens = random_net(kind), torch.randint(257, (2, 12))
    expected = net(tokens)
    streams = study.streams_of(net, tokens)
    for depth, logits in enumerate(study.lens(net, streams)):
        if depth:
            shallow = random_net(kind, depth)
            weights = {n: v for n, v in net.state_dict().items() if n in shallow.state_dict()}
            shallow.load_state_dict(weights)
            torch.testing.assert_close(logits, shallow(tokens))
    torch.testing.assert_close(logits, expected)
    assert torch.equal(net(tokens), expected)  # and the net is as it was


def test_the_last_depth_has_the_net_s_own_loss_and_predictions() -> None:
    net, tokenizer = random_net(GPT2), ByteTokenizer()
    inputs = torch.from_numpy(np.stack(tokenizer.encode(["You are here", "the dog sat "] * 4)))
    targets = inputs.roll(-1, 1)
    targets[:, -1] = -100
    found = study.look_into(net, tokenizer, inputs, targets, 5)
    logits = net(inputs)
    assert found["depths"][-2]["loss"] == pytest.approx(
        cross_entropy(logits, targets).objective.item()
    )
    right = (logits.argmax(-1) == targets)[:, :-1].double().mean()
    assert found["depths"][-2]["accuracy"] == pytest.approx(right.item())
    assert found["words"] == [*"You a"]
    best = logits[0, 2].softmax(-1).max(-1)
    assert found["guesses"][-1][2][1] == pytest.approx(best.values.item(), rel=1e-5)
    names = ["embedding", "blocks.0", "blocks.1", "blocks.2", "(the commonest)"]
    assert [depth["after"] for depth in found["depths"]] == names


def test_a_net_without_a_stream_of_layers_tells_nothing() -> None:
    class Other(LanguageModel):
        def __init__(self) -> None:
            super().__init__(257, 12)
            self.table = nn.Embedding(257, 257)

        def forward(self, tokens: torch.Tensor, caches: object = None) -> torch.Tensor:
            return self.table(tokens)  # type: ignore[no-any-return]

    tokens = torch.zeros(4, 12, dtype=torch.long)
    assert study.look_into(Other(), ByteTokenizer(), tokens, tokens, 3) == {}
    few = tokens[: study.FEWEST_ROWS - 1]
    assert study.look_into(random_net(GPT2), ByteTokenizer(), few, few, 3) == {}


def test_ridge_is_least_squares_with_rows_for_the_penalty() -> None:
    random = np.random.default_rng(0)
    features, classes = random.normal(size=(60, 5)), random.integers(3, size=60)
    weights = study.fit_ridge(torch.from_numpy(features), torch.from_numpy(classes), 3)
    penalty = study.RIDGE * 60 * features.var(0).mean()
    rows = np.concatenate([np.hstack([features, np.ones((60, 1))]), np.sqrt(penalty) * np.eye(6)])
    wanted = np.concatenate([np.eye(3)[classes], np.zeros((6, 3))])
    np.testing.assert_allclose(weights, np.linalg.lstsq(rows, wanted, rcond=None)[0], atol=1e-9)


def test_a_probe_finds_what_is_a_linear_map_and_nothing_in_noise() -> None:
    torch.manual_seed(0)
    features = torch.randn(4000, 8)
    classes = (features @ torch.randn(8, 3)).argmax(-1)
    assert study.probe_accuracy(features, classes, 3000, 3) > 0.9
    coin = torch.randint(2, (4000,))
    assert study.probe_accuracy(features, coin, 3000, 3) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e38])
def test_a_probe_of_features_that_are_all_equal_knows_the_commonest_class(value: float) -> None:
    classes = torch.tensor([0, 0, 1] * 20)
    features = torch.full((60, 4), value)
    assert study.probe_accuracy(features, classes, 30, 3) == pytest.approx(2 / 3)


def test_letters_and_ends_of_words_are_those_of_the_text() -> None:
    tokenizer = ByteTokenizer()
    ids = torch.from_numpy(tokenizer.encode(["The owl, 7!"])[0])[None]
    asked = study.questions(tokenizer, ids[:, :-1], ids[:, 1:])
    letter, after, ends = asked.values()
    classes = "".join("vco"[n] for n in letter[0].tolist())
    assert classes == "ccvo" + "vcc" + "ooo"  # T h e _ o w l , _ 7
    assert letter[0, 1:].tolist() == after[0, :-1].tolist()
    assert [place for place, end in enumerate(ends[0].tolist()) if end] == [2, 6, 7, 8, 9]
    assert study.letter_class(" Apple") == 0
    assert study.letter_class("") == 2
