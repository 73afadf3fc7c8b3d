"""Training state -> file and back: whole, verified, and never run as code."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtemplate import checkpoint as files
from lmtemplate.errors import CheckpointError, ConfigError, DiskError
from lmtemplate.models import GPT
from tests.runs import contents, equal

SIZES = {"vocab_size": 11, "block_size": 8}
NET = {
    "class_path": "lmtemplate.models.GPT",
    "init_args": {"n_layer": 1, "n_head": 2, "n_embd": 8},
}


def state(step: int = 1, **more: Any) -> dict[str, Any]:
    """What the smallest checkpoint holds."""
    return {"state_dict": {"net.a": torch.arange(6.0).view(2, 3)}, "global_step": step, **more}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        files.write(state(step), run / "checkpoints" / files.file_name(step))


def flip_bit(path: Path, place: float = 0.5) -> None:
    """Turn one bit at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


class Evil:
    """What a pickle may hold: a call, run by whoever loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = state(3, text="ü", nested={"a": [1, (2.5, None)], "b": torch.tensor([True])})
    files.write(written, tmp_path / "a.ckpt")
    assert equal(files.read(tmp_path / "a.ckpt"), written)


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


@pytest.mark.parametrize("content", [[1, 2], {"model": 1}])
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="has no state_dict"):
        files.read(tmp_path / "a.ckpt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*a\.ckpt"):
        files.read(tmp_path / "a.ckpt")


def test_an_address_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="download"):
        files.read(files.resolve(tmp_path, "https://example.org/a.ckpt"))


def test_steps_are_listed_ascending_and_nothing_else_is(tmp_path: Path) -> None:
    save(tmp_path, 20, 3, 1_000_000_000)
    (tmp_path / "checkpoints" / "step-7.ckpt").touch()
    (tmp_path / "checkpoints" / "step-000000009.ckpt.bak").touch()
    assert files.steps_saved(tmp_path) == [3, 20, 1_000_000_000]


def test_pruning_keeps_the_best_and_the_newest_two(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    files.write_best(tmp_path, 2, 1.5)
    files.prune(tmp_path, newest=5)
    assert files.steps_saved(tmp_path) == [2, 4, 5]


def test_pruning_leaves_later_steps_alone_and_does_not_count_them(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 8, 9)
    files.write_best(tmp_path, 1, 1.5)
    files.prune(tmp_path, newest=4)
    assert files.steps_saved(tmp_path) == [1, 3, 4, 8, 9]


@pytest.mark.parametrize(("keep", "left"), [(1, [3]), (2, [2, 3]), (9, [1, 2, 3])])
def test_pruning_keeps_as_many_as_it_is_told(tmp_path: Path, keep: int, left: list[int]) -> None:
    save(tmp_path, 1, 2, 3)
    files.prune(tmp_path, newest=3, keep=keep)
    assert files.steps_saved(tmp_path) == left


def test_pruning_keeps_the_checksums_of_what_stays(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    files.prune(tmp_path, newest=3)
    sums = (tmp_path / "checkpoints" / "SHA256SUMS").read_text()
    assert [line.split()[1] for line in sums.splitlines()] == [
        "step-000000002.ckpt",
        "step-000000003.ckpt",
    ]


def test_pruning_leaves_milestones_alone(tmp_path: Path) -> None:
    for step in (0, 1, 2, 3):
        files.write(state(step), tmp_path / "checkpoints/milestones" / files.file_name(step))
    save(tmp_path, 1, 2, 3)
    before = contents(tmp_path / "checkpoints" / "milestones")
    files.prune(tmp_path, newest=3)
    assert contents(tmp_path / "checkpoints" / "milestones") == before


def test_best_is_what_a_later_process_reads(tmp_path: Path) -> None:
    assert files.read_best(tmp_path) is None
    files.write_best(tmp_path, 7, 1.25)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 7, "val_loss": 1.25, "file": "step-000000007.ckpt"}
    assert files.read_best(tmp_path) == best


def test_best_latest_and_paths_are_found(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    files.write_best(tmp_path, 2, 1.5)
    assert files.resolve(tmp_path, "best").name == "step-000000002.ckpt"
    assert files.resolve(tmp_path, "latest").name == "step-000000003.ckpt"
    assert files.resolve(tmp_path, "a/b.ckpt") == Path("a/b.ckpt")


def test_without_a_validation_the_latest_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    assert files.resolve(tmp_path, "best").name == "step-000000002.ckpt"


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        files.resolve(tmp_path / "none", "best")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        files.resolve(tmp_path, "latest")


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_an_unused_directory_begins_at_step_0(tmp_path: Path, mode: files.ResumeMode) -> None:
    assert files.resume_from(tmp_path, mode) is None
    assert files.resume_from(tmp_path / "new", mode) is None
    assert not (tmp_path / "new").exists()


def test_a_used_directory_is_never_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match=r"--resume auto.*--run_dir"):
        files.resume_from(tmp_path, "never")


def test_must_wants_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        files.resume_from(tmp_path, "must")


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_the_newest_sound_checkpoint_is_continued(
    tmp_path: Path, mode: files.ResumeMode, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5, 10, 15)
    flip_bit(tmp_path / "checkpoints" / "step-000000015.ckpt")
    path = files.resume_from(tmp_path, mode)
    assert path == tmp_path / "checkpoints" / "step-000000010.ckpt"
    assert "step-000000015.ckpt is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    tmp_path: Path, mode: files.ResumeMode
) -> None:
    save(tmp_path, 5, 10)
    for step in (5, 10):
        flip_bit(tmp_path / "checkpoints" / files.file_name(step))
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        files.resume_from(tmp_path, mode)


def test_nested_settings_are_flattened_to_their_key_paths() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}
    assert files.flatten(nested) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_settings_that_differ_are_named_with_both_values() -> None:
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert files.differences(before, now) == {"a.c": (2, 5), "d": (3, None), "e": (None, 4)}


def described(**changes: Any) -> dict[str, Any]:
    """A checkpoint's description of its run."""
    sizes = {**SIZES, "tokenizer": "{}", "fingerprint": "ab"}
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
    files.check_same_model_and_data(described(), described(**same))


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
        files.check_same_model_and_data(described(), described(**change))
    assert named in str(refusal.value)


def test_the_same_tokenizer_may_read_the_data_and_no_other(tmp_path: Path) -> None:
    files.check_tokenizer(described(), "{}", tmp_path)
    for checkpoint in (described(tokenizer="[]"), {"state_dict": {}}):
        with pytest.raises(CheckpointError, match=f"another tokenizer than the text in {tmp_path}"):
            files.check_tokenizer(checkpoint, "{}", tmp_path)


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
    built = files.build_net(net_state(net, **described()))
    tokens = torch.randint(11, (2, 8))
    assert torch.equal(built(tokens), net.eval()(tokens))
    assert not built.training


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"n_embd": 16}, r"\w is \(8, 8\) there, \(16, 16\) here"), ({"n_layer": 2}, "missing")],
)
def test_weights_that_do_not_fit_are_named(changes: dict[str, int], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        files.load_net(small_net(1, **changes), net_state(small_net(1)))


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
        files.build_net(checkpoint)
    assert not canary.exists()
    assert type(files.build_net(checkpoint, ["stranger"])).__name__ == "Net"
    assert canary.exists()


@pytest.mark.parametrize("class_path", ["lmtemplate.run.write_text", "lmtemplate.metrics.Metric"])
def test_a_checkpoint_names_a_language_model_and_nothing_else(class_path: str) -> None:
    description = described()
    description["config"]["model"]["net"]["class_path"] = class_path
    with pytest.raises(CheckpointError, match="is not a LanguageModel"):
        files.build_net(net_state(small_net(1), **description))


def test_a_checkpoint_without_a_description_builds_nothing() -> None:
    with pytest.raises(CheckpointError, match="does not describe its net"):
        files.build_net(net_state(small_net(1)))


def test_a_class_that_does_not_exist_is_a_mistake_not_a_crash() -> None:
    description = described()
    description["config"]["model"]["net"]["class_path"] = "lmtemplate.models.Gone"
    with pytest.raises(CheckpointError, match="Gone"):
        files.build_net(net_state(small_net(1), **description))


def test_settings_that_the_class_no_longer_has_are_a_mistake_not_a_crash() -> None:
    with pytest.raises(CheckpointError, match="n_wings"):
        files.build_net(net_state(small_net(1), **described(net={"n_wings": 2})))
