"""A run that has ended -> the verdict and the figures in the terminal, and everything in a page."""

import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lmtemplate.record import is_recorded
from lmtemplate.study.diagnose.diagnose import examine, few_words, sentences
from lmtemplate.study.run_files import command
from lmtemplate.study.show.report import write_report
from lmtemplate.study.show.summary import summary


def explain_run(run: Path, allow: Sequence[str] = ()) -> str | None:
    """Say how a run went, draw it, and write report.html and TensorBoard's text `verdict`.

    Returns the verdict in a few words, if there is one. The run is over and safe: what goes wrong here costs no more than a line.
    """
    if not is_recorded(run):
        return None
    try:
        with subprocess.Popen(command("plot", str(run), "--quiet")):
            from torch.utils.tensorboard import SummaryWriter

            examination = examine(run, allow=allow)
            verdict = sentences(examination)
            summary(run)
            print(f"\n{verdict}")
            with SummaryWriter(str(run)) as board:
                text = textwrap.indent(verdict, "    ")  # so that Markdown keeps the lines
                board.add_text("verdict", text, int(max(examination.record.steps, default=0)))
            print(f"\n  report   {write_report(run, examination)}", flush=True)
            return few_words(examination)
    except Exception as error:
        print(f"note: the run is safe, but cannot be explained: {error!r} (see {run})")
    return None
