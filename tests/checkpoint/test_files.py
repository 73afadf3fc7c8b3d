"""Training state -> file and back: whole, verified, and never run as code."""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtemplate.checkpoint import files
from lmtemplate.checkpoint.resume import resume_from
from lmtemplate.errors import CheckpointError, DiskError
from tests.runs import contents, equal, flip_bit, save, state


class Evil:
    """What a pickle may hold: a call, run by whoever loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = state(3, text="ü", nested={"a": [1, (2.5, None)], "b": torch.tensor([True])})
    files.write(written, tmp_path / "a.ckpt")
    read = files.read(tmp_path / "a.ckpt")
    assert equal({key: read[key] for key in written}, written)


def test_a_later_format_is_refused_with_the_version_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(files, "NEWEST_FORMAT", files.NEWEST_FORMAT + 1)
        later.setattr(files, "__version__", "9.1.0")
        save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"000001\.ckpt has format 2.* lmtemplate 9\.1\.0"):
        resume_from(tmp_path, "auto")


def test_anyone_can_load_it_with_weights_only(tmp_path: Path) -> None:
    files.write(state(3), tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 3


def test_the_checksums_are_sha256_as_sha256sum_prints_them(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    expected = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in ("step-000000001.ckpt", "step-000000002.ckpt")
    ]
    assert lines == expected


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert contents(tmp_path / "checkpoints").keys() == {"SHA256SUMS", "step-000000001.ckpt"}


def test_a_full_disk_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    files.write(state(1), path)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskError, match="No space left on device"):
        files.write(state(2), path)
    assert contents(tmp_path) == before
    assert files.damage(path) is None


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_one_flipped_bit_is_found(tmp_path: Path, place: float) -> None:
    files.write(state(), tmp_path / "a.ckpt")
    flip_bit(tmp_path / "a.ckpt", place)
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged \(sha256 is"):
        files.read(tmp_path / "a.ckpt")


def test_a_file_from_elsewhere_is_checked_by_the_sums_inside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(state(), path)
    assert files.damage(path) is None
    with zipfile.ZipFile(path) as archive:
        weights = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        start = weights.header_offset
    content = path.read_bytes()
    data = torch.arange(6.0).numpy().tobytes()
    flip_bit(path, (content.index(data, start) + 5) / (len(content) - 1))
    with pytest.raises(CheckpointError, match="fails its CRC"):
        files.read(path)


def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        files.read(path)


@pytest.mark.parametrize("known", [True, False], ids=["with a checksum", "without"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, known: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.ckpt"
    if known:
        files.write(state(payload=Evil(canary)), path)
    else:
        torch.save(state(payload=Evil(canary)), path)
    with pytest.raises(CheckpointError, match=r"is refused: it contains the global \w+\.system"):
        files.read(path)
    assert not canary.exists()


def test_weights_have_names(tmp_path: Path) -> None:
    files.write({**state(), "state_dict": {1: torch.eye(2)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="its state_dict is missing, or has another type"):
        files.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "moments",
    [
        {"exp_avg": torch.zeros(1).expand(10_000_000)},
        dict.fromkeys(range(500), torch.zeros(10_000)),
    ],
    ids=["repeated", "shared"],
)
def test_numbers_that_stand_for_many_more_are_refused(
    tmp_path: Path, moments: dict[Any, torch.Tensor]
) -> None:
    files.write({**state(), "optimizer_states": [moments]}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt is refused"):
        files.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("key", ["more", "config"])
def test_lists_that_repeat_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(files, "MOST_PARTS", 10_000)
    nest: list[Any] = []
    for _ in range(40):  # 40 lists, and 2^40 on the way through them
        nest = [nest, nest]
    files.write({**state(), key: {"nest": nest}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt is refused"):
        files.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [[1, 2], {"model": 1}])
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="its state_dict is missing"):
        files.read(tmp_path / "a.ckpt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*a\.ckpt"):
        files.read(tmp_path / "a.ckpt")


class Dressed:
    """A tensor as a file can give it attributes, of which some have the names of its methods."""

    def __init__(self, more: dict[str, Any]) -> None:
        self.more = more

    def __reduce__(self) -> tuple[Any, ...]:
        make, content = torch.ones(3)._reduce_ex_internal(2)  # type: ignore[attr-defined]
        return torch._tensor._rebuild_from_type_v2, (make, torch.Tensor, content, self.more)


@pytest.mark.parametrize("key", ["state_dict", "current_model_state", "x"])
def test_a_tensor_that_hides_its_methods_is_no_plain_tensor(tmp_path: Path, key: str) -> None:
    torch.save({**state(3), key: {"w": Dressed({"mine": 1})}}, tmp_path / "a.ckpt")
    files.read(tmp_path / "a.ckpt")
    hiding = Dressed({"is_floating_point": 5})
    for held in (hiding, [hiding], {hiding}, {hiding: 1}, Dressed({"mine": [hiding]})):
        torch.save({**state(3), key: {"w": held}}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match="only tensors and plain types load"):
            files.read(tmp_path / "a.ckpt")


def test_a_dictionary_that_hides_its_methods_is_no_plain_one(tmp_path: Path) -> None:
    weights: Any = torch.nn.Linear(2, 2).state_dict()
    torch.save({**state(3), "state_dict": weights}, tmp_path / "a.ckpt")
    files.read(tmp_path / "a.ckpt")
    weights.values = 5
    torch.save({**state(3), "state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="only tensors and plain types load"):
        files.read(tmp_path / "a.ckpt")


NAMELESS: list[tuple[str, Any]] = [
    ("current_model_state", {1: torch.ones(2)}),
    ("latest", {99: 5.4}),
    ("callbacks", {0: {}}),
    ("callbacks", {"RunEnd": torch.ones(3)}),
    ("optimizer_states", [torch.ones(0, 3)]),
    ("lr_schedulers", {"step": 1}),
    ("global_step", 2**63),
    ("length", {"steps": -1}),
]


@pytest.mark.parametrize(("key", "value"), NAMELESS)
def test_states_are_dictionaries_with_names(tmp_path: Path, key: str, value: Any) -> None:
    torch.save({**state(3), key: value}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=f"its {key} is missing, or has another type"):
        files.read(tmp_path / "a.ckpt")


def test_a_class_that_torch_allows_in_its_own_files_is_no_plain_type(tmp_path: Path) -> None:
    """Among them is DeviceMesh, which opens connections as it is made."""
    from torch.distributed.tensor import Shard

    known = torch.serialization.get_safe_globals()
    assert Shard in known
    torch.save({"state_dict": {}, "global_step": 1, "x": Shard(0)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="only tensors and plain types load"):
        files.read(tmp_path / "a.ckpt")
    assert {*torch.serialization.get_safe_globals()} == {*known}
