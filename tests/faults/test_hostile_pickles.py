"""A checkpoint with a call or a lie in its bytes -> refused in one line; nothing of it runs.

Python's audit hook watches (spy.py); the first two tests show that it would see.
"""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmtemplate.checkpoint import files
from lmtemplate.errors import CheckpointError
from tests.conftest import Command
from tests.faults import payloads
from tests.faults.conftest import LAST, READERS, vouch_for
from tests.faults.spy import watching
from tests.runs import check_line

Refusal = Callable[[Path], str]
FORCE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def test_the_spy_would_see_what_careless_loading_does(tmp_path: Path, canary: Path) -> None:
    calls = payloads.calls(canary)
    for name, event in (
        ("posix:system", "os.system"),
        ("subprocess:Popen", "subprocess.Popen"),
        ("builtins:eval", "exec"),
        ("builtins:__import__", "import"),
        ("importlib:import_module", "exec"),
        ("pathlib:Path.touch", "pickle.find_class"),
    ):
        with watching(tmp_path) as events:
            try:
                result = pickle.loads(payloads.dumps(calls[name], 4))
            except Exception:
                result = None
            for end in ("wait", "close"):
                getattr(result, end, lambda: None)()
        assert any(line.startswith(event) for line in events), (name, events)
        sys.modules.pop("canary_module", None)
    assert canary.exists()


def test_the_spy_would_see_what_leaves_a_folder_however_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    link, outside = tmp_path / "inside/link", tmp_path / "outside"
    with watching(tmp_path / "inside") as events, watching(tmp_path) as others:
        link.symlink_to(outside)
        assert events == []
        link.write_text("x")
        outside.rename(tmp_path / "elsewhere")
        link.unlink()  # which is of that folder, whatever it points to
    assert [line.split()[0] for line in events] == ["open", "os.rename"]
    assert others == []


@pytest.fixture
def refusal(tmp_path: Path, canary: Path) -> Callable[[Path], str]:
    """Message of `read`, which has to refuse a file; nothing happens."""

    def call(path: Path) -> str:
        with watching(tmp_path) as events, pytest.raises(CheckpointError) as refused:
            files.read(path)
        assert events == []
        assert not canary.exists()
        assert "\n" not in str(refused.value)
        assert "weights_only" not in str(refused.value)  # torch's hint to switch it off
        return str(refused.value)

    return call


@pytest.fixture(params=["0", "1"], ids=["", "forced"])
def force(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own switch back to unpickling, off and on."""
    monkeypatch.setenv(FORCE, request.param)


FIVE = (
    "posix:system",
    "subprocess:Popen",
    "builtins:eval",
    "builtins:__import__",
    "pathlib:Path.touch",
)
NAMES = [
    pytest.param(name, marks=() if name in FIVE else pytest.mark.slow)
    for name in payloads.calls(Path("canary"))
]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_a_checkpoint_is_refused_by_name(
    canary: Path, tmp_path: Path, refusal: Refusal, name: str
) -> None:
    call = payloads.calls(canary)[name]
    payloads.archive(tmp_path / "x.ckpt", payloads.dumps({"state_dict": {"net.a": call}}))
    assert "refused" in refusal(tmp_path / "x.ckpt")


@pytest.mark.parametrize("place", payloads.PLACES)
def test_a_call_is_found_wherever_it_stands(
    canary: Path, tmp_path: Path, refusal: Refusal, place: str
) -> None:
    content = payloads.PLACES[place](payloads.calls(canary)["posix:system"])
    payloads.archive(tmp_path / "x.ckpt", payloads.dumps(content))
    assert "contains the global posix.system" in refusal(tmp_path / "x.ckpt")


@pytest.mark.slow
@pytest.mark.usefixtures("force")
@pytest.mark.parametrize("known", [False, True], ids=["", "with its checksum"])
@pytest.mark.parametrize("container", payloads.CONTAINERS)
def test_no_format_that_torch_takes_gets_past(
    canary: Path, tmp_path: Path, refusal: Refusal, container: str, known: bool
) -> None:
    path = tmp_path / "x.ckpt"
    payloads.CONTAINERS[container](path, payloads.calls(canary)["posix:system"])
    if known:
        vouch_for(path)
    refusal(path)


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["", "with its checksum"])
@pytest.mark.parametrize("liar", payloads.LIARS)
def test_a_file_that_lies_about_itself_is_refused(
    tmp_path: Path, refusal: Refusal, liar: str, known: bool
) -> None:
    path = tmp_path / "x.ckpt"
    payloads.LIARS[liar](path)
    if known:
        vouch_for(path)
    refusal(path)


def test_a_file_without_a_lie_is_read(tmp_path: Path) -> None:
    """What refuses everything proves nothing: the same archive, with honest sizes."""
    data = payloads.tensor_of(4, 0, (2, 2), (2, 1))
    payloads.archive(tmp_path / "x.ckpt", data, **{"data/0": bytes(16)})
    assert torch.equal(files.read(tmp_path / "x.ckpt")["state_dict"]["a"], torch.zeros(2, 2))


class Touch:
    """Pickles as a call that leaves the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


# the places where each reader looks; all others: test_a_call_is_found_wherever_it_stands
LOOKED_AT = {
    "generate": "config",
    "validate": "evil",
    "resume": "optimizer_states",
    "init_from": "loops",
}


@pytest.mark.slow
@pytest.mark.usefixtures("force")
@pytest.mark.parametrize(("reader", "place"), LOOKED_AT.items())
def test_no_verb_runs_what_a_checkpoint_holds(
    ask: Command, run: Path, canary: Path, reader: str, place: str
) -> None:
    sound = torch.load(run / LAST, weights_only=True)
    torch.save({**sound, place: Touch(canary)}, run / LAST)
    vouch_for(run / LAST)
    message = check_line(ask(*READERS[reader](run)), 3)
    assert "contains the global posix.system" in message
