"""Every callback and logger of Lightning: it works, resumed as well, or one line says why not."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import callbacks, loggers

from lmtemplate.trainer import REFUSED
from tests.conftest import Command
from tests.runs import check_line

pytestmark = pytest.mark.slow

WORKS: dict[str, dict[str, object]] = {
    "BasePredictionWriter": {},
    "Callback": {},
    "Checkpoint": {},
    "EarlyStopping": {"monitor": "val/accuracy", "mode": "max"},
    "EMAWeightAveraging": {},
    "LambdaCallback": {},
    "LearningRateMonitor": {},
    "ModelCheckpoint": {},
    "ModelSummary": {},
    "TQDMProgressBar": {},
    "WeightAveraging": {},
    "CSVLogger": {"save_dir": "."},
    "TensorBoardLogger": {"save_dir": "."},
}
NEEDS = {
    "DeviceStatsMonitor": "psutil",
    "RichModelSummary": "rich",
    "RichProgressBar": "rich",
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
    "WandbLogger": "wandb",
}
SETTINGS: dict[str, dict[str, object]] = {  # of those that are refused, but cannot be made without
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "."},
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
    "ThroughputMonitor": {"batch_size_fn": "torch.nn.Identity"},
}
NOT_A_LOGGER = ("Logger", "LitLogger")  # the base class, and a logger of another kind


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # some write where they are
    return tmp_path / "own.yaml"


def name_in(config: Path, name: str, settings: dict[str, object]) -> list[object]:
    """Flags of a short run with this callback or logger."""
    kind = "loggers" if name in loggers.__all__ else "callbacks"
    spec = {"class_path": f"lightning.pytorch.{kind}.{name}", "init_args": settings}
    content = {"logger": spec} if kind == "loggers" else {"callbacks+": [spec]}
    config.write_text(yaml.safe_dump({"trainer": content}))
    return ["--config", config, "--trainer.max_steps=4", "--allow=lightning"]


def test_every_one_of_lightning_is_in_one_of_these_lists() -> None:
    listed = [*WORKS, *NEEDS, *REFUSED, *NOT_A_LOGGER]
    assert sorted(listed) == sorted({*callbacks.__all__, *loggers.__all__})


@pytest.mark.parametrize("name", WORKS)
def test_it_works_and_its_run_can_be_resumed_and_used(
    fit: Command, command: Command, config: Path, name: str
) -> None:
    flags = name_in(config, name, WORKS[name])
    first = fit(Path("run"), *flags)
    assert first.code == 0, first
    resumed = fit(Path("run"), *flags, "--trainer.max_steps=8", "--resume=must")
    assert resumed.code == 0, resumed
    assert command("validate", "run", "--allow=lightning").code == 0
    assert command("generate", "run", "--max_new_tokens=1").code == 0


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_reason_before_anything_is_written(
    fit: Command, config: Path, name: str
) -> None:
    refused = fit(Path("run"), *name_in(config, name, SETTINGS.get(name, {})))
    assert f"{name} is refused: {REFUSED[name]}" in check_line(refused, 2)
    assert not list(Path("run").glob("*.json"))


@pytest.mark.parametrize("name", NEEDS)
def test_a_package_that_is_missing_is_named(fit: Command, config: Path, name: str) -> None:
    if find_spec(NEEDS[name]):
        pytest.skip(f"{NEEDS[name]} is installed")
    kind = "logger" if name in loggers.__all__ else "callbacks"
    beside = f"--trainer.{kind}+=lightning.pytorch.{kind.removesuffix('s')}s.{name}"
    alone = name_in(config, name, {})
    ways = {"alone": alone, "beside": [beside, *alone[2:]]}
    for way, words in ways.items():
        said = check_line(fit(Path(way), *words), 2)
        assert "pip install -U" in said
        assert NEEDS[name].replace("_", "-") in said


@pytest.mark.parametrize("name", NOT_A_LOGGER)
def test_what_is_no_logger_is_refused_by_name(fit: Command, config: Path, name: str) -> None:
    said = check_line(fit(Path("run"), *name_in(config, name, {})), 2)
    assert f"lightning.pytorch.loggers.{name}" in said
    assert str(config) in said


def test_a_class_of_one_s_own_may_have_a_refused_name(
    fit: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.parent / "own_timer.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Timer(Callback):\n    pass\n"
    )
    monkeypatch.syspath_prepend(config.parent)
    flags = ["--trainer.callbacks+=own_timer.Timer", "--allow=own_timer", "--trainer.max_steps=4"]
    assert fit(Path("run"), *flags).code == 0
