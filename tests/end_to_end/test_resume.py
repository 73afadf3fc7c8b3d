"""A run that was cut short and continued -> the run that never stopped, bit for bit."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lmtemplate.__main__ import run as run_words
from lmtemplate.module import LitLanguageModel
from lmtemplate.record import read_record
from tests.conftest import Command
from tests.runs import contents, curve, equal, load, steps, train

STEPS = 12
VALIDATED = 5  # and at 10, and at the end
COMBINATIONS = {  # each pair of settings occurs; what comes last wins on the command line
    "muon": ("MuonAdamW", 0, 1),
    "muon, 2 workers, accumulation 3": ("MuonAdamW", 2, 3),
    "adamw, 2 workers": ("AdamW", 2, 1),
    "adamw, accumulation 3": ("AdamW", 0, 3),
}
FAST = "muon"  # the others are slow
SEQUENCES = 24  # in the training split
PER_STEP = {1: 4, 3: 6}  # accumulation -> sequences
CUTS = {1: (8, 6), 3: (6, 8)}  # accumulation -> steps in the middle and at the end of a pass


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose training split is exactly 24 blocks of 16 tokens long."""
    folder = tmp_path_factory.mktemp("small")
    text = ("All men are created equal; the evidence is under review. " * 20)[: 24 * 16 + 100]
    (folder / "text.txt").write_text(text)
    words = ["--input", folder / "text.txt", "--output", folder / "data", "--tokenizer", "byte"]
    ratio = 100 / len(text)
    run_words(["prepare", *map(str, words), "--val_ratio", str(ratio)])
    return folder / "data"


@dataclass
class Uninterrupted:
    """A run from start to end, and what a power cut at some steps would have left of it."""

    run: Path
    accumulate: int
    flags: list[str]
    left: dict[int, Path]


@contextmanager
def copied_at(cuts: tuple[int, ...], run: Path, left: Path) -> Iterator[dict[int, Path]]:
    """Copy the run directory when these steps have been made."""
    copies = {step: left / str(step) for step in cuts}

    def copy(module: LitLanguageModel, *_: object) -> None:
        step = module.global_step
        if step in copies and not copies[step].exists():
            shutil.copytree(run, copies[step])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitLanguageModel, "on_train_batch_start", copy)
        yield copies


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(settings, id=name, marks=[pytest.mark.slow] if name != FAST else [])
        for name, settings in COMBINATIONS.items()
    ],
)
def uninterrupted(
    request: pytest.FixtureRequest, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    """Dropout, a schedule, validations that do not divide the run; saved at each logged step."""
    optimizer, workers, accumulate = request.param
    folder = tmp_path_factory.mktemp("uninterrupted")
    flags = [
        f"--model.optimizer=lmtemplate.optimizers.{optimizer}",
        "--model.net.dropout=0.2",
        f"--data.num_workers={workers}",
        f"--data.batch_size={PER_STEP[accumulate] // accumulate}",
        f"--trainer.accumulate_grad_batches={accumulate}",
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={VALIDATED}",
        "--checkpoint.every_minutes=1e-9",
    ]
    run = folder / "run"
    with copied_at((*CUTS[accumulate], VALIDATED), run, folder) as left:
        train(run, small_corpus, *flags)
    return Uninterrupted(run, accumulate, flags, left)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("middle of a pass", marks=pytest.mark.slow),
        pytest.param("end of a pass", marks=pytest.mark.slow),
        "validation",
    ],
)
def continued(
    request: pytest.FixtureRequest,
    uninterrupted: Uninterrupted,
    small_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The same run, continued from what was left at one of the steps."""
    middle, end = CUTS[uninterrupted.accumulate]
    cuts = {"middle of a pass": middle, "end of a pass": end, "validation": VALIDATED}
    left = uninterrupted.left[cuts[request.param]]
    run = shutil.copytree(left, tmp_path_factory.mktemp("continued") / "run")
    return train(run, small_corpus, *uninterrupted.flags, "--resume", "must")


def test_the_cuts_are_where_they_claim_to_be(uninterrupted: Uninterrupted) -> None:
    middle, end = CUTS[uninterrupted.accumulate]
    per_step = PER_STEP[uninterrupted.accumulate]
    assert (end * per_step) % SEQUENCES == 0
    assert (middle * per_step) % SEQUENCES != 0
    assert VALIDATED in steps(uninterrupted.run, "val/loss")
    for step, left in uninterrupted.left.items():
        assert load(left, step)["TokenData"] == {"sequences": step * per_step}


def test_a_continued_run_ends_bitwise_like_the_uninterrupted_one(
    uninterrupted: Uninterrupted, continued: Path
) -> None:
    one, other = load(uninterrupted.run, STEPS), load(continued, STEPS)
    for clocks in ("Throughput", "RunEnd"):
        assert one["callbacks"].pop(clocks).keys() == other["callbacks"].pop(clocks).keys()
    one["config"]["run_dir"] = other["config"]["run_dir"]
    assert one.keys() == other.keys()
    different = [key for key in one if not equal(one[key], other[key])]
    assert different in ([], ["loops"])  # Lightning's own counts of validations restart


@pytest.mark.parametrize("tag", ["val/loss", "train/loss", "optim/lr", "optim/grad_norm"])
def test_a_continued_curve_is_the_uninterrupted_one(
    uninterrupted: Uninterrupted, continued: Path, tag: str
) -> None:
    assert curve(continued, tag) == curve(uninterrupted.run, tag)


CONSTANT = [
    "--model.schedule=lmtemplate.schedules.Constant",
    "--model.optimizer=lmtemplate.optimizers.MuonAdamW",
    "--model.optimizer.lr=0.02",
    "--model.optimizer.weight_decay=0",
    "--model.net.dropout=0.2",
    "--trainer.log_every_n_steps=1",
]


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reached its 6 steps; the last validation is not a multiple of the interval."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return train(run, corpus, *CONSTANT, "--trainer.max_steps=6")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def go_on(fit: Command) -> Command:
    """Continue: `go_on(run, *flags)`."""
    return lambda run, *flags: fit(run, *CONSTANT, "--resume=auto", *flags)


@pytest.mark.slow
def test_a_finished_run_made_longer_equals_the_long_run(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    train(run, corpus, *CONSTANT, "--trainer.max_steps=12", "--resume=auto")
    long = train(tmp_path / "long", corpus, *CONSTANT, "--trainer.max_steps=12")
    for key in ("state_dict", "optimizer_states", "random_states", "TokenData"):
        assert equal(load(run, 12)[key], load(long, 12)[key])
    validated = dict(curve(run, "val/loss"))
    del validated[6]  # the end of the short run
    assert validated == dict(curve(long, "val/loss"))
    assert curve(run, "train/loss") == curve(long, "train/loss")


@pytest.mark.slow
def test_one_curve_results_and_no_step_is_there_twice(run: Path, go_on: Command) -> None:
    go_on(run, "--trainer.max_steps=12")
    assert steps(run, "train/loss") == list(range(1, 13))
    assert steps(run, "val/loss") == [0, 4, 6, 8, 12]


@pytest.mark.slow
def test_what_a_killed_run_wrote_after_its_last_checkpoint_is_hidden(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(module: LitLanguageModel, *_: object) -> None:
        if module.global_step == 7:
            raise RuntimeError("killed")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LitLanguageModel, "on_train_batch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(run, corpus, *CONSTANT)
    assert steps(run, "train/loss") == list(range(1, 8))
    assert not (run / "summary.json").exists()
    train(run, corpus, *CONSTANT, "--resume=must")
    assert steps(run, "train/loss") == list(range(1, 13))
    assert steps(run, "val/loss") == [0, 4, 8, 12]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [6, 8], ids=["between validations", "at a validation"])
def test_values_of_self_log_land_at_the_steps_of_the_uninterrupted_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Lightning counts steps for `self.log` apart from optimizer steps."""

    def log(module: LitLanguageModel, *_: object) -> None:
        module.log("mine", float(module.global_step))

    monkeypatch.setattr(LitLanguageModel, "on_before_zero_grad", log)
    flags = [*CONSTANT, "--trainer.max_steps=12", "--trainer.log_every_n_steps=5"]
    flags += ["--checkpoint.every_minutes=1e-9"]
    whole = tmp_path / "whole"
    with copied_at((cut,), whole, tmp_path) as left:
        train(whole, corpus, *flags)
    train(left[cut], corpus, *flags, "--resume=must")
    assert steps(whole, "mine")[:2] == [5, 10]
    assert curve(left[cut], "mine") == curve(whole, "mine")
    values = [read_record(run).values["mine"].tolist() for run in (left[cut], whole)]
    assert values[0] == pytest.approx(values[1], nan_ok=True)


@pytest.mark.slow
def test_never_in_a_used_directory_exits_2_and_says_what_to_type(fit: Command, run: Path) -> None:
    before = contents(run)
    mistake = fit(run)
    assert mistake.code == 2
    assert "--resume auto" in mistake.error
    assert "--run_dir" in mistake.error
    assert contents(run) == before


@pytest.mark.slow
def test_must_without_a_checkpoint_exits_3_and_makes_no_directory(
    fit: Command, tmp_path: Path
) -> None:
    mistake = fit(tmp_path / "new", "--resume=must")
    assert mistake.code == 3
    assert "\n" not in mistake.error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_auto_in_a_used_directory_without_a_checkpoint_starts_at_0_and_says_so(
    fit: Command, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    shown = fit(tmp_path / "run", "--resume=auto", "--trainer.max_steps=4")
    assert shown.code == 0
    assert f"no checkpoint in {tmp_path / 'run'} yet: starting at step 0" in shown.out
    assert steps(tmp_path / "run", "val/loss") == [0, 4]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "code", "says"),
    [(6, 0, "is finished at step 6"), (4, 2, "is at step 6 already; give it a greater length")],
)
def test_auto_on_a_finished_run_changes_nothing(
    run: Path, go_on: Command, steps: int, code: int, says: str
) -> None:
    before = contents(run)
    for folder in (run, run / "checkpoints"):
        (folder / ".half-written.tmp").write_text("a kill in the last write of a run leaves this")
    shown = go_on(run, f"--trainer.max_steps={steps}")
    assert shown.code == code
    assert says in shown.out + shown.error
    assert contents(run) == before


@pytest.mark.slow
def test_a_new_learning_rate_applies_from_the_next_step_on(run: Path, go_on: Command) -> None:
    shown = go_on(run, "--trainer.max_steps=12", "--model.optimizer.lr=0.005")
    assert "changed: model.optimizer.init_args.lr: 0.02 -> 0.005" in shown.out
    expected = [0.02] * 6 + [0.005] * 6
    assert [value for _, value in curve(run, "optim/lr")] == pytest.approx(expected, rel=1e-6)
    assert all(value == pytest.approx(0.003) for _, value in curve(run, "optim/lr/decay"))


@pytest.mark.slow
def test_a_new_weight_decay_applies(run: Path, go_on: Command) -> None:
    go_on(run, "--trainer.max_steps=8", "--model.optimizer.weight_decay=0.7")
    (optimizer,) = load(run, 8)["optimizer_states"]
    decays = {group["name"]: group["weight_decay"] for group in optimizer["param_groups"]}
    assert (decays["muon"], decays["decay"]) == (0.7, 0.0)


STUCK = ["--model.optimizer.lr=0", "--model.optimizer.adamw_lr=0", "--trainer.val_check_interval=2"]


@pytest.mark.slow
def test_a_smaller_patience_applies(corpus: Path, tmp_path: Path, go_on: Command) -> None:
    run = train(tmp_path / "run", corpus, *CONSTANT, *STUCK, "--trainer.max_steps=6")
    go_on(run, *STUCK, "--trainer.max_steps=20", "--early_stopping.patience=3")
    assert steps(run, "val/loss")[-1] == 8  # the best at 2, none better at 4, 6 and 8


@pytest.mark.slow
def test_a_larger_patience_continues_a_run_that_had_lost_it(
    corpus: Path, tmp_path: Path, go_on: Command
) -> None:
    impatient = [*STUCK, "--trainer.max_steps=10", "--early_stopping.patience=2"]
    run = train(tmp_path / "run", corpus, *CONSTANT, *impatient)
    assert steps(run, "val/loss")[-1] == 4
    assert "is finished at step 4" in go_on(run, *impatient).out
    go_on(run, *STUCK, "--trainer.max_steps=10", "--early_stopping.patience=9")
    assert steps(run, "val/loss")[-1] == 10


@pytest.mark.slow
def test_what_changed_is_in_the_manifest_and_the_config(run: Path, go_on: Command) -> None:
    go_on(run, "--trainer.max_steps=8")
    (resumed,) = json.loads((run / "manifest.json").read_text())["resumed"]
    assert resumed["step"] == 6
    assert resumed["changed"]["trainer.max_steps"] == [6, 8]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--model.net.n_layer=3", "model.net.init_args.n_layer: 2 -> 3"),
        ("--model.net.dropout=0.5", "model.net.init_args.dropout: 0.2 -> 0.5"),
        ("--data.block_size=8", "data.block_size: 16 -> 8"),
    ],
)
def test_another_architecture_is_refused_by_name(
    run: Path, go_on: Command, flag: str, named: str
) -> None:
    before = contents(run)
    mistake = go_on(run, "--trainer.max_steps=12", flag)
    assert mistake.code == 3
    assert named in mistake.error
    assert "\n" not in mistake.error
    assert contents(run) == before


@pytest.mark.slow
def test_another_corpus_is_refused_by_name(run: Path, go_on: Command, small_corpus: Path) -> None:
    before = contents(run)
    mistake = go_on(run, "--trainer.max_steps=12", "--data.path", small_corpus)
    assert mistake.code == 3
    assert "data.fingerprint: " in mistake.error
    assert contents(run) == before


@pytest.mark.slow
def test_a_different_batch_size_continues_at_the_same_sequence(run: Path, go_on: Command) -> None:
    shown = go_on(run, "--trainer.max_steps=8", "--data.batch_size=6")
    assert "changed: data.batch_size: 4 -> 6" in shown.out
    assert load(run, 8)["TokenData"] == {"sequences": 6 * 4 + 2 * 6}


@pytest.mark.slow
def test_a_different_accumulation_continues_at_the_same_step(run: Path, go_on: Command) -> None:
    go_on(run, "--trainer.max_steps=12", "--trainer.accumulate_grad_batches=3")
    assert steps(run, "val/loss") == [0, 4, 6, 8, 12]
    assert load(run, 12)["TokenData"] == {"sequences": 6 * 4 + 6 * 3 * 4}
    assert load(run, 12)["global_step"] == 12


@pytest.mark.slow
def test_the_config_of_a_run_resumes_it_from_another_directory(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--config", "run/config.yaml", "--run_dir=run", "--resume=must"]
    shown = command("fit", *words, "--trainer.max_steps=8")
    assert shown.code == 0
    assert load(run, 8)["global_step"] == 8


@pytest.mark.slow
def test_clipped_steps_before_the_resume_count_in_the_share_logged_after_it(
    corpus: Path, tmp_path: Path
) -> None:
    flags = ["--trainer.max_steps=10", "--trainer.log_every_n_steps=5", "--samples=null"]
    flags += ["--trainer.val_check_interval=10", "--trainer.gradient_clip_val=1.3"]
    flags += ["--checkpoint.every_minutes=1e-9", "--checkpoint.keep=10"]
    run = train(tmp_path / "run", corpus, *flags)
    whole = read_record(run).values["optim/clipped_share"].tolist()
    assert 0 < whole[1] < 1
    for step in (8, 9, 10):  # as if the run had died in step 8
        (run / "checkpoints" / f"step-{step:09d}.ckpt").unlink()
    train(run, corpus, *flags, "--resume=must")
    assert read_record(run).values["optim/clipped_share"].tolist() == whole
