"""What stands under `model`, `data`, `model.optimizer` ... -> the class, or one line with its place."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from lmtemplate.cli import TrainingCLI
from lmtemplate.cli_classes import check_classes, to_yaml
from lmtemplate.errors import ConfigError
from tests.conftest import TINY, Command

OWN = '''
from functools import partial
from typing import Any, Callable, final

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from lmtemplate.data.datamodule import TokenData
from lmtemplate.models.gpt import GPT
from lmtemplate.module import LitLanguageModel

class Lit(LitLanguageModel):
    """A step of one's own.

    Args:
        extra: a weight.
    """

    def __init__(self, *args, extra: float = 0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra

class Data(TokenData):
    pass

class TensorData(TokenData):
    def __init__(self, *args, weights: Tensor = torch.ones(3), **kwargs):
        super().__init__(*args, **kwargs)

@final
class Settings:
    def __init__(self, a: int = 1):
        self.a = a

def function():
    pass

class Activated(GPT):
    def __init__(
        self,
        *args,
        act: Callable = partial(torch.nn.functional.gelu, approximate="tanh"),
        acts: Callable | list[Callable] | None = None,
        kind: torch.dtype = torch.float32,
        own: Callable = function,
        number: float = np.sqrt(2.0),
        table: dict = {(1, 2): 3},
        gelu: Callable = torch.nn.functional.gelu,
        anything: Any = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.settings = act.func, kind, own, number, table, gelu

class Typed(MeanMetric):
    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings

class Untyped(MeanMetric):
    def __init__(self, anything=None):
        super().__init__()
        self.anything = anything
'''


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_classes.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def parsed(corpus: Path, *words: str) -> TrainingCLI:
    return TrainingCLI(["--data.path", str(corpus), *TINY, *words], ["own_classes"])


WAYS = {
    "beside class_path": "model: {class_path: own_classes.Lit, extra: 0.5}",
    "in init_args": "model: {class_path: own_classes.Lit, init_args: {extra: 0.5}}",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
def test_a_config_names_the_class_of_the_module(corpus: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    cli = parsed(corpus, "--config", str(tmp_path / "own.yaml"))
    assert type(cli.model).__name__ == "Lit"
    assert cli.model.extra == 0.5
    assert cli.model.net.block_size == 16  # all other keys stay what they are
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(cli.settings))
    again = TrainingCLI(["--config", str(tmp_path / "again.yaml")], ["own_classes"])
    assert again.settings == cli.settings


def test_flags_name_the_classes_of_module_and_data(corpus: Path) -> None:
    flags = ["--model.class_path=own_classes.Lit", "--model.extra=0.7"]
    cli = parsed(corpus, *flags, "--data.class_path", "own_classes.Data")
    assert (cli.model.extra, type(cli.datamodule).__name__) == (0.7, "Data")
    assert cli.settings["model"]["class_path"] == "own_classes.Lit"
    assert cli.settings["data"]["class_path"] == "own_classes.Data"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("own_classes.Gone", "cannot import 'own_classes.Gone'"),
        ("own_classes.function", "own_classes.function is not a subclass of LitLanguageModel"),
        ("theirs.Lit", "theirs.Lit is of a package that is not allowed; add --allow theirs"),
        ("GPT", "'GPT' is not package.module.Class"),
    ],
)
def test_a_wrong_class_of_the_module_is_answered_with_its_line(
    corpus: Path, tmp_path: Path, value: str, says: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"# mine\nmodel:\n  class_path: {value}\n")
    with pytest.raises(ConfigError) as mistake:
        parsed(corpus, "--config", str(path))
    assert str(mistake.value).startswith(f"model.class_path ({path}:3): {says}")
    with pytest.raises(ConfigError, match=r"model.class_path \(command line\): "):
        parsed(corpus, f"--model.class_path={value}")


def test_null_in_a_class_is_named_where_its_type_has_no_place_for_it(
    corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model:\n  optimizer: {init_args: {lr: null}}\n")
    with pytest.raises(ConfigError) as mistake:
        parsed(corpus, "--config", str(path))
    assert str(mistake.value) == f"model.optimizer.lr ({path}:2): null is no value here"
    path.write_text("model: {net: {init_args: {n_kv_head: null}}, optimizer: torch.optim.SGD}\n")
    parsed(corpus, "--config", str(path), "--model.optimizer.weight_decay=0")
    whole = "{class_path: lmtemplate.optimizers.SGD, init_args: {momentum: null}}"
    with pytest.raises(ConfigError, match=r"momentum \(command line\): null is no value here"):
        parsed(corpus, f"--model.optimizer={whole}")


def test_a_folder_is_no_class_of_data(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.class_path \(command line\): .* is not package"):
        TrainingCLI([f"--data={corpus}"])


def test_any_optimizer_and_schedule_of_torch_are_taken(corpus: Path) -> None:
    words = ["--model.optimizer=torch.optim.RMSprop", "--model.optimizer.lr=0.02"]
    flags = [flag for flag in TINY if "schedule" not in flag]
    words += ["--model.schedule=torch.optim.lr_scheduler.StepLR", "--model.schedule.step_size=5"]
    cli = TrainingCLI(["--data.path", str(corpus), *flags, *words])
    optimizer = cli.model.recipe.build(cli.model.net)
    assert type(optimizer).__name__ == "RMSprop"
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert cli.model.schedule(optimizer).step_size == 5


@pytest.mark.slow
@pytest.mark.parametrize("value", ["torch.nn.Linear", "torch.optim.Gone"])
def test_what_is_no_optimizer_is_refused_with_its_place(corpus: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"model.optimizer \(command line\): .*OptimizerRecipe"):
        parsed(corpus, f"--model.optimizer={value}")


@pytest.mark.slow
def test_tensorboard_can_be_replaced_by_another_logger(fit: Command, tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    other = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}"]
    other.append("--allow=lightning")
    assert fit(tmp_path / "both", *other).code == 0
    assert fit(tmp_path / "one", *other, "--tensorboard=false").code == 0
    written = {run: [*(tmp_path / run).glob("events.*")] != [] for run in ("both", "one")}
    assert written == {"both": True, "one": False}
    assert "train/loss" in next(folder.rglob("metrics.csv")).read_text()


@pytest.mark.slow
def test_a_profiler_shows_its_table(fit: Command, tmp_path: Path) -> None:
    shown = fit(tmp_path / "run", "--trainer.profiler=simple", "--trainer.max_steps=4")
    assert shown.code == 0
    assert "run_training_batch" in shown.out


def test_a_callback_that_cannot_work_is_refused_with_what_can(fit: Command, tmp_path: Path) -> None:
    words = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"]
    words.append("--allow=lightning")
    refused = fit(tmp_path / "run", *words)
    assert refused.code == 2
    assert "use weight_averaging" in refused.error
    assert not (tmp_path / "run").exists()


# Of names that may be imported, what no config may make, and where.
REFUSED = [
    "torch.nn.functional.relu",
    "torch.nn.parallel.DistributedDataParallel",
    "torch.optim.swa_utils.AveragedModel",
    "torchmetrics.text.CharErrorRate",
    "torchmetrics.MetricCollection",
    "torchmetrics.aggregation.BaseAggregator",
    "lmtemplate.cli.TrainingCLI",
    "lmtemplate.callbacks.loggers.RecordLogger",
    "lmtemplate.callbacks.run_summary.RunSummary",
]


@pytest.fixture
def unnoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtemplate.cli_classes.CHOSEN", {})


@pytest.mark.usefixtures("unnoted")
@pytest.mark.parametrize("name", REFUSED)
def test_a_config_names_parts_of_a_run_alone(name: str) -> None:
    key = "trainer.callbacks" if name.endswith("RunSummary") else "x"
    with pytest.raises(ConfigError, match=rf"{name.split('.')[-1]} is not among the cl.*--allow"):
        check_classes(key, {"class_path": name}, [], [], set())
    check_classes(key, {"class_path": name}, [], [name.partition(".")[0]], set())


@pytest.mark.usefixtures("unnoted")
@pytest.mark.parametrize(
    "name",
    [
        *("torch.nn.GELU", "torch.optim.Adam", "torch.optim.lr_scheduler.StepLR"),
        *("torchmetrics.Accuracy", "torchmetrics.MeanSquaredError", "torchmetrics.text.Perplexity"),
        *(
            "lmtemplate.models.gpt.GPT",
            "lmtemplate.optimizers.SGD",
            "lmtemplate.schedules.Constant",
        ),
    ],
)
def test_parts_of_a_run_need_no_allow(name: str) -> None:
    check_classes("x", {"class_path": name}, [], [], set())


def test_a_function_of_an_allowed_package_may_be_named(corpus: Path) -> None:
    words = ["--model.schedule=torch.optim.lr_scheduler.LambdaLR"]
    words.append("--model.schedule.lr_lambda=own_classes.function")
    flags = [flag for flag in TINY if "schedule" not in flag]
    cli = TrainingCLI(["--data.path", str(corpus), *flags, *words], ["own_classes"])
    assert cli.model.schedule.keywords["lr_lambda"].__name__ == "function"
    with pytest.raises(ConfigError, match="relu is not among the classes that any config may name"):
        parsed(corpus, words[0], "--model.schedule.lr_lambda=torch.nn.functional.relu")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks", "lightning.pytorch.callbacks.LambdaCallback"),
        ("callbacks", "lightning.pytorch.callbacks.ModelCheckpoint"),
        ("logger", "lightning.pytorch.loggers.WandbLogger"),
        ("plugins", "lightning.pytorch.plugins.environments.SLURMEnvironment"),
    ],
)
def test_a_class_of_lightning_needs_allow(corpus: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.{key} .*{value} is of a pack.*--allow lightn"):
        parsed(corpus, f"--trainer.{key}={{class_path: {value}}}")


def test_only_what_was_checked_is_made(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look, for a place that the walk through the settings might miss."""
    monkeypatch.setattr("lmtemplate.cli_classes.check_classes", lambda *_: None)
    with pytest.raises(ConfigError, match=r"is no class for a config"):
        parsed(corpus)


def test_a_parameter_without_a_type_makes_no_class(corpus: Path) -> None:
    inner = "{class_path: torchmetrics.MeanSquaredError}"
    metric = f"{{class_path: own_classes.Untyped, init_args: {{anything: {inner}}}}}"
    (made,) = parsed(corpus, f"--model.metrics=[{metric}]").model.metrics.more.values()
    assert made.anything["class_path"] == "torchmetrics.MeanSquaredError"


HOLDERS: dict[str, Callable[[Any], object]] = {
    "list": lambda one: [one],
    "tuple": lambda one: (1, one),
    "deque": lambda one: deque([one]),
    "mapping": lambda one: MappingProxyType({"x": one}),
    "namespace in a tuple": lambda one: (Namespace(x=Namespace(y=one)),),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("held", [{"class_path": "subprocess.Popen"}, print, Namespace])
def test_nothing_is_hidden_by_what_holds_it(hold: Callable[[Any], object], held: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not among|Python's own"):
        check_classes("model", hold(held), [], [], set())


def test_a_default_that_has_no_text_is_left_out_of_the_config(corpus: Path, tmp_path: Path) -> None:
    cli = parsed(corpus, "--model.net=own_classes.Activated", "--model.net.n_embd=32")
    written = cli.settings["model"]["net"]["init_args"]
    assert "act" not in written
    assert (written["kind"], written["own"]) == ("torch.float32", "own_classes.function")
    assert callable(cli.model.net.settings[0])
    (tmp_path / "config.yaml").write_text(to_yaml(cli.settings))
    again = TrainingCLI(["--config", str(tmp_path / "config.yaml")], ["own_classes"])
    assert again.model.net.settings == cli.model.net.settings
    assert again.settings == cli.settings


FUNCTIONS = "[{class_path: torch.nn.GELU}, {class_path: torch.nn.GELU}]"


GROUP = "{process_group: !!set {a}}"
METRIC = f"{{class_path: torchmetrics.classification.BinaryAccuracy, dict_kwargs: {GROUP}}}"


@pytest.mark.parametrize(
    "words",
    [
        ["--model.net=own_classes.Activated", f"--model.net.acts={FUNCTIONS}"],
        [f"--model.metrics=[{METRIC}]"],
    ],
)
def test_a_setting_that_has_no_text_is_refused(corpus: Path, words: list[str]) -> None:
    cli = parsed(corpus, *words)
    with pytest.raises(ConfigError, match=r"\(command line\): no file can hold"):
        _ = cli.settings


def test_defaults_and_types_of_one_s_own_classes_are_left_alone(corpus: Path) -> None:
    parsed(corpus, "--data.class_path=own_classes.TensorData")
    metric = "{class_path: own_classes.Typed, init_args: {settings: {a: 2}}}"
    (made,) = parsed(corpus, f"--model.metrics=[{metric}]").model.metrics.more.values()
    assert made.settings.a == 2
