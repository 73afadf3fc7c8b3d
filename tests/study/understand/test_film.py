"""What snapshots make of the same prompts -> the tables that one reads."""

from typing import Any

import pytest

from lmtemplate.study.understand.film import (
    analogy_table,
    in_training_text,
    prompt_table,
    spread_over,
)
from lmtemplate.study.understand.prompts import prompts_in


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("you are. you were. you are", "3 times in the training text, followed by ·are 66.7%"),
        ("we are", "not in the training text in this spelling"),
        ("", "the training text is not available"),
    ],
)
def test_a_prompt_that_is_not_in_the_text_is_told_as_that(text: str, says: str) -> None:
    assert in_training_text(prompts_in(text, ["you"])["you"]).startswith(says)


def test_some_snapshots_are_spread_over_all() -> None:
    assert spread_over([*range(13)], 5) == [0, 3, 6, 9, 12]
    assert spread_over([1, 2], 5) == [1, 2]


def snapshot(name: str, rank: int, nearest: str, expects: str) -> dict[str, Any]:
    analogy = {"analogy": "a - b + c", "expected": "d", "rank": rank, "nearest": nearest}
    looks = {"the": {"top": [(expects, 0.5), ("x", 0.25), ("y", 0.125), ("z", 0.1)]}}
    return {"name": name, "analogies": [analogy], "prompts": looks}


def test_the_tables_set_the_first_snapshot_beside_the_last() -> None:
    shots = [snapshot("untrained", 40, "q", "?"), snapshot("best", 1, "d", "cat")]
    ranks = analogy_table(shots)
    assert ranks.head[-3:] == ("rank untrained", "rank best", "nearest at the end")
    assert ranks.rows == [("a - b + c", "d", "40", "1", "d")]
    about = {"the": {"count": 2, "in_text": [("dog", 1.0)]}}
    prompts = prompt_table({"snapshots": shots, "prompts": about})
    assert prompts.rows == [
        ("“the”", "? 50.0%, x 25.0%, y 12.5%", "cat 50.0%, x 25.0%, y 12.5%", "dog 100.0%")
    ]
