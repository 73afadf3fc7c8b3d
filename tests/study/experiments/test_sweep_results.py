"""What the trials of a sweep left -> its table, its notes and its best config."""

from pathlib import Path

import pytest
import yaml

from lmtemplate.study.experiments.sweep_results import TrialRow, edge_notes, finish, heights
from lmtemplate.study.experiments.trials import Trial
from tests.study.experiments.seeded import write_seed


@pytest.mark.parametrize(
    ("tried", "says"),
    [
        (["0.1", "0.02", "1e-3"], "the best lr, 0.1, is the highest that was tried"),
        (["1e-3", "0.02", "0.1"], "the best lr, 1e-3, is the lowest that was tried"),
        (["0.02", "0.1", "1e-3"], None),
        (["0.1", "0.02"], None),  # one of two is always at an edge
        (["relu", "gelu", "silu"], None),
    ],
)
def test_a_best_value_at_the_edge_of_the_grid_is_told(tried: list[str], says: str | None) -> None:
    seeds = iter("123")
    rows = [
        TrialRow(0, {"lr": v, "seed_everything": next(seeds)}, "complete", 1, 1, 1, 1, "", "")
        for v in tried
    ]
    assert [note.partition(":")[0] for note in edge_notes(rows)] == ([says] if says else [])


def test_the_table_has_the_best_first_and_its_config_runs_anew(tmp_path: Path) -> None:
    """Of three trials one failed before it wrote anything, and the last one is the best."""
    for number, lr in ((0, 0.1), (2, 0.3)):
        write_seed(tmp_path / f"trial-{number:03d}", 1, lr=lr)
    record = tmp_path / "trial-002/checkpoints/training_metrics.jsonl"
    record.write_text(record.read_text().replace('"val/loss": 0.5', '"val/loss": 0.25'))
    trials = [
        Trial(0, {"model.optimizer.lr": "0.1"}, "complete", 0.5),
        Trial(1, {"model.optimizer.lr": "0.2"}, "failed"),
        Trial(2, {"model.optimizer.lr": "0.3"}, "complete", 0.25),
    ]
    found = finish(tmp_path, {"model.optimizer.lr": ["0.1", "0.2", "0.3"]}, trials, ["mine"])
    assert f"fit --config {tmp_path / 'best.yaml'} --allow mine" in found.text()
    assert [(row.number, row.val_loss, row.step) for row in found.rows] == [
        (2, 0.25, 30),
        (0, 0.5, 30),
        (1, None, None),
    ]
    assert "trial-001" in found.rows[-1].verdict  # where its last words are
    config = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert config["run_dir"] == str(tmp_path / "best")
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.3
    assert "importances need 4 complete trials" in found.notes
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "0.2500" in page


def test_an_axis_goes_from_its_least_to_its_greatest_value() -> None:
    assert heights([1.0, 10.0, 100.0]) == pytest.approx([0, 1 / 11, 1])
    assert heights([1.0, 10.0, 100.0], is_log=True) == pytest.approx([0, 0.5, 1])
    assert heights([3.0, 3.0]) == [0, 0]
