"""What a run's snapshots make of the same prompts -> lines for a terminal, and a page with a film."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import SERIES
from lmtemplate.study.understand.story import Found, TextTable, aligned, wrapped

SHOWN_SNAPSHOTS = 5  # in a table
SAMPLE_WIDTH = 90


def spread_over(rows: list[Any], count: int) -> list[Any]:
    """The first, the last, and others evenly between them."""
    if len(rows) <= count:
        return rows
    return [rows[n * (len(rows) - 1) // (count - 1)] for n in range(count)]


def as_shares(pairs: Iterable[Any]) -> str:
    """[" are", 0.83] ... -> "' are' 83.0%, ..."."""

    def share(value: float) -> str:
        return f"{value:.1%}" if value >= 1e-3 else f"{100 * value:.2g}%"

    return ", ".join(f"{word!r} {page.number(value, share)}" for word, value in pairs)


def prompt_lines(found: Found, prompt: str) -> Iterator[str]:
    about, shots = found["prompts"][prompt], spread_over(found["snapshots"], SHOWN_SNAPSHOTS)
    follow = f", followed by {as_shares(about['in_text'])}" if about["in_text"] else ""
    yield f"\n{prompt!r}: {about['count']:,} times in the training text{follow}"
    looks = {shot["name"]: shot["prompts"][prompt] for shot in shots}
    rows = [
        (name, f"{one['entropy']:.2f}", as_shares(one["top"][:3]), as_shares(one["words"].items()))
        for name, one in looks.items()
    ]
    yield from aligned([("snapshot", "entropy", "likeliest tokens", "these words follow"), *rows])
    for name in (shots[0]["name"], shots[-1]["name"]):
        sample = " ".join(f"{prompt}{looks[name]['sample']}".split())
        yield f"  {name}: {sample[:SAMPLE_WIDTH]}"


def analogy_table(found: Found) -> TextTable:
    """The rank of the expected word in some snapshots, and the word that came first in the last."""
    shots = spread_over(found["snapshots"], SHOWN_SNAPSHOTS)
    rows: TextTable = [
        ("", "is", *(f"rank {shot['name']}" for shot in shots), "nearest at the end")
    ]
    for same in zip(*(shot["analogies"] for shot in shots), strict=True):
        ranks = (f"{row['rank']}" for row in same)
        rows.append((same[0]["analogy"], same[0]["expected"], *ranks, same[-1]["nearest"]))
    return rows


def film_text(found: Found) -> str:
    """The whole way, from the first snapshot to the last."""
    first, *_, last = found["snapshots"]
    ends = f"{first['name']}, then {last['name']}"
    lines = [
        f"{found['run']}: {len(found['snapshots'])} snapshots, {first['name']} to {last['name']}"
    ]
    lines += [line for note in found["notes"] for line in wrapped(note)]
    lines += [line for prompt in found["prompts"] for line in prompt_lines(found, prompt)]
    if last["neighbours"]:
        lines += [f"\nNearest words in the table of embeddings: {ends}"]
        near = [shot["neighbours"] for shot in (first, last)]
        lines += aligned(
            [word, *(" ".join(one for one, _ in shot[word]) for shot in near)] for word in near[1]
        )
    if last["analogies"]:
        among = last["analogies"][0]["among"]
        lines += [f"\nAnalogies, and the rank of the expected word among {among}"]
        lines += aligned(analogy_table(found))
    return "\n".join(lines)


def expected_rows(found: Found) -> TextTable:
    """Prompt, what the first snapshot expects, what the last one does, what the text has."""
    first, *_, last = (shot["prompts"] for shot in found["snapshots"])
    return [
        (
            f"“{prompt}”",
            *(as_shares(looks[prompt]["top"][:3]) for looks in (first, last)),
            as_shares(about["in_text"][:3]) or page.NONE,
        )
        for prompt, about in found["prompts"].items()
    ]


def write_film(found: Found, run: Path) -> Path:
    """Write RUN/before_after.html. Raises DiskError."""
    name, target = run.resolve().name, run / "before_after.html"
    parts = {
        "found": found,
        "name": name,
        "data": {**found, "colors": SERIES},
        "rows": expected_rows(found),
        "analogies": analogy_table(found),
        "first": found["snapshots"][0],
        "last": found["snapshots"][-1],
    }
    write_text(target, page.render("before_after", f"{name}: before and after", parts))
    return target
