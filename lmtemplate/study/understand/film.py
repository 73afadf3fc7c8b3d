"""What a run's snapshots make of the same prompts -> lines for a terminal, and a page with a film."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import SERIES
from lmtemplate.study.understand.story import aligned, wrapped

SHOWN_SNAPSHOTS = 5  # in the terminal
SAMPLE_WIDTH = 90


def spread_over(rows: list[Any], count: int) -> list[Any]:
    """The first, the last, and others evenly between them."""
    if len(rows) <= count:
        return rows
    return [rows[n * (len(rows) - 1) // (count - 1)] for n in range(count)]


def share_of(value: float | None) -> str:
    if value is None:
        return page.NONE
    return f"{value:.1%}" if value >= 1e-3 else f"{100 * value:.2g}%"


def as_shares(pairs: Iterable[Any]) -> str:
    """[" are", 0.83] ... -> "' are' 83.0%, ..."."""
    return ", ".join(f"{word!r} {share_of(value)}" for word, value in pairs)


def prompt_lines(found: dict[str, Any], prompt: str) -> Iterator[str]:
    about, shots = found["prompts"][prompt], spread_over(found["snapshots"], SHOWN_SNAPSHOTS)
    follow = f", followed by {as_shares(about['in_text'])}" if about["in_text"] else ""
    yield f"\n{prompt!r}: {about['count']:,} times in the training text{follow}"
    looks = [(shot["name"], shot["prompts"][prompt]) for shot in shots]
    yield from aligned(
        (
            name,
            f"{look['entropy']:.2f}",
            as_shares(look["top"][:3]),
            as_shares(look["words"].items()),
        )
        for name, look in looks
    )
    for name, look in (looks[0], looks[-1]):
        sample = " ".join(f"{prompt}{look['sample']}".split())
        yield f"  {name}: {sample[:SAMPLE_WIDTH]}"


def film_text(found: dict[str, Any]) -> str:
    """The whole way, from the first snapshot to the last."""
    first, *_, last = found["snapshots"]
    lines = [
        f"{found['run']}: {len(found['snapshots'])} snapshots, {first['name']} to {last['name']}"
    ]
    lines += [line for note in found["notes"] for line in wrapped(note)]
    ends = f"{first['name']}, then {last['name']}"
    lines += ["\nSnapshot, entropy (nats), likeliest tokens, probability that these words follow"]
    for prompt in found["prompts"]:
        lines += prompt_lines(found, prompt)
    if last["neighbours"]:
        lines += [f"\nNearest words in the table of embeddings: {ends}"]
        lines += aligned(
            (
                word,
                " ".join(one for one, _ in first["neighbours"][word]),
                " ".join(one for one, _ in near),
            )
            for word, near in last["neighbours"].items()
        )
    if last["analogies"]:
        lines += [f"\nAnalogies, and the rank of the expected word: {ends}"]
        pairs = zip(first["analogies"], last["analogies"], strict=True)
        lines += aligned(
            (
                f"{row['analogy']} = {row['expected']}",
                str(before["rank"]),
                f"{row['rank']} of {row['among']}",
            )
            for before, row in pairs
        )
    return "\n".join(lines)


def before_and_after_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Prompt, what the first snapshot expects, what the last one does, what the text has."""
    first, *_, last = found["snapshots"]
    rows = []
    for prompt, about in found["prompts"].items():
        looks = (shot["prompts"][prompt]["top"][:3] for shot in (first, last))
        rows.append(
            (f"“{prompt}”", *map(as_shares, looks), as_shares(about["in_text"][:3]) or page.NONE)
        )
    return rows


def analogy_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Analogy, the expected word, its rank in each of some snapshots, the word that came first."""
    shots = spread_over(found["snapshots"], SHOWN_SNAPSHOTS)
    rows = []
    for number, row in enumerate(shots[-1]["analogies"]):
        ranks = (f"{shot['analogies'][number]['rank']}" for shot in shots)
        rows.append((row["analogy"], row["expected"], *ranks, row["nearest"]))
    return rows


def write_film(found: dict[str, Any], run: Path) -> Path:
    """Write RUN/before_after.html. Raises DiskError."""
    name = run.resolve().name
    names = [shot["name"] for shot in spread_over(found["snapshots"], SHOWN_SNAPSHOTS)]
    parts = {
        "found": found,
        "name": name,
        "data": {**found, "colors": SERIES},
        "rows": before_and_after_rows(found),
        "analogies": analogy_rows(found),
        "analogy_head": ("", "is", *(f"rank {name}" for name in names), "nearest at the end"),
        "first": found["snapshots"][0],
        "last": found["snapshots"][-1],
    }
    target = run / "before_after.html"
    write_text(target, page.render("before_after", f"{name}: before and after", parts))
    return target
