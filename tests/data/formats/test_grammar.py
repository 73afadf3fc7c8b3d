"""The grammar's entropy is what it says, and what was planted in it is there."""

import math
import re
import statistics
import subprocess
import sys
from collections import Counter

import pytest

from lmtemplate.data.corpus import open_corpus
from lmtemplate.data.formats.grammar import CONTINUE, RARE, Grammar, rules
from lmtemplate.errors import DataError
from tests.data.corpora import texts
from tests.data.formats.grammar_entropy import entropy_per_sentence, information, unseen_sentences

GRAMMAR = Grammar(seed=7, documents=4000)
DOCUMENTS = list(GRAMMAR)
SENTENCES = Counter(sentence for document in DOCUMENTS for sentence in document.split("\n"))


def test_probabilities_of_all_sentences_add_up_to_one() -> None:
    assert math.fsum(GRAMMAR.probabilities.values()) == pytest.approx(1, abs=1e-12)


def test_no_two_derivations_give_the_same_sentence() -> None:
    derivations = sum(math.prod(map(len, choices)) for _, _, choices in rules())
    assert len(GRAMMAR.probabilities) == derivations


def test_entropy_from_the_rules_is_entropy_of_the_listed_sentences() -> None:
    listed = -math.fsum(p * math.log(p) for p in GRAMMAR.probabilities.values())
    going_on = -CONTINUE * math.log(CONTINUE) - (1 - CONTINUE) * math.log(1 - CONTINUE)
    assert entropy_per_sentence() == pytest.approx(listed + going_on, rel=1e-12)


def test_mean_information_of_documents_is_the_entropy() -> None:
    nats = [information(GRAMMAR, document) for document in DOCUMENTS]
    error = statistics.stdev(nats) / math.sqrt(len(nats))
    expected = entropy_per_sentence() / (1 - CONTINUE)
    assert abs(statistics.fmean(nats) - expected) < 3 * error


def test_information_is_minus_the_log_of_a_probability_worked_out_by_hand() -> None:
    document = "the dog is lost.\nwe are warm."
    probability = (0.12 / 8 / 8) * CONTINUE * (0.08 / 3 / 8) * (1 - CONTINUE)
    assert information(GRAMMAR, document) == pytest.approx(-math.log(probability))


def test_sentences_come_as_often_as_their_probability_says() -> None:
    total = SENTENCES.total()
    for sentence, probability in GRAMMAR.probabilities.items():
        deviation = math.sqrt(total * probability * (1 - probability))
        assert abs(SENTENCES[sentence] - total * probability) < 5 * deviation + 1


@pytest.mark.parametrize(
    "text", ["", "the dog are lost.", "we are warm", "we are warm.\n", "we are warm. we are warm."]
)
def test_text_that_the_grammar_cannot_produce_has_no_information(text: str) -> None:
    with pytest.raises(ValueError, match="not a sentence of the grammar"):
        information(GRAMMAR, text)


def test_unseen_sentences_never_occur_though_their_parts_do() -> None:
    unseen = unseen_sentences()
    assert "the dog sat on the rug." in unseen
    assert not GRAMMAR.probabilities.keys() & set(unseen)
    for sentence in unseen:
        animal, place = sentence.split(" sat on ")
        assert any(other.startswith(f"{animal} sat on ") for other in SENTENCES)
        assert any(other.endswith(f" sat on {place}") for other in SENTENCES)


def test_verbs_agree_with_their_subjects() -> None:
    for sentence in GRAMMAR.probabilities:
        verb = re.search(r" (is|are) ", sentence)
        if verb:
            subject = sentence.split()[1 if sentence.startswith("the ") else 0]
            many = subject in {"you", "we", "they"} or (
                subject[-1] == "s" and subject != "princess"
            )
            assert verb[1] == ("are" if many else "is"), sentence


def test_the_nearest_noun_misleads_as_often_as_not() -> None:
    near = [sentence.split() for sentence in GRAMMAR.probabilities if " near the " in sentence]
    misled = [words[4].endswith("s") != (words[5] == "are") for words in near]
    assert sum(misled) * 2 == len(misled)


@pytest.mark.parametrize(
    ("one", "other", "word", "instead"),
    [
        ("king", "queen", "he", "she"),
        ("man", "woman", "he", "she"),
        ("prince", "princess", "he", "she"),
        ("boy", "girl", "he", "she"),
    ],
)
def test_pairs_differ_in_their_pronoun_alone(one: str, other: str, word: str, instead: str) -> None:
    def sentences(person: str) -> set[str]:
        return {text for text in GRAMMAR.probabilities if text.startswith(f"the {person} is ")}

    changed = {
        text.replace(f"the {one} ", f"the {other} ").replace(f" {word} ", f" {instead} ")
        for text in sentences(one)
    }
    assert changed == sentences(other)


def test_rare_words_are_rare_by_the_square_of_their_rank() -> None:
    first, *others = (GRAMMAR.probabilities[f"we saw the {word}."] for word in RARE.split())
    assert [first / other for other in others] == pytest.approx(
        [rank**2 for rank in range(2, len(others) + 2)]
    )


def test_documents_are_plain_ascii_without_empty_ones() -> None:
    assert all(document.isascii() and document for document in DOCUMENTS)


def test_the_same_seed_gives_the_same_text_each_time_and_another_seed_another() -> None:
    assert list(GRAMMAR) == DOCUMENTS
    assert len(DOCUMENTS) == len(GRAMMAR) == 4000
    assert list(Grammar(seed=8, documents=5)) != DOCUMENTS[:5]


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one() -> None:
    assert list(Grammar(seed=7, documents=100)) == DOCUMENTS[:100]


def test_another_process_with_another_hash_seed_gives_the_same_text() -> None:
    program = "from lmtemplate.data.formats.grammar import Grammar; print(list(Grammar(7, 20)))"
    environment = {"PYTHONHASHSEED": "3", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{DOCUMENTS[:20]}\n"


def test_grammar_has_as_many_documents_as_asked_and_depends_on_the_seed() -> None:
    one, same, other = (texts(open_corpus("grammar:30", seed)) for seed in (1, 1, 2))
    assert len(one) == 30
    assert one == same != other


def test_grammar_of_no_number_is_refused() -> None:
    for count in ("many", "9" * 400):
        with pytest.raises(DataError, match="as in grammar:5000"):
            open_corpus(f"grammar:{count}", seed=0)
