"""Changes of the code that no commit holds -> RUN/uncommitted.diff, without secrets."""

import re
import subprocess
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate import redact
from lmtemplate.errors import ConfigError, DiskError
from lmtemplate.plain_file import read_plain
from lmtemplate.run_dir import write_text
from lmtemplate.study.run_files import DIFF

NEW_FILES = (".py", ".yaml", ".yml", ".toml")  # that git does not know yet
# name = "value" in a program, or name: value as all of a line, where the value looks made by chance
QUOTED = re.compile(r"""([\w-]+)(["']?\s*[:=]\s*)(["'])([^"'\s]{8,})(?=\3)""")
PLAIN = re.compile(r"^([+ -]\s*(?:export )?)([\w-]+)(\s*[:=]\s*)((?=\S*\d)[\w+/=.-]{16,})$", re.M)


def _git(*words: str, folder: Path) -> str:
    """What git prints; empty without git, without a repository, or where it takes too long."""
    command = ["git", "-c", "core.quotePath=false", *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, cwd=folder, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def without_secrets(diff: str) -> str:
    """The diff with *** for what looks like a secret, by its shape or by its name."""

    def quoted(found: re.Match[str]) -> str:
        name, between, quote, _ = found.groups()
        return f"{name}{between}{quote}{redact.HIDDEN}" if redact.is_secret(name) else found[0]

    def plain(found: re.Match[str]) -> str:
        start, name, between, _ = found.groups()
        return f"{start}{name}{between}{redact.HIDDEN}" if redact.is_secret(name) else found[0]

    return redact.text(PLAIN.sub(plain, QUOTED.sub(quoted, diff)), sys.argv)


def uncommitted_changes(folder: Path = Path(__file__).parent) -> str:
    """What `git apply` needs, on top of the commit, to get the code as it is now; "" if nothing.

    New files that git does not ignore belong to it where they are code or configs.
    """
    root = Path(_git("rev-parse", "--show-toplevel", folder=folder).strip() or folder)
    plain = ("--no-color", "--no-ext-diff", "--no-textconv")
    changes = _git("diff", "HEAD", *plain, folder=root)
    listed = _git("ls-files", "--others", "--exclude-standard", "-z", folder=root).split("\0")
    for name in listed:
        if name.endswith(NEW_FILES):
            changes += _git("diff", *plain, "--no-index", "--", "/dev/null", name, folder=root)
    return without_secrets(changes)


class Uncommitted(Callback):
    """Keeps the changes that the manifest's commit does not hold, so that a run can be repeated.

    Args:
        most_bytes: larger changes are not kept, but for a line that says so.
    """

    def __init__(self, most_bytes: int = 1_000_000) -> None:
        if most_bytes < 0:
            raise ConfigError(f"uncommitted.most_bytes={most_bytes} has to be 0 or more")
        self.most_bytes = most_bytes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it for the first start, and once more for a later start with other changes."""
        if not trainer.is_global_zero:
            return
        path, changes = Path(trainer.default_root_dir) / DIFF, uncommitted_changes()
        if trainer.global_step:
            before = read_plain(path, errors="replace") if path.is_file() else ""
            path = path.with_name(f"uncommitted-{trainer.global_step}.diff")
            changes = changes if changes != before else ""
        size = len(changes.encode())
        if size > self.most_bytes:
            print(f"the code has {size:,} bytes of uncommitted changes: not kept", flush=True)
        if not 0 < size <= self.most_bytes:
            path.unlink(missing_ok=True)
            return
        try:
            write_text(path, changes)
        except DiskError as error:
            print(f"the uncommitted changes are not kept: {error}", flush=True)
