"""A run that has ended -> the verdict and the figures in the terminal, and everything in a page."""

import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lmtemplate.record import is_recorded
from lmtemplate.run_dir import command
from lmtemplate.study.diagnose.diagnose import Examination, examine, sentences
from lmtemplate.study.show.report import write_report
from lmtemplate.study.show.summary import summary


def _on_the_board(run: Path, examination: Examination) -> None:
    from torch.utils.tensorboard import SummaryWriter

    record = examination.record
    step = int(record.steps[-1]) if len(record) else 0
    # indented, so that Markdown keeps the lines as they are
    text = textwrap.indent(sentences(examination), "    ")
    with SummaryWriter(str(run)) as board:
        board.add_text("verdict", text, step)


def explain(run: Path, allow: Sequence[str] = ()) -> None:
    """Say what came of a run, draw it, and leave the whole story in report.html.

    The run is over and safe; what goes wrong here costs no more than a line.

    Args:
        run: run directory.
        allow: packages outside lmtemplate whose classes its checkpoints may name.
    """
    if not is_recorded(run):
        return
    try:
        with subprocess.Popen(command("plot", str(run), "--quiet")):
            examination = examine(run, allow=allow)
            said = sentences(examination)
            summary(run)
            print(f"\n{said}")
            _on_the_board(run, examination)
            print(f"\n  report   {write_report(run, examination)}", flush=True)
    except Exception as error:
        print(f"note: the run is safe, but cannot be explained: {error!r} (see {run})")
