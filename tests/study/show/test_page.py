"""What a page is made of: a run's files, escaped tables, figures, and nothing from elsewhere."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lmtemplate.errors import CheckpointError
from lmtemplate.record import Record
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import MOST_POINTS
from tests.browser import needs_browser, open_offline

INITIAL, LOSSES = 4.0, {10: 2.0, 20: 1.0, 30: 0.5, 40: 0.6}
BYTES_PER_TOKEN, TOKENS_PER_STEP, SECONDS_PER_STEP, FLOPS_PER_TOKEN = 2.0, 100, 0.5, 6.0
EVIL = "<script>console.error(1)</script><img src=x onerror=console.error(2)>"


def write_run(
    folder: Path, lr: float = 0.1, tokenizer: str = "a", finished: bool = True, **other: Any
) -> Path:
    """A run of 40 steps as `lmtemplate fit` would leave it, without checkpoints and corpus.

    Args:
        folder: the run directory.
        lr: learning rate, falling to 0 at the last step.
        tokenizer: the digest of its tokenizer.
        finished: whether summary.json was written.
        other: prompt and sample, in place of what is written by default.
    """

    def validation(step: int, loss: float) -> dict[str, Any]:
        bits = loss / np.log(2) / BYTES_PER_TOKEN
        return {"step": step, "val/loss": loss, "val/bits_per_byte": bits}

    def sample(step: int) -> dict[str, Any]:
        text = other.get("sample", f" text of step {step}")
        return {"step": step, "samples": {other.get("prompt", "The"): text}}

    lines = [validation(0, INITIAL), sample(0)]
    for step in range(5, 41, 5):
        counted = {"data/tokens": 1.0 * TOKENS_PER_STEP * step}
        counted |= {"speed/seconds": SECONDS_PER_STEP * step, "speed/tokens_per_second": 200.0}
        rate = {"optim/lr": lr * (1 - step / 40), "optim/grad_norm": 1.5}
        lines.append({"step": step, "train/loss": 4.0 - step / 20, **counted, **rate})
        if step in LOSSES:
            lines += [validation(step, LOSSES[step]), sample(step)]
    (folder / "checkpoints").mkdir(parents=True)
    record = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "checkpoints" / "training_metrics.jsonl").write_text(record)
    optimizer = {"class_path": "lmtemplate.optimizers.AdamW", "init_args": {"lr": lr}}
    config = {"run_dir": str(folder), "model": {"optimizer": optimizer}, "seed_everything": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    source = {"path": "nowhere", "fingerprint": tokenizer * 2, "tokenizer_sha256": tokenizer}
    manifest = {"command": ["lmtemplate", "fit"], "data": source, "seed": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if finished:
        tokens = 40 * TOKENS_PER_STEP
        summary = {"stop_reason": "trainer.max_steps", "tokens": tokens, "parameters": 1000}
        summary |= {"flops": FLOPS_PER_TOKEN * tokens, "tokens_per_second": 200.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Elements(HTMLParser):
    """The elements of a page with their attributes; what a script holds is none."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def loads(text: str) -> list[str]:
    """Whatever a page would fetch: attributes that name a source, and imports of its styles."""
    sources = {"src", "href", "srcset", "data", "action", "background", "poster"}
    found = [f"{tag} {name}" for tag, attrs in Elements(text).found for name in attrs]
    styles = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    fetched = [each for each in found if each.split()[1] in sources]
    return fetched + re.findall(r"@import|url\(", styles)


def built(run: page.RunFiles) -> str:
    """A small page with the curves of a run."""
    parts = {"rows": [("a", "b")], "head": ["", "run"], "notes": [], "sentences": []}
    return page.render(
        "compare", "title", {**parts, "curves": page.plot_html(page.curve_figure(run))}
    )


@pytest.fixture
def run(tmp_path: Path) -> page.RunFiles:
    return page.read_run(write_run(tmp_path / "run"))


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no record"):
        page.read_run(tmp_path)


def test_figures_are_those_that_were_written(run: page.RunFiles) -> None:
    figures = page.figures_of(run)
    assert (figures["best val loss"], figures["at step"]) == ("0.5000", "30")
    assert figures["bits per byte there"] == f"{0.5 / np.log(2) / BYTES_PER_TOKEN:.4f}"
    assert (figures["tokens"], figures["training time"]) == ("4,000", "20 s")
    assert (figures["tokens/s"], figures["stopped"]) == ("200", "max_steps")


def test_an_unfinished_run_has_the_figures_of_its_record(tmp_path: Path) -> None:
    figures = page.figures_of(page.read_run(write_run(tmp_path / "run", finished=False)))
    assert (figures["tokens/s"], figures["stopped"]) == ("200", "not finished")


def test_a_run_that_has_logged_nothing_has_dashes(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "training_metrics.jsonl").touch()
    figures = page.figures_of(page.read_run(tmp_path))
    assert {v for k, v in figures.items() if k != "stopped"} == {page.NONE}


def test_counts_between_log_points_lie_on_a_line_from_zero(run: page.RunFiles) -> None:
    steps = np.array([0, 1, 7, 40])
    assert run.counted("data/tokens", steps) == pytest.approx(TOKENS_PER_STEP * steps)
    assert np.isnan(run.counted("never/logged", steps)).all()


def test_a_long_curve_is_thinned_out_and_keeps_its_extremes(run: page.RunFiles) -> None:
    steps, values = np.arange(1, 30_001), np.random.default_rng(0).normal(size=30_000)
    record = Record(steps, values, values, values, steps, values={"optim/grad_norm": values})
    traces = page.curve_figure(replace(run, record=record)).data
    (drawn,) = (trace.y for trace in traces if trace.name == "gradient norm")
    assert len(drawn) <= 1.1 * MOST_POINTS
    assert (drawn.min(), drawn.max()) == (values.min(), values.max())


def test_text_in_a_page_stays_text() -> None:
    parts = {
        "rows": [(EVIL, EVIL)],
        "head": [EVIL, "a & b"],
        "notes": [EVIL],
        "curves": EVIL,
        "sentences": [EVIL],
    }
    elements = Elements(page.render("compare", EVIL, parts))
    assert (elements.count("script"), elements.count("img")) == (1, 0)  # plotly.js


def test_a_long_name_of_a_setting_may_break_after_a_dot(run: page.RunFiles) -> None:
    parts = {
        "rows": [("model.n_layer<", "1")],
        "head": [],
        "notes": [],
        "curves": "",
        "sentences": [],
    }
    assert "model.<wbr>n_<wbr>layer&lt;</div></th>" in page.render("compare", "title", parts)


def test_all_panels_share_one_x_axis(run: page.RunFiles) -> None:
    figure = page.curve_figure(run)
    assert {trace.xaxis for trace in figure.data} == {"x4"}
    assert {trace.yaxis for trace in figure.data} == {"y", "y2", "y3", "y4"}


def test_panels_do_not_overlap(run: page.RunFiles) -> None:
    layout = page.curve_figure(run).layout
    domains = [layout[name].domain for name in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert domains[0][1] == 1
    for (bottom, _), (_, top) in pairwise(domains):
        assert 0 <= top < bottom


def test_the_learning_rate_stands_on_a_log_axis_without_its_zero(run: page.RunFiles) -> None:
    figure = page.curve_figure(run)
    rates = next(trace.y for trace in figure.data if trace.name == "learning rate")
    assert figure.layout.yaxis2.type == "log"
    assert run.record.learning_rate[-1] == 0
    assert not (np.asarray(rates) <= 0).any()


def test_the_first_validation_stands_before_step_1(run: page.RunFiles) -> None:
    curve = next(t for t in page.curve_figure(run).data if t.name == "validation")
    assert dict(zip(curve.x, curve.y, strict=True)) == {0: INITIAL, **LOSSES}


@pytest.mark.slow
def test_a_page_names_nothing_that_would_have_to_be_fetched(run: page.RunFiles) -> None:
    assert loads(built(run)) == []
    assert "default-src 'none'" in built(run)


def test_what_a_page_would_fetch_is_noticed() -> None:
    text = '<img src="x"><style>a {background: url(y)}</style>'
    assert loads(text) == ["img src", "url("]


@needs_browser
@pytest.mark.browser
def test_a_browser_opens_a_page_without_a_complaint(run: page.RunFiles, tmp_path: Path) -> None:
    written = tmp_path / "page.html"
    written.write_text(built(run), encoding="utf-8")
    assert open_offline(written, tmp_path / "page.png") == []
    assert (tmp_path / "page.png").stat().st_size > 10_000


MEASURE = """<script>addEventListener("load", () => {
  const [root, box] = [document.documentElement, document.querySelector(".wide")];
  box.scrollLeft = 200;
  const first = box.querySelector("tbody th").getBoundingClientRect().left;
  const lines = new Set([...box.querySelectorAll("tbody td")].map(cell => cell.offsetHeight)).size;
  console.log("SEEN", root.scrollWidth - root.clientWidth, box.scrollLeft, first, lines);
})</script>"""


@needs_browser
@pytest.mark.browser
def test_on_a_phone_a_wide_table_scrolls_beside_its_first_column(tmp_path: Path) -> None:
    cells = ["-1.234e-05", "some words of text"] * 9
    parts = {"rows": [("name", *cells)], "head": [""] * 19, "notes": [], "sentences": []}
    html, path = page.render("compare", "title", {**parts, "curves": ""}), tmp_path / "page.html"
    path.write_text(html.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    (line,) = open_offline(path, tmp_path / "page.png", "--window-size=500,900")
    assert "SEEN 0 200 16 1" in line  # 16 pixels is the page's own margin


def test_a_text_on_a_figure_is_no_markup_of_plotly() -> None:
    assert page.label("<a href='x'>\n&amp;") == "&lt;a href='x'&gt;⏎&amp;amp;"
