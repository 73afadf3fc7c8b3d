"""A checkpoint -> the net it describes; what does not fit is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmtemplate.checkpoint.compatibility import (
    announce,
    build_net,
    check_same_model_and_data,
    check_same_tokenizer,
    differences,
    flatten,
    load_net,
)
from lmtemplate.data.tokenizer import CharTokenizer
from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.models import GPT

CHARS = CharTokenizer("abcdefghi").to_json()  # and unknown, and end of text: 11 ids
SIZES = {"vocab_size": 11, "block_size": 8}
NET = {
    "class_path": "lmtemplate.models.GPT",
    "init_args": {"n_layer": 1, "n_head": 2, "n_embd": 8},
}


def test_nested_settings_are_flattened_to_their_key_paths() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_settings_that_differ_are_named_with_both_values() -> None:
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(before, now) == {"a.c": (2, 5), "d": (3, None), "e": (None, 4)}


def described(**changes: Any) -> dict[str, Any]:
    """A checkpoint's description of its run."""
    sizes = {**SIZES, "tokenizer": CHARS, "fingerprint": "ab"}
    net = {**NET, "init_args": {**NET["init_args"], **changes.pop("net", {})}}  # type: ignore[dict-item]
    optimizer = {
        "class_path": changes.pop("optimizer", "lmtemplate.optimizers.AdamW"),
        "init_args": {"lr": changes.pop("lr", 1)},
    }
    config = {
        "seed_everything": changes.pop("seed", 1),
        "model": {"net": net, "optimizer": optimizer},
    }
    return {"config": config, **sizes, **changes}


@pytest.mark.parametrize("same", [{}, {"lr": 2}])
def test_the_same_model_and_data_may_continue(same: dict[str, Any]) -> None:
    check_same_model_and_data(described(), described(**same))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"net": {"n_layer": 3}}, "model.net.init_args.n_layer: 1 -> 3"),
        (
            {"optimizer": "torch.optim.SGD"},
            "model.optimizer.class_path: lmtemplate.optimizers.AdamW -> torch.optim.SGD",
        ),
        ({"seed": 2}, "seed_everything: 1 -> 2"),
        ({"fingerprint": "cd"}, "data.fingerprint: ab -> cd"),
        ({"block_size": 16}, "data.block_size: 8 -> 16"),
        ({"vocab_size": 12}, "data.vocab_size: 11 -> 12"),
        ({"tokenizer": "[]"}, "data.tokenizer: .. -> another"),
    ],
)
def test_another_model_or_corpus_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        check_same_model_and_data(described(), described(**change))
    assert named in str(refusal.value)


def test_what_changes_the_last_digits_besides_settings_is_one_line_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environments = [{"versions": {"torch": "2"}, "hardware": {"threads": n}} for n in (1, 2)]
    before, same, other = (
        described(global_step=7, environment=environments[number]) for number in (0, 0, 1)
    )
    assert announce(tmp_path, before, same) == {"step": 7, "changed": {}, "environment": {}}
    assert len(capsys.readouterr().out.splitlines()) == 1
    start = announce(tmp_path, before, other)
    assert start == {"step": 7, "changed": {}, "environment": {"hardware.threads": (1, 2)}}
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  not bit for bit as it would have gone on before: hardware.threads: 1 -> 2"
    ]


def test_the_same_tokenizer_may_read_the_data_and_no_other(tmp_path: Path) -> None:
    check_same_tokenizer(described(), CHARS, tmp_path)
    for checkpoint in (described(tokenizer="[]"), {"state_dict": {}}):
        with pytest.raises(CheckpointError, match=f"another tokenizer than the text in {tmp_path}"):
            check_same_tokenizer(checkpoint, CHARS, tmp_path)


def net_state(net: GPT, **description: Any) -> dict[str, Any]:
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    return {"state_dict": weights, "global_step": 1, **description}


def small_net(seed: int, **changes: int) -> GPT:
    torch.manual_seed(seed)
    net = GPT(**SIZES, **{**NET["init_args"], **changes})  # type: ignore[dict-item, arg-type]
    torch.nn.init.normal_(net.head.weight)
    return net


def test_a_net_is_built_from_its_checkpoint_alone() -> None:
    net = small_net(1)
    built = build_net(net_state(net, **described()))
    tokens = torch.randint(11, (2, 8))
    assert torch.equal(built(tokens), net.eval()(tokens))
    assert not built.training


def test_a_net_and_a_tokenizer_of_other_ids_do_not_belong_together() -> None:
    more = CharTokenizer("abcdefghijk").to_json()
    with pytest.raises(CheckpointError, match="its tokenizer has 13 ids, its net 11"):
        build_net(net_state(small_net(1), **described(tokenizer=more)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_weights_that_are_nested_tensors_are_named() -> None:
    state = net_state(small_net(1))
    name = next(iter(state["state_dict"]))
    nested = torch.nested.as_nested_tensor([torch.zeros(1), torch.zeros(2)])
    state["state_dict"][name] = nested
    with pytest.raises(CheckpointError, match="no plain tensors"):
        load_net(small_net(1), state)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"n_embd": 16}, r"\w is \(8, 8\) there, \(16, 16\) here"), ({"n_layer": 2}, "missing")],
)
def test_weights_that_do_not_fit_are_named(changes: dict[str, int], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_net(small_net(1, **changes), net_state(small_net(1)))


def foreign(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A checkpoint whose net is of a package of the user's, and what importing that would leave."""
    canary = tmp_path / "canary"
    (tmp_path / "stranger.py").write_text(
        f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
        "from lmtemplate.models import GPT\nclass Net(GPT): pass\n"
    )
    description = described()
    description["config"]["model"]["net"]["class_path"] = "stranger.Net"
    return net_state(small_net(1), **description), canary


def test_a_checkpoint_cannot_make_us_import_what_is_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, canary = foreign(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="add --allow stranger"):
        build_net(checkpoint)
    assert not canary.exists()
    assert type(build_net(checkpoint, ["stranger"])).__name__ == "Net"
    assert canary.exists()


def test_a_net_that_lies_elsewhere_is_a_matter_of_the_path(tmp_path: Path) -> None:
    description = described()
    description["config"]["model"]["net"]["class_path"] = "not_here.Net"
    with pytest.raises(ConfigError, match=r"cannot import 'not_here.Net': No module named 'not_h"):
        build_net(net_state(small_net(1), **description), ["not_here"])


@pytest.mark.parametrize(
    "class_path", ["lmtemplate.run_dir.write_text", "lmtemplate.metrics.Metric"]
)
def test_a_checkpoint_names_a_language_model_and_nothing_else(class_path: str) -> None:
    description = described()
    description["config"]["model"]["net"]["class_path"] = class_path
    with pytest.raises(CheckpointError, match="is not a LanguageModel"):
        build_net(net_state(small_net(1), **description))


def test_a_checkpoint_without_a_description_builds_nothing() -> None:
    with pytest.raises(CheckpointError, match="does not describe its net"):
        build_net(net_state(small_net(1)))


def test_a_class_that_does_not_exist_is_a_mistake_not_a_crash() -> None:
    description = described()
    description["config"]["model"]["net"]["class_path"] = "lmtemplate.models.Gone"
    with pytest.raises(ConfigError, match=r"cannot import .*Gone"):
        build_net(net_state(small_net(1), **description))


def test_settings_that_the_class_no_longer_has_are_a_mistake_not_a_crash() -> None:
    with pytest.raises(CheckpointError, match="n_wings"):
        build_net(net_state(small_net(1), **described(net={"n_wings": 2})))


@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda weight: weight.to("meta")])
def test_weights_that_are_no_plain_tensors_are_one_line(change: Callable[[Tensor], Tensor]) -> None:
    net = nn.Linear(2, 2)
    weights = {f"net.{name}": change(value) for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="no plain tensors"):
        load_net(net, {"state_dict": weights})


@pytest.mark.parametrize("kind", [torch.bool, torch.uint16, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_another_kind_of_number_are_named(kind: torch.dtype) -> None:
    net = nn.Linear(2, 2)
    weights = {f"net.{name}": value.to(kind) for name, value in net.state_dict().items()}
    says = rf"bias is \(2,\) of {kind} there, \(2,\) here"
    with pytest.raises(CheckpointError, match=says):
        load_net(net, {"state_dict": weights})


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_fit(kind: torch.dtype) -> None:
    net, halves = nn.Linear(2, 2), torch.full((2, 2), 0.5, dtype=kind)
    load_net(net, {"state_dict": {"net.weight": halves, "net.bias": halves[0]}})
    assert net.weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]
