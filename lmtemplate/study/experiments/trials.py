"""The trials of a sweep <-> trials.jsonl: a line as one begins, and another as it ends."""

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from lmtemplate import run_dir
from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.study.run_files import append_line, check_kinds

Outcome = Literal["complete", "pruned", "failed"]
KINDS_OF_TRIAL = {"number": 0, "settings": dict, "state": str, "loss": float, "losses": dict}


@dataclass
class Trial:
    """One point of a sweep, and what came of it."""

    number: int
    settings: dict[str, str]  # key -> value, as on the command line
    state: Outcome | None = None  # None: it still trains
    loss: float | None = None  # the objective: lower is better
    losses: dict[int, float] = field(default_factory=dict)  # step -> validation loss

    @classmethod
    def from_line(cls, line: str, path: Path) -> "Trial":
        """Raises ConfigError for what is no line of a sweep."""
        try:
            content = json.loads(line)
            check_kinds(content, KINDS_OF_TRIAL, path)
            trial = cls(**content)
            check_kinds([*trial.losses.values()], [float], path)
            trial.losses = {int(step): loss for step, loss in trial.losses.items()}
            is_sound = trial.state in (None, *get_args(Outcome))
            is_sound &= all(isinstance(value, str) for value in trial.settings.values())
            is_sound &= all(0 <= step < 2**53 for step in trial.losses)
            if not is_sound or (trial.state == "complete" and trial.loss is None):
                raise ValueError("no such trial")
        except (ValueError, TypeError, AttributeError, RecursionError, CheckpointError) as error:
            raise ConfigError(f"{path} is damaged; name another --run_dir") from error
        return trial


class Book:
    """All trials so far; what is written is on the disk at once."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where the folder holds no trials of a sweep, or a link that leaves it."""
        run_dir.refuse_links(folder)
        self.path = folder / "trials.jsonl"
        self.lock = threading.Lock()
        text = self.path.read_text("utf-8", "replace") if self.path.is_file() else ""
        if text and not text.endswith("\n"):  # a kill has cut the last line
            text = text[: text.rfind("\n") + 1]
            run_dir.write_text(self.path, text)
        found = (Trial.from_line(line, self.path) for line in text.splitlines())
        self.trials = [*{trial.number: trial for trial in found}.values()]
        if any(trial.number != place for place, trial in enumerate(self.trials)):
            raise ConfigError(f"{self.path} is damaged; name another --run_dir")

    def write(self, trial: Trial) -> None:
        with self.lock:
            append_line(self.path, json.dumps(asdict(trial)))
