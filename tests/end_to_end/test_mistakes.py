"""What a user can get wrong -> one line that says what, where and what to do, and an exit code."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmtemplate.__main__ import run as run_words
from tests.conftest import TINY, Command, Result
from tests.runs import contents

Refused = Callable[..., str]


def check_line(mistake: Result, code: int) -> str:
    """The message, if the mistake ended with this code and in one line."""
    assert mistake.code == code, mistake.error
    assert len(mistake.error.strip().splitlines()) == 1
    assert "Traceback" not in mistake.error
    assert len(mistake.error) < 600
    return mistake.error


@pytest.fixture
def refused(fit: Command, tmp_path: Path) -> Refused:
    """Message of a `fit` that has to be refused: `refused(code, *flags)`; it makes no directory."""

    def call(code: int, *flags: object) -> str:
        message = check_line(fit(tmp_path / "run", *flags), code)
        assert not (tmp_path / "run").exists()
        return message

    return call


def test_heads_that_do_not_divide_the_width_name_a_width_that_works(refused: Refused) -> None:
    message = refused(2, "--model.net.n_embd=30", "--model.net.n_head=4")
    assert "model.net.n_embd=30" in message
    assert "28, 32" in message


@pytest.mark.slow
def test_an_odd_head_size_is_refused_by_name(refused: Refused) -> None:
    assert "model.net.n_embd" in refused(2, "--model.net.n_embd=6", "--model.net.n_head=2")


IMPOSSIBLE = [  # the first three are fast tests
    ("--model.net.n_head=0", "n_head"),
    ("--model.optimizer.lr=-1", "lr"),
    ("--data.batch_size=0", "data.batch_size"),
    ("--model.net.n_embd=0", "n_embd"),
    ("--model.net.dropout=1.5", "dropout"),
    ("--trainer.val_check_interval=0", "trainer.val_check_interval"),
    ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
    ("--trainer.log_every_n_steps=0", "log_every_n_steps"),
    ("--trainer.devices=0", "devices"),
    ("--trainer.accelerator=abacus", "accelerator"),
    ("--trainer.strategy=sideways", "strategy"),
    ("--trainer.profiler=xla", "expected one of simple"),
]


@pytest.mark.parametrize(
    ("flag", "key"),
    [*IMPOSSIBLE[:3], *(pytest.param(*row, marks=pytest.mark.slow) for row in IMPOSSIBLE[3:])],
)
def test_a_value_out_of_range_is_refused_by_name(refused: Refused, flag: str, key: str) -> None:
    assert key in refused(2, flag)


def test_a_warmup_longer_than_the_run_is_refused(refused: Refused) -> None:
    message = refused(2, "--model.schedule.warmup_steps=13")
    assert "model.schedule.warmup_steps=13 is longer than the run of 12 steps" in message


@pytest.mark.slow
def test_a_validation_that_would_never_happen_is_refused(refused: Refused) -> None:
    message = refused(2, "--trainer.limit_val_batches=0")
    assert "trainer.limit_val_batches=0: validation would never happen" in message


def test_a_monitor_that_is_never_logged_is_refused(refused: Refused) -> None:
    message = refused(2, "--early_stopping.monitor=val/los")
    assert "early_stopping.monitor: 'val/los' is never logged" in message
    assert "val/loss" in message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--early_stopping.mode=up", "mode (command line): expected one of min, max, got up"),
        ("--early_stopping.monitor=val/accuracy", "val/accuracy is the higher the better"),
        (
            "--early_stopping.monitor=val/multiclass_accuracy "
            '--model.metrics=[{"class_path":"torchmetrics.classification.MulticlassAccuracy",'
            '"init_args":{"num_classes":4}}]',
            "val/multiclass_accuracy is the higher the better",
        ),
        (
            "--model.schedule=torch.optim.lr_scheduler.OneCycleLR --model.schedule.max_lr=0.1 "
            "--model.schedule.total_steps=11",
            "model.schedule.total_steps=11 is shorter than the run of 12 steps",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    refused: Refused, flags: str, says: str
) -> None:
    assert says in refused(2, *flags.split())


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_lowest_val_loss_and_nothing_else(
    refused: Refused,
) -> None:
    assert "monitor" in refused(2, "--checkpoint.monitor=val/accuracy")


@pytest.mark.slow
def test_two_lengths_at_once_are_refused(refused: Refused) -> None:
    message = refused(2, "--max_epochs=1")
    assert "trainer.max_steps=12 and max_epochs=1" in message


@pytest.mark.slow
def test_no_length_at_all_is_refused(refused: Refused) -> None:
    message = refused(2, "--trainer.max_steps=-1")
    assert "the run has no length" in message
    assert "--trainer.max_steps" in message


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--trainer.max_steps=0", "--trainer.max_steps=-2"])
def test_a_length_is_above_0(refused: Refused, flag: str) -> None:
    assert "trainer.max_steps" in refused(2, flag)


@pytest.mark.slow
def test_a_step_that_is_no_multiple_of_a_batch_names_the_nearest(refused: Refused) -> None:
    message = refused(2, "--tokens_per_step=200")
    assert "tokens_per_step=200 is not a multiple" in message
    assert "nearest that is: 192" in message


@pytest.mark.slow
def test_two_sizes_of_a_step_are_refused(refused: Refused) -> None:
    flags = ["--tokens_per_step=128", "--trainer.accumulate_grad_batches=2"]
    assert "keep one" in refused(2, *flags)


def test_a_used_run_directory_is_refused_and_untouched(fit: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert "holds a run already" in check_line(fit(tmp_path / "run"), 2)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_directory_that_is_a_file_is_refused(fit: Command, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "File exists; name another folder" in check_line(fit(tmp_path / "run"), 5)


# ---- text and shards


@pytest.fixture
def prepare(command: Command, tmp_path: Path) -> Callable[..., Result]:
    """`prepare(text, *flags)` into tmp_path / "data"."""

    def call(text: bytes, *flags: object) -> Result:
        (tmp_path / "text.txt").write_bytes(text)
        words = ["--input", tmp_path / "text.txt", "--output", tmp_path / "data"]
        result = command("prepare", *words, *flags)
        if result.code:
            assert {path.name for path in tmp_path.iterdir()} <= {"text.txt", "tokenizer.json"}
        return result

    return call


@pytest.mark.parametrize("text", [b"", b" \n\n"])
def test_an_empty_corpus_is_refused(prepare: Callable[..., Result], text: bytes) -> None:
    assert "holds no text" in check_line(prepare(text), 8)


def test_invalid_utf8_is_named_with_byte_and_line(prepare: Callable[..., Result]) -> None:
    message = check_line(prepare(b"one\ntwo\ncaf\xe9 three\n"), 8)
    assert "text.txt: invalid UTF-8 at byte 11 (0xe9), line 3" in message


def test_a_text_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    words = ["--input", tmp_path / "none.txt", "--output", tmp_path / "data"]
    assert "none.txt" in check_line(command("prepare", *words), 8)


def test_an_unknown_tokenizer_is_refused(prepare: Callable[..., Result]) -> None:
    assert "--tokenizer bpee" in check_line(prepare(b"some text\n" * 50, "--tokenizer=bpee"), 2)


@pytest.fixture
def damaged(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus, to damage."""
    return shutil.copytree(corpus, tmp_path / "damaged")


def test_a_corpus_that_is_not_prepared_names_the_command(refused: Refused, tmp_path: Path) -> None:
    message = refused(8, "--data.path", tmp_path / "none")
    assert "lmtemplate prepare --input" in message


@pytest.mark.slow
def test_a_split_smaller_than_a_block_is_refused(refused: Refused) -> None:
    message = refused(8, "--data.block_size=9000")
    assert "the val split of" in message
    assert "9,001" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_is_named(refused: Refused, damaged: Path, split: str) -> None:
    (shard,) = damaged.glob(f"{split}_*.bin")
    shard.unlink()
    assert f"shard {shard} is missing" in refused(8, "--data.path", damaged)


# ---- numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--trainer.log_every_n_steps=1", "--guard.skips=1"], "the gradient"),
        # a step's loss is that before its update
        (["--trainer.val_check_interval=1"], "val/loss"),
    ],
    ids=["training", "validation"],
)
def test_a_loss_that_is_not_finite_ends_the_run(
    fit: Command, tmp_path: Path, flags: list[str], name: str
) -> None:
    run = tmp_path / "run"
    flags = [*flags, "--model.optimizer=SGD", "--model.optimizer.lr=1e38"]
    flags += ["--model.net.logit_cap=null", "--model.schedule.warmup_steps=0"]
    message = check_line(fit(run, *flags), 4)
    assert re.match(rf"{name} (is|was) (nan|inf) .*step \d+", message)
    assert "Before: step 1: loss 5.5" in message
    assert "Lower the learning rate" in message
    assert (run / "summary.json").is_file()
    for path in (run / "checkpoints").glob("*.ckpt"):  # milestones are saved before the check
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(bool(weight.isfinite().all()) for weight in weights), path.name


# ---- verbs that read a run


@pytest.mark.parametrize("verb", ["validate", "test", "generate"])
def test_a_run_that_is_not_there_is_named(command: Command, tmp_path: Path, verb: str) -> None:
    message = check_line(command(verb, tmp_path / "none"), 3)
    assert f"no run {tmp_path / 'none'}" in message


@pytest.mark.parametrize("verb", ["validate", "test", "generate"])
def test_a_run_has_to_be_named(command: Command, verb: str) -> None:
    assert "run" in check_line(command(verb), 2).lower()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["validate", "generate"])
def test_a_checkpoint_that_is_not_there_is_named(
    command: Command, finished: Path, tmp_path: Path, verb: str
) -> None:
    path = tmp_path / "none.ckpt"
    assert str(path) in check_line(command(verb, finished, "--checkpoint", path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["validate", "generate"])
def test_a_damaged_checkpoint_is_refused(
    command: Command, finished: Path, tmp_path: Path, verb: str
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    path = copy / "checkpoints/step-000000012.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "is damaged" in check_line(command(verb, copy), 3)


@pytest.mark.slow
def test_a_misspelt_flag_of_validate_is_one_line(command: Command, finished: Path) -> None:
    assert "batchsize" in check_line(command("validate", finished, "--data.batchsize=2"), 2)


@pytest.mark.slow
def test_a_run_without_its_config_cannot_be_validated(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "config.yaml").unlink()
    assert "config.yaml" in check_line(command("validate", copy), 2)


@pytest.mark.slow
def test_another_architecture_cannot_be_validated(command: Command, finished: Path) -> None:
    message = check_line(command("validate", finished, "--model.net.n_embd=64"), 3)
    assert "another architecture" in message


@pytest.mark.slow
def test_text_of_another_tokenizer_cannot_be_validated(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    data = tmp_path / "other"
    run_words(["prepare", "--input", "grammar:300", "--output", str(data), "--tokenizer", "char"])
    message = check_line(command("validate", finished, "--data.path", data), 3)
    assert f"another tokenizer than the text in {data}" in message


@pytest.mark.slow
def test_a_device_that_is_not_there_is_refused(command: Command, finished: Path) -> None:
    assert "device" in check_line(command("generate", finished, "--device=abacus"), 2)


@pytest.mark.slow
def test_the_program_itself_prints_one_line_and_exits(corpus: Path, tmp_path: Path) -> None:
    words = ["--data.path", str(corpus), *TINY, "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "lmtemplate", "fit", *words, "--trainer.max_stepz=5"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*did you mean trainer\.max_steps\?.*\n", done.stderr)
    assert not (tmp_path / "run").exists()
