"""What a run's snapshots make of the same prompts -> tables in a terminal, and a page with a film."""

from pathlib import Path
from typing import Any

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import SERIES
from lmtemplate.study.understand.tables import Found, TextTable, as_lines, as_table, cell

SHOWN_SNAPSHOTS = 5  # in a table


def spread_over(rows: list[Any], count: int) -> list[Any]:
    """The first, the last, and others evenly between them."""
    if len(rows) <= count:
        return rows
    return [rows[n * (len(rows) - 1) // (count - 1)] for n in range(count)]


def analogy_table(shots: list[Found]) -> TextTable:
    """The rank of the expected word in each, and the word that came first in the last."""
    rows = []
    for same in zip(*(shot["analogies"] for shot in shots), strict=True):
        ranks = {f"rank {shot['name']}": one["rank"] for shot, one in zip(shots, same, strict=True)}
        sums = {"": same[0]["analogy"], "is": same[0]["expected"]}
        rows.append({**sums, **ranks, "nearest at the end": same[-1]["nearest"]})
    return as_table(rows)


def prompt_table(found: Found) -> TextTable:
    """What the first snapshot expects after each prompt, what the last one does, what came."""
    shots = {
        shot["name"]: shot["prompts"] for shot in (found["snapshots"][0], found["snapshots"][-1])
    }
    return as_table(
        {
            "prompt": f"“{prompt}”",
            **{f"{name} expects": looks[prompt]["top"][:3] for name, looks in shots.items()},
            "the training text has": about["in_text"][:3] or page.NONE,
        }
        for prompt, about in found["prompts"].items()
    )


def in_training_text(about: Found) -> str:
    """How often the training text has a prompt, and what follows it there."""
    if about["count"] is None:
        return "the training text is not available"
    if not about["count"]:
        return "not in the training text in this spelling; what follows is the model's own guess"
    follow = f", followed by {cell(about['in_text'])}" if about["in_text"] else ""
    return f"{about['count']:,} times in the training text{follow}"


def film_text(found: Found) -> str:
    """The whole way, from the first snapshot to the last."""
    shots, tables = spread_over(found["snapshots"], SHOWN_SNAPSHOTS), dict[str, TextTable]()
    first, last = shots[0], shots[-1]
    for prompt, about in found["prompts"].items():
        rows = ({"snapshot": shot["name"], **shot["prompts"][prompt]} for shot in shots)
        tables[f"{prompt!r}: {in_training_text(about)}"] = as_table(
            {**row, "top": row["top"][:3], "sample": " ".join(row["sample"].split())}
            for row in rows
        )
    if last["neighbours"]:
        tables["Nearest words in the table of embeddings"] = as_table(
            {"": word, **{s["name"]: " ".join(w for w, _ in s["neighbours"][word]) for s in shots}}
            for word in last["neighbours"]
        )
    if last["analogies"]:
        among = last["analogies"][0]["among"]
        tables[f"Analogies, and the rank of the expected word among {among}"] = analogy_table(shots)
    title = (
        f"{found['run']}: {len(found['snapshots'])} snapshots, {first['name']} to {last['name']}"
    )
    return as_lines(title, found["notes"], tables)


def write_film(found: Found, run: Path) -> Path:
    """Write RUN/before_after.html. Raises DiskError."""
    name, target = run.resolve().name, run / "before_after.html"
    parts = {
        "found": found,
        "name": name,
        "data": {**found, "colors": SERIES},
        "told": {prompt: in_training_text(about) for prompt, about in found["prompts"].items()},
        "expected": prompt_table(found),
        "analogies": analogy_table(spread_over(found["snapshots"], SHOWN_SNAPSHOTS)),
        "last": found["snapshots"][-1],
    }
    write_text(target, page.render("before_after", f"{name}: before and after", parts))
    return target
