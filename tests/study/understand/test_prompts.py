"""A text -> prompts, and what follows them: counts that one can make by hand."""

from typing import Any

import pytest

from lmtemplate.study.understand.prompts import (
    as_in,
    choose_prompts,
    own_prompts,
    prompts_in,
    what_follows,
)

TEXT = "you are late.\nyou are warm.\nthe cat near the dogs is late.\nthe dogs are here.\n" * 30


def test_followers_are_counted_word_by_word() -> None:
    count, found = what_follows("you are. you were. you, too. yours is. thank you\n", "you", 4)
    assert count == 4
    assert dict(found) == {" are": 0.25, " were": 0.25, ",": 0.25, "\n": 0.25}


def test_a_prompt_is_written_as_the_text_has_it() -> None:
    assert as_in(TEXT, "You") == "you"
    assert as_in("I see you and you.", "You") == " you"
    assert as_in("nothing", "You") == "You"
    assert as_in(TEXT, "The cat sleeps") == "the cat sleeps"  # as the text has "the"


def test_the_texts_own_idioms_are_pairs_that_one_word_follows() -> None:
    text = "the old House of Lords, a House of Lords, the law of the land, of old.\n" * 20
    assert " House of" in own_prompts(text)
    assert own_prompts("all words differ here") == []


def test_words_to_compare_follow_the_prompt_or_its_last_word() -> None:
    """After "the dogs" comes "are"; "the cat near the dogs" wants "is"."""
    found = prompts_in(TEXT, ["the cat near the dogs"])["the cat near the dogs"]
    assert (found["count"], found["in_text"]) == (30, [(" is", 1.0)])
    assert {" is", " are"} <= {*found["words"]}


def test_a_prompt_without_words_has_nothing_to_compare() -> None:
    assert prompts_in("the cat", [" "])[" "]["words"] == []


def test_a_given_prompt_stands_alone_and_those_of_the_run_come_first() -> None:
    config = {"samples": {"init_args": {"prompts": ["", "The people"]}}}
    assert choose_prompts(TEXT, "mine", config) == ["mine"]
    chosen = choose_prompts(TEXT, "", config)
    assert chosen[:2] == ["The people", "you"]
    assert "" not in chosen
    assert choose_prompts("", "", {"samples": None})[0] == "You"


@pytest.mark.parametrize(
    "said", [None, "x", [1], {}, {"init_args": 1}, {"init_args": {"prompts": 1}}]
)
def test_prompts_of_a_config_that_are_none_are_left_out(said: Any) -> None:
    lessons = choose_prompts("You are", "", {})
    assert choose_prompts("You are", "", {"samples": said}) == lessons
    listed = {"init_args": {"prompts": [None, 5, " ", "You may"]}}
    assert choose_prompts("You are", "", {"samples": listed}) == ["You may", *lessons]
