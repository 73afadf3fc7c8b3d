"""A run that was cut short and continued -> the run that never stopped, bit for bit."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmtemplate.__main__ import run as run_words
from lmtemplate.module import LitLanguageModel
from tests.conftest import TINY, Command
from tests.runs import contents, curve, equal, load, steps, train

STEPS = 12
VALIDATED = 5  # and at 10, and at the end
COMBINATIONS = {  # each pair of settings occurs; what comes last wins on the command line
    "muon": ("MuonAdamW", 0, 1),
    "muon, 2 workers, accumulation 3": ("MuonAdamW", 2, 3),
    "adamw, 2 workers": ("AdamW", 2, 1),
    "adamw, accumulation 3": ("AdamW", 0, 3),
}
SEQUENCES = 24  # in the training split
PER_STEP = {1: 4, 3: 6}  # accumulation -> sequences
CUTS = {1: (8, 6), 3: (7, 8)}  # accumulation -> steps in the middle and at the end of a pass


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


@pytest.fixture(scope="module", params=COMBINATIONS.values(), ids=COMBINATIONS)
def uninterrupted(
    request: pytest.FixtureRequest, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    """Dropout, a schedule, and validations that do not divide the run; saved at each step."""
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


@pytest.fixture(params=["the middle of a pass", "the end of a pass", "a validation"])
def cut(request: pytest.FixtureRequest, uninterrupted: Uninterrupted) -> int:
    """The last step before the power went off."""
    middle, end = CUTS[uninterrupted.accumulate]
    return {"the middle of a pass": middle, "the end of a pass": end}.get(request.param, VALIDATED)


def test_the_cuts_are_where_they_claim_to_be(uninterrupted: Uninterrupted) -> None:
    middle, end = CUTS[uninterrupted.accumulate]
    per_step = PER_STEP[uninterrupted.accumulate]
    assert (end * per_step) % SEQUENCES == 0
    assert (middle * per_step) % SEQUENCES != 0
    assert VALIDATED in steps(uninterrupted.run, "val/loss")
    for step, left in uninterrupted.left.items():
        assert load(left, step)["TokenData"] == {"sequences": step * per_step}


def test_a_continued_run_ends_bitwise_like_the_uninterrupted_one(
    uninterrupted: Uninterrupted, cut: int, small_corpus: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted.left[cut], tmp_path / "run")
    train(run, small_corpus, *uninterrupted.flags, "--resume", "must")
    resumed, expected = load(run, STEPS), load(uninterrupted.run, STEPS)
    for clocks in ("Throughput", "RunEnd"):
        assert resumed["callbacks"].pop(clocks).keys() == expected["callbacks"].pop(clocks).keys()
    resumed["config"]["run_dir"] = expected["config"]["run_dir"]
    assert resumed.keys() == expected.keys()
    different = [key for key in expected if not equal(resumed[key], expected[key])]
    assert different in ([], ["loops"])  # Lightning's own counts of validations restart
    for tag in ("val/loss", "train/loss", "optim/lr", "optim/grad_norm", "data/epoch"):
        assert curve(run, tag) == curve(uninterrupted.run, tag)
