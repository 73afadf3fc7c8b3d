"""YAML of a stranger -> one line and an exit code; it makes settings and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed.launcher.api  # noqa: F401  # opens the C library when it is imported

from lmtemplate.__main__ import explain
from tests.conftest import TINY, Command, Result
from tests.runs import check_line

pytestmark = pytest.mark.slow


def bomb() -> str:
    """A few lines of YAML that come to 2 million things once somebody walks through them; each
    line more would make it ten times as many.
    """
    rows = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, 7):
        named = ", ".join(f"k{n}: *a{level - 1}" for n in range(10))
        rows.append(f"a{level}: &a{level} {{{named}}}")
    return "\n".join(rows)


# `elastic_launch(config, entrypoint)(...)` starts the entrypoint as a process.
LAUNCH = (
    "{config: {min_nodes: 1, max_nodes: 1, nproc_per_node: 1, rdzv_backend: c10d, rdzv_endpoint: "
    "'127.0.0.1:9'}, entrypoint: /usr/bin/env}"
)

YAMLS: dict[str, str] = {
    "apply": "model: !!python/object/apply:os.system ['touch canary']",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/\n---\nmodel: !name:os.system x",
    "bomb of settings": f"{bomb()}\nmodel: {{net: {{init_args: *a6}}}}",
    "a mapping in itself": "model: &a {net: *a}",
    "2,000 lists in each other": "model: " + "[" * 2_000 + "]" * 2_000,
    "a number of many digits": "seed_everything: " + "9" * 10_000,
    "a key of many kinds": "? [1, 2]\n: 3",
    "a class with a name without end": f"checkpoint: {'a' * 300_000}",
    "a class of 100,000 parts": f"model: {{optimizer: {{class_path: {'a.' * 100_000}b}}}}",
    "the same in a list": f"model: {{metrics: [lmtemplate.{'a.' * 100_000}b]}}",
    "the same in a text": "model: {net: {class_path: lmtemplate.models.GPT, dict_kwargs: {x: "
    f"'{{class_path: lmtemplate.{'a.' * 3_000}b}}'}}}}}}",
    "the same, as a text": f"model: {{net: '{{class_path: lmtemplate.{'a.' * 3_000}b}}'}}",
    "a strategy of a million letters": f"trainer: {{strategy: {'a' * 1_000_000}}}",
    "a million letters": f"run_dir: {'a' * 1_000_000}",
    "a NUL": "run_dir: a\0b",
    "a net from the network": "model: {net: 'https://127.0.0.1:9/canary.yaml'}",
    "allow in the config": "allow: canary_module\nmodel: {net: {class_path: canary_module.Thing}}",
    "a module like torch": "model: {net: {class_path: torch_canary.Thing}}",
    "a function of torch": "model: {net: {class_path: torch.hub.load, init_args: {repo: canary}}}",
    "os through torch": "samples: {class_path: torch.serialization.os.system}",
    "a callable": "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {setup: os.system}}}",
    "a launcher as the rate": "model: {schedule: {class_path: torch.optim.lr_scheduler.LambdaLR, "
    f"init_args: {{lr_lambda: {{class_path: torch.distributed.launcher.api.elastic_launch, "
    f"init_args: {LAUNCH}}}}}}}}}",
    "a launcher as a layer's device": "model: {metrics: [{class_path: torchmetrics.Accuracy, init_args: "
    "{task: multiclass}, dict_kwargs: {x: {class_path: torch.nn.Linear, init_args: {in_features: 1, "
    "out_features: 1, device: {class_path: torch.distributed.launcher.api.elastic_launch, init_args: "
    f"{LAUNCH}}}}}}}}}}}]}}",
    "our own command line": "model: {net: {class_path: lmtemplate.models.GPT, dict_kwargs: {x: "
    "{class_path: lmtemplate.cli.TrainingCLI, init_args: {words: [], allowed: [os]}}}}}",
    "a function of torch as a metric's": "model: {metrics: [{class_path: torchmetrics.MeanSquaredError, "
    "dict_kwargs: {dist_sync_fn: torch.hub.load}}]}",
    "a function in a tuple": "model: {optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.1, "
    "betas: [{class_path: subprocess.Popen, init_args: {args: touch canary}}, 0.9]}}}",
    "a callable of a stranger": "model: {schedule: {class_path: torch.optim.lr_scheduler.LambdaLR, "
    "init_args: {lr_lambda: canary_module.thing}}}",
    "another config behind a mark": "{seed_everything: 1,\n\ufeffconfig: /etc/passwd}",
    "an address in a mapping": "run_dir: !!str {=: 'http://127.0.0.1:9/x'}",
    "a launcher among words": "model: {net: {class_path: lmtemplate.models.GPT, dict_kwargs: {more: "
    f"{{class_path: torch.distributed.launcher.api.elastic_launch, init_args: {LAUNCH}}}}}}}}}",
    "a module that acts when it is imported": "model: {net: {class_path: lmtemplate.models.GPT, "
    "dict_kwargs: {x: {class_path: torch.utils.model_dump.__main__.X}}}}",
    "a class that is not there": "model: {net: {class_path: lmtemplate.models.GPT, dict_kwargs: "
    "{x: {class_path: torch.nope}}}}",
    "a logger of another run": "trainer: {logger: {class_path: "
    "lmtemplate.callbacks.loggers.RecordLogger, init_args: {run_dir: other, first_step: 1}}}",
    "a logger in a text on the network": 'trainer: {logger: "{class_path: '
    "lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: 'http://127.0.0.1:9/x'}}\"}",
    "a flag as the run": "run_dir: --allow=canary_module",
    "a flag in this folder as the run": "run_dir: ./--allow=canary_module",
    "a whole number in hexadecimals": f"trainer: {{num_nodes: 0x{'F' * 30}}}",
    "a number that has no text": f"trainer: {{num_nodes: 0x{'F' * 5000}}}",
    "a whole number in a text": f"data: {{max_train_blocks: '0x{'F' * 30}'}}",
    "a whole number that nothing holds": f"trainer: {{num_nodes: 1{'0' * 24}}}",
    "a plugin that has a queue start jobs": "trainer: {plugins: {class_path: "
    "lightning.pytorch.plugins.environments.SLURMEnvironment}}",
    "a private module in a text": 'model: {metrics: "[torch.utils.model_dump.__main__.X]"}',
    "a private module in a list": "model: {metrics: [torch.utils.model_dump.__main__.X]}",
    "a private module and a blank": 'model: {metrics: [{class_path: "torch._x.Y "}]}',
    "another config": "config: /etc/passwd",
    "another config in a list": "config: [/etc/passwd]",
    "a number without a digit": 'seed_everything: !!int ""',
    "a time that is none": "seed_everything: !!timestamp x",
    "a truth that is none": "seed_everything: !!bool x",
    "a number to the base of 60": f"model: {{label_smoothing: {'1:' * 400}1.5}}",
    "a folder of another protocol": "run_dir: 'github::a'",
    "a schedule whose types nobody wrote down": "model: {schedule: {class_path: "
    "torch.optim.swa_utils.SWALR, init_args: {swa_lr: 0.1, anneal_epochs: no}}}",
    "a private module in a text of pairs": "model: {net: {class_path: lmtemplate.models.GPT, "
    'dict_kwargs: {x: "!!omap [a: {class_path: lightning.__setup__.X}]"}}}',
}


@pytest.fixture
def ask_with(ask: Command, corpus: Path, tmp_path: Path) -> Callable[..., Result]:
    """Start a run with these settings."""

    def call(text: str, *more: str) -> Result:
        (tmp_path / "base.yaml").write_text(f"data: {{path: {corpus}}}\nrun_dir: {tmp_path}/run")
        (tmp_path / "mine.yaml").write_text(text)
        configs = ["--config", tmp_path / "base.yaml", "--config", tmp_path / "mine.yaml"]
        answer = ask("fit", *TINY, *configs, *more)
        assert not (tmp_path / "run").exists()
        return answer

    return call


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_a_config_makes_nothing_but_settings(ask_with: Callable[..., Result], text: str) -> None:
    check_line(ask_with(text), 2, 3, 5, 8)


@pytest.mark.parametrize("name", ["apply", "bomb of settings", "a module like torch"])
def test_looking_at_a_config_makes_nothing_either(
    ask_with: Callable[..., Result], name: str
) -> None:
    check_line(ask_with(YAMLS[name], "--print_config"), 2)


def test_no_module_beside_a_config_is_imported(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jsonargparse asks a new Python for types that nobody wrote down, once in a process."""
    monkeypatch.setattr("jsonargparse._stubs_resolver.stubs_resolver", None)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # as `python -m lmtemplate` runs
    for folder in ("config", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "config/json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = tmp_path / "config/mine.yaml"
    path.write_text(YAMLS["a schedule whose types nobody wrote down"])
    assert command("fit", *TINY, "--config", path).code == 2
    assert not (tmp_path / "ran").exists()


def class_of(kind: str, **settings: object) -> str:
    """A class as a config names it."""
    return json.dumps({"class_path": kind, "init_args": settings})


LOGGERS = "lightning.pytorch.loggers"

# A key and a class of a library for it, which is of the right kind, and fails when it is used.
UNFIT: list[tuple[str, str]] = [
    ("model.optimizer", class_of("torch.optim.SparseAdam")),
    ("model.optimizer", class_of("torch.optim.Adadelta", lr=1e308)),
    ("model.metrics", f"[{class_of('torchmetrics.MeanSquaredError')}]"),
    ("trainer.logger", class_of(f"{LOGGERS}.TensorBoardLogger", save_dir="{run}", max_queue="x")),
]


@pytest.mark.parametrize(("key", "text"), UNFIT)
def test_a_class_that_fails_when_it_is_used_is_a_matter_of_its_setting(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmtemplate.errors.own_line", lambda _: None)  # no own code but this test
    group, name = key.split(".")
    path, run = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text(f"{group}:\n  {name}: {text.replace('{run}', str(run))}\n")
    with pytest.raises((RuntimeError, TypeError, ValueError)) as failed:  # torch's own
        fit(run, "--config", path, "--allow", "lightning")
    line, code = explain(failed.value)
    assert code == 2
    assert line.startswith(f"{key} ({path}:2): ")
    assert " does not fit: " in line
