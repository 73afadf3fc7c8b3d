"""What is a secret, and what only looks like one; nothing else changes."""

import json

import pytest

from lmtemplate import redact
from tests.faults.spy import within

SECRETS = ["api_key", "apiKey", "api-key", "x.init_args.token", "client_secret", "password_file"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_that_says_secret_is_one(name: str) -> None:
    assert redact.settings({name: "open sesame"}) == {name: "***"}


OPEN = ["tokenizer", "max_tokens", "token_shift", "eos_token", "d_key", "keyboard", "key_size", ""]


@pytest.mark.parametrize("name", OPEN)
def test_words_of_a_language_model_are_no_secrets(name: str) -> None:
    assert redact.settings({name: "value"}) == {name: "value"}


# Put together here, so that no scanner takes this file for a leak.
SHAPED = [
    "sk" + "-proj-abcDEF0123456789abcd",
    "gh" + "p_0123456789abcdefABCDEF0123456789abcd",
    "github" + "_pat_0123456789abcdefABCDEF",
    "hf" + "_abcdefghijABCDEFGHIJklmnopqrstuvwx",
    "AK" + "IA0123456789ABCDEF",
    "xo" + "xb-0123456789-abcdef",
    "AI" + "za0123456789abcdefghijklmnopqrstuvwxy",
    "ey" + "JhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK",
]


@pytest.mark.parametrize("secret", SHAPED, ids=[secret[:4] for secret in SHAPED])
def test_a_known_shape_is_hidden_wherever_it_stands(secret: str) -> None:
    shown = redact.settings({"notes": [{"deep": (f"a {secret} b", f"https://x.org/?q={secret}")}]})
    assert shown == {"notes": [{"deep": ["a *** b", "https://x.org/?q=***"]}]}


def test_bearers_passwords_in_addresses_and_private_keys_are_hidden() -> None:
    assert redact.text("Authorization: Bearer abc.def-123") == "Authorization: Bearer ***"
    assert redact.text("postgres://me:hush@host/base") == "postgres://***@host/base"
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nAAAA\n-----END RSA PRIVATE KEY-----\nrest"
    assert redact.text(key) == "***\nrest"


@pytest.mark.parametrize(
    "plain",
    [
        "runs/task-0123456789abcdefghij",
        "data/sk-learn-documentation-english",
        "https://x.org/path@v2",
        "lmtemplate.models.gpt.GPT",
        "37cd490ccfe483d61c63404063806b677efa77f7bf539dce340925b04e827ea5",
        "Bearer of news",
        "The United States",
        "/home/me/hf_hub",
    ],
)
def test_paths_digests_and_prose_stay_as_they_are(plain: str) -> None:
    assert redact.text(plain) == plain


@pytest.mark.parametrize("long", ["://" + ":" * 10**6, "://a:" * 10**5])
def test_a_text_that_is_almost_an_address_takes_no_longer_than_another(long: str) -> None:
    with within(5):
        assert redact.text(long) == long


def test_a_name_or_a_word_without_end_is_read_once() -> None:
    with within(5):
        assert redact.is_secret("secret_" * 10**5 + "\nx")
        assert redact.words(["{" + "a" * 10**6]) == ["{" + "a" * 10**6]


def test_nothing_yes_and_no_stay_as_they_are() -> None:
    plain = {"api_key": None, "token": "", "password": False}
    assert redact.settings(plain) == plain


def test_all_that_stands_below_a_secret_is_hidden() -> None:
    nested = {"credentials": {"user": "me", "codes": [1, "two"]}, "n_layer": 4}
    hidden = {"credentials": {"user": "***", "codes": ["***", "***"]}, "n_layer": 4}
    assert redact.settings(nested) == hidden


def test_the_settings_given_are_not_changed() -> None:
    nested = {"init_args": {"api_key": "hush"}}
    redact.settings(nested)
    assert nested == {"init_args": {"api_key": "hush"}}


COMMANDS: list[tuple[list[str], list[str]]] = [
    (["fit", "--x.api_key", "hush", "--n", "1"], ["fit", "--x.api_key", "***", "--n", "1"]),
    (["--x.api_key=hush"], ["--x.api_key=***"]),
    (["--x.api-key=hush"], ["--x.api-key=***"]),
    (["--token", "--n", "1"], ["--token", "--n", "1"]),
    (["--tokenizer", "bpe", "--max_tokens", "5"], ["--tokenizer", "bpe", "--max_tokens", "5"]),
    (["--prompt", "He said: [no", "a"], ["--prompt", "He said: [no", "a"]),
    (["--note", SHAPED[0]], ["--note", "***"]),
    ([f"--note=a {SHAPED[1]}"], ["--note=a ***"]),
]


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_command_line_is_shown_without_its_secrets(command: list[str], shown: list[str]) -> None:
    assert redact.words(command) == shown


def test_settings_in_a_word_of_the_command_line_are_searched() -> None:
    nested = [{"class_path": "a.B", "init_args": {"api_key": "hush hush", "n": 1}}]
    (shown,) = redact.words([f"--callbacks={json.dumps(nested)}"])
    assert "hush" not in shown
    assert '"n": 1' in shown
    assert redact.words(["--x={token: hush, n: 1}"]) == ["--x={token: ***, n: 1}"]
