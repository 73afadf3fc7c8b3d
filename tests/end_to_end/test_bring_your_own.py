"""A class of the user's own, named in YAML -> trained, or refused without being imported."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jsonargparse._common import parsing_settings

from tests.conftest import Command, Result
from tests.runs import contents, curve, load, steps

BIGRAM = '''
from torch import Tensor, nn

from lmtemplate.models import LanguageModel


class Bigram(LanguageModel):
    """The next token from the last one alone."""

    def __init__(self, vocab_size: int, block_size: int, *, scale: float = 1.0) -> None:
        super().__init__(vocab_size, block_size)
        self.table, self.scale = nn.Embedding(vocab_size, vocab_size), scale

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * self.table(tokens)
'''

SHORT = """
data: {block_size: 16, batch_size: 4, max_val_blocks: 8}
model:
  schedule: {init_args: {warmup_steps: 0}}
trainer: {accelerator: cpu, max_steps: 12, val_check_interval: 4, log_every_n_steps: 2}
samples: {init_args: {max_new_tokens: 5}}
"""


@pytest.fixture
def disallow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget what was allowed and imported: jsonargparse allows for as long as a process lives."""
    before, imported = dict(parsing_settings["import_path_verdicts"]), set(sys.modules)

    def forget() -> None:
        monkeypatch.setitem(parsing_settings, "import_path_verdicts", dict(before))
        for name in {"bigram", "plain", "recipes", "counting", "stranger"} - imported:
            sys.modules.pop(name, None)

    return forget


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disallow: Callable[[], None]
) -> Iterator[Path]:
    """A working directory, from which anything could be imported; all is forgotten afterwards."""
    disallow()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    disallow()


@pytest.fixture
def own(workplace: Path, command: Command, corpus: Path) -> Callable[..., Result]:
    """`own(yaml_text, *flags)`: fit a short run with this config."""

    def fit(text: str, *flags: object) -> Result:
        (workplace / "short.yaml").write_text(SHORT)
        (workplace / "mine.yaml").write_text(text)
        words = ["--config", "short.yaml", "--config", "mine.yaml", "--run_dir", "run"]
        return command("fit", *words, "--data.path", corpus, *flags)

    return fit


BIGRAM_YAML = """
model:
  net: {class_path: bigram.Bigram, init_args: {scale: 2}}
  optimizer: {init_args: {lr: 0.1}}
"""


@pytest.mark.slow
def test_a_bigram_model_trains_through_yaml_and_allow_alone(
    workplace: Path, own: Callable[..., Result], command: Command
) -> None:
    (workplace / "bigram.py").write_text(BIGRAM)
    shown = own(BIGRAM_YAML, "--allow", "bigram")
    assert (shown.code, shown.error) == (0, "")
    assert "Bigram, 66,049 parameters" in shown.out
    losses = [loss for _, loss in curve(workplace / "run", "val/loss")]
    assert losses[-1] < losses[0]
    assert load(workplace / "run", 12)["config"]["model"]["net"]["init_args"] == {"scale": 2.0}
    assert "val/loss" in command("validate", "run", "--allow", "bigram").out
    words = ["run", "--prompt=a", "--max_new_tokens=3"]
    assert command("generate", *words, "--allow=bigram").out.startswith("a")


@pytest.mark.slow
def test_the_bigram_needs_only_the_working_directory(
    workplace: Path, own: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "plain.py").write_text(BIGRAM)
    elsewhere = [place for place in sys.path if place not in ("", str(workplace))]
    monkeypatch.setattr(sys, "path", elsewhere)
    yaml_text = BIGRAM_YAML.replace("bigram.", "plain.")
    assert own(yaml_text, "--allow", "plain", "--trainer.max_steps=4").code == 0


OWN_RECIPES = """
import torch

from lmtemplate.optimizers import OptimizerRecipe
from lmtemplate.schedules import Schedule


class Rprop(OptimizerRecipe):
    def __init__(self, lr: float = 0.01) -> None:
        self.lr = lr

    def build(self, net: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Rprop([{"params": list(net.parameters()), "name": "all"}], lr=self.lr)


class Sawtooth(Schedule):
    def shape(self, progress: float) -> float:
        return 1 - (4 * progress) % 1
"""


@pytest.mark.slow
def test_an_optimizer_and_a_schedule_of_one_s_own_train_through_yaml(
    workplace: Path, own: Callable[..., Result]
) -> None:
    (workplace / "recipes.py").write_text(OWN_RECIPES)
    text = """
model:
  optimizer: {class_path: recipes.Rprop, init_args: {lr: 0.5}}
  schedule: {class_path: recipes.Sawtooth, init_args: {warmup_steps: 0, floor_ratio: 0.0}}
"""
    assert own(text, "--allow", "recipes").code == 0
    expected = [(step, 0.5 * (1 - (4 * (step - 1) / 12) % 1)) for step in range(2, 13, 2)]
    points = curve(workplace / "run", "optim/lr")
    assert [step for step, _ in points] == [step for step, _ in expected]
    assert [v for _, v in points] == pytest.approx([v for _, v in expected], rel=1e-6)


OWN_CALLBACK = """
from lightning.pytorch import Callback


class Count(Callback):
    def on_validation_end(self, trainer, pl_module):
        for logger in trainer.loggers:
            logger.log_metrics({"mine/steps": trainer.global_step}, step=trainer.global_step)
"""


@pytest.mark.slow
def test_a_callback_of_one_s_own_runs_beside_those_of_every_run(
    workplace: Path, own: Callable[..., Result]
) -> None:
    (workplace / "counting.py").write_text(OWN_CALLBACK)
    shown = own("trainer: {callbacks+: [{class_path: counting.Count}]}", "--allow=counting")
    assert shown.code == 0
    assert curve(workplace / "run", "mine/steps") == [(0, 0.0), (4, 4.0), (8, 8.0), (12, 12.0)]
    assert steps(workplace / "run", "val/loss") == [0, 4, 8, 12]
    assert (workplace / "run/checkpoints/best.json").exists()


STRANGER = """
import pathlib
pathlib.Path("imported").touch()
"""
PLACES = {
    "net": "model: {{net: {{class_path: {0}}}}}",
    "optimizer": "model: {{optimizer: {{class_path: {0}}}}}",
    "schedule": "model: {{schedule: {{class_path: {0}}}}}",
    "early_stopping": "early_stopping: {{class_path: {0}}}",
    "checkpoint": "checkpoint: {{class_path: {0}}}",
    "samples": "samples: {{class_path: {0}}}",
    "callbacks": "trainer: {{callbacks: [{{class_path: {0}}}]}}",
    "callbacks+": "trainer: {{callbacks+: [{{class_path: {0}}}]}}",
    "logger": "trainer: {{logger: {{class_path: {0}}}}}",
    "plugins": "trainer: {{plugins: {{class_path: {0}}}}}",
    "strategy": "trainer: {{strategy: {{class_path: {0}}}}}",
    "profiler": "trainer: {{profiler: {{class_path: {0}}}}}",
    "accelerator": "trainer: {{accelerator: {{class_path: {0}}}}}",
}


@pytest.fixture
def stranger(workplace: Path) -> str:
    """A class of a package that could be imported, and would leave a file if it were."""
    (workplace / "stranger.py").write_text(STRANGER)
    return "stranger.Thing"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            place, marks=[] if place in ("net", "callbacks", "logger") else pytest.mark.slow
        )
        for place in PLACES
    ],
)
def test_a_class_of_another_package_is_refused_and_not_imported(
    workplace: Path, own: Callable[..., Result], stranger: str, place: str
) -> None:
    mistake = own(PLACES[place].format(stranger))
    assert mistake.code == 2
    assert "stranger" in mistake.error
    assert "--allow stranger" in mistake.error
    assert f"{Path('mine.yaml')}:1" in mistake.error
    assert "\n" not in mistake.error
    assert not list(workplace.rglob("imported"))
    assert not (workplace / "run").exists()


def test_neither_a_flag_nor_print_config_imports_one(
    workplace: Path, own: Callable[..., Result], stranger: str
) -> None:
    mistake = own("{}", f"--model.net={stranger}", "--print_config")
    assert mistake.code == 2
    assert "--allow stranger" in mistake.error
    assert not list(workplace.rglob("imported"))


def test_allowing_one_package_allows_no_other(
    workplace: Path, own: Callable[..., Result], stranger: str
) -> None:
    (workplace / "bigram.py").write_text(BIGRAM)
    text = PLACES["net"].format(stranger)
    assert "--allow stranger" in own(text, "--allow", "bigram").error
    assert not list(workplace.rglob("imported"))


@pytest.mark.parametrize("class_path", ["os.system", "timeit"])
def test_the_standard_library_is_another_package_too(
    own: Callable[..., Result], class_path: str
) -> None:
    mistake = own(PLACES["net"].format(class_path))
    assert mistake.code == 2
    assert "\n" not in mistake.error


@pytest.mark.parametrize("class_path", ["torch.nn.Linear", "lightning.pytorch.Trainer"])
def test_an_allowed_package_gives_classes_of_the_right_kind_only(
    own: Callable[..., Result], class_path: str
) -> None:
    mistake = own(PLACES["net"].format(class_path))
    assert mistake.code == 2
    assert class_path in mistake.error


@pytest.mark.slow
def test_a_checkpoint_that_names_a_stranger_is_refused_by_every_verb(
    workplace: Path, own: Callable[..., Result], command: Command, disallow: Callable[[], None]
) -> None:
    (workplace / "bigram.py").write_text(BIGRAM)
    own(BIGRAM_YAML, "--allow=bigram")
    (workplace / "bigram.py").write_text(STRANGER)
    disallow()
    before = contents(workplace / "run")
    assert command("generate", "run").code == 2
    assert command("validate", "run").code == 2
    assert own(BIGRAM_YAML, "--resume=must").code == 2
    assert not list(workplace.rglob("imported"))
    assert contents(workplace / "run") == before


@pytest.mark.slow
def test_a_poisoned_checkpoint_runs_nothing_in_any_verb(
    workplace: Path, own: Callable[..., Result], command: Command
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (workplace / "imported",)

    assert own("{}", "--trainer.max_steps=4").code == 0
    path = workplace / "run/checkpoints/step-000000004.ckpt"
    torch.save({**torch.load(path, weights_only=True), "evil": Evil()}, workplace / "evil.ckpt")
    (workplace / "run/checkpoints/SHA256SUMS").unlink()
    path.write_bytes((workplace / "evil.ckpt").read_bytes())
    for words in (
        ["generate", "run", "--checkpoint=evil.ckpt"],
        ["generate", "run"],
        ["validate", "run"],
    ):
        mistake = command(*words)
        assert mistake.code == 3
        assert "only tensors and plain types load" in mistake.error
    assert own("{}", "--resume=must", "--trainer.max_steps=8").code == 3
    assert own("{}", "--run_dir=new", "--init_from=evil.ckpt").code == 3
    assert not list(workplace.rglob("imported"))
