"""Sampling against brute force, and text that comes out whole."""

import copy
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lmtemplate.checkpoint import files
from lmtemplate.data.tokenizer import ByteTokenizer, CharTokenizer
from lmtemplate.errors import CheckpointError, ConfigError, NumbersError
from lmtemplate.generate import (
    check_draw,
    choose,
    columns,
    encode_prompt,
    generate,
    generate_batch,
    logits_to_probs,
    stream_text,
)
from lmtemplate.models import GPT, LanguageModel

LOGITS = [1.0, -0.5, 2.0, 0.3, -1.2]


class FixedLogits(LanguageModel):
    """Says the same whatever it is told, and remembers how much it was told."""

    def __init__(self, logits: list[float], block_size: int = 8) -> None:
        super().__init__(len(logits), block_size)
        self.logits = nn.Parameter(torch.tensor(logits))
        self.told: list[int] = []

    def forward(self, tokens: Tensor, caches: None = None) -> Tensor:
        self.told.append(tokens.size(1))
        return self.logits.expand(*tokens.shape, -1)


class Counting(LanguageModel):
    """After n comes n + 1, and after the last the first."""

    def __init__(self, vocab_size: int, block_size: int = 8) -> None:
        super().__init__(vocab_size, block_size)
        self.scale = nn.Parameter(torch.tensor(100.0))

    def forward(self, tokens: Tensor, caches: None = None) -> Tensor:
        following = (tokens + 1) % self.vocab_size
        return self.scale * nn.functional.one_hot(following, self.vocab_size)


def generate_tokens(
    net: LanguageModel, prompt: list[int], count: int, *, seed: int = 1337, **how: Any
) -> Iterator[int]:
    """One text alone, token by token."""
    rows = generate_batch(net, [prompt], count, seeds=[seed], **how)
    return (token for (token,) in rows if token is not None)


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def kept(probabilities: list[float], members: list[int]) -> list[float]:
    total = sum(probabilities[member] for member in members)
    return [p / total if i in members else 0.0 for i, p in enumerate(probabilities)]


def brute_force(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> list[float]:
    probabilities = softmax(logits, temperature)
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if top_k is not None:
        order = order[:top_k]
        probabilities = kept(probabilities, order)
    if top_p is not None:
        nucleus, mass = list[int](), 0.0
        for token in order:
            if mass >= top_p:
                break
            nucleus.append(token)
            mass += probabilities[token]
        probabilities = kept(probabilities, nucleus)
    return probabilities


def close(probabilities: Tensor, expected: list[float]) -> bool:
    return probabilities.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
def test_temperature_divides_logits(temperature: float) -> None:
    expected = softmax(LOGITS, temperature)
    assert close(logits_to_probs(torch.tensor(LOGITS), temperature), expected)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert logits_to_probs(torch.tensor(LOGITS), 0.0, 3, 0.5).tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("top_k", [1, 2, 4, 5, 99])
def test_top_k_keeps_the_k_likeliest(top_k: int) -> None:
    expected = brute_force(LOGITS, 1.0, top_k, None)
    assert close(logits_to_probs(torch.tensor(LOGITS), top_k=top_k), expected)


@pytest.mark.parametrize(
    ("top_p", "survivors"), [(0.01, 1), (0.5, 1), (0.6, 2), (0.8, 2), (0.9, 3), (0.95, 4), (1.0, 5)]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, survivors: int) -> None:
    probabilities = logits_to_probs(torch.tensor(LOGITS), top_p=top_p)
    assert (probabilities > 0).sum() == survivors
    assert close(probabilities, brute_force(LOGITS, 1.0, None, top_p))


@given(
    st.lists(st.integers(-5000, 5000), min_size=1, max_size=12, unique=True),
    st.floats(0.2, 5),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(0.05, 0.99),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_all_filters_together_equal_brute_force(
    thousandths: list[int], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = [number / 1000 for number in thousandths]
    probabilities = logits_to_probs(torch.tensor(logits), temperature, top_k, top_p)
    assert close(probabilities, brute_force(logits, temperature, top_k, top_p))


def test_half_precision_logits_are_widened() -> None:
    probabilities = logits_to_probs(torch.tensor(LOGITS, dtype=torch.bfloat16))
    assert probabilities.dtype == torch.float32
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    total = 2000
    drawn = Counter(generate_tokens(FixedLogits(LOGITS), [0], total, temperature=1.5))
    for token, probability in enumerate(softmax(LOGITS, 1.5)):
        deviation = math.sqrt(total * probability * (1 - probability))
        assert abs(drawn[token] - total * probability) < 4 * deviation


def test_the_seed_decides_what_is_drawn() -> None:
    one, same, other = (
        list(generate_tokens(FixedLogits(LOGITS), [0], 50, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_drawing_touches_no_other_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = list(generate_tokens(FixedLogits(LOGITS), [0], 20))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert list(generate_tokens(FixedLogits(LOGITS), [0], 20)) == first


def test_tokens_follow_the_last_one() -> None:
    assert list(generate_tokens(Counting(10), [3, 7], 5, temperature=0)) == [8, 9, 0, 1, 2]


def test_no_more_tokens_come_than_asked_for() -> None:
    assert list(generate_tokens(Counting(10), [3], 0)) == []
    assert len(list(generate_tokens(Counting(10), [3], 23))) == 23


def test_the_end_of_a_document_ends_the_text() -> None:
    assert list(generate_tokens(Counting(10), [3], 100, temperature=0, stop_id=7)) == [4, 5, 6]


@pytest.mark.parametrize("prompt_length", [1, 8, 30])
def test_a_net_is_never_told_more_than_its_block(prompt_length: int) -> None:
    net = FixedLogits(LOGITS, block_size=8)
    assert len(list(generate_tokens(net, [1] * prompt_length, 30))) == 30
    assert net.told[0] == min(prompt_length, 8)
    assert max(net.told) == 8


def test_a_block_of_one_token_is_enough() -> None:
    assert list(generate_tokens(Counting(10, 1), [3], 4, temperature=0)) == [4, 5, 6, 7]


@pytest.fixture(scope="module")
def net() -> GPT:
    """A model whose every token matters for the next."""
    torch.manual_seed(0)
    net = GPT(257, 16, n_layer=2, n_head=2, n_embd=16)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return net.eval()


@torch.no_grad()
def greedy(net: GPT, prompt: list[int], count: int) -> list[int]:
    """Read everything again for each token; cut a full context to its last half."""
    known, new = prompt[-net.block_size :], list[int]()
    for _ in range(count):
        if len(known) > net.block_size:
            known = known[-(net.block_size // 2) :]
        new.append(int(net(torch.tensor([known]))[0, -1].argmax()))
        known = [*known, new[-1]]
    return new


@pytest.mark.parametrize(
    ("prompt_length", "use_cache"), [(1, True), (15, True), (16, True), (40, True), (16, False)]
)
def test_generation_past_a_full_context_equals_reading_all_again(
    net: GPT, prompt_length: int, use_cache: bool
) -> None:
    prompt = torch.randint(257, (prompt_length,), generator=torch.Generator().manual_seed(0))
    ids = prompt.tolist()
    expected = greedy(net, ids, 20)
    assert len(set(expected)) > 5
    made = generate_tokens(net, ids, 20, temperature=0, use_cache=use_cache)
    assert list(made) == expected


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_compiled_net_is_sampled_without_the_compiler(net: GPT, use_cache: bool) -> None:
    def compiled(*_: Any) -> Tensor:
        raise AssertionError("would be compiled anew for each length")

    expected = list(generate_tokens(net, [1, 2], 20, use_cache=use_cache))
    twin = copy.deepcopy(net)
    twin._compiled_call_impl = compiled
    with pytest.raises(AssertionError):
        twin(torch.tensor([[1]]))
    assert list(generate_tokens(twin, [1, 2], 20, use_cache=use_cache)) == expected


def test_two_texts_at_once_do_not_mix(net: GPT) -> None:
    alone = list(generate_tokens(net, [1, 2], 20))
    together = zip(generate_tokens(net, [1, 2], 20), generate_tokens(net, [9], 20), strict=True)
    assert [token for token, _ in together] == alone


def test_characters_of_many_bytes_are_streamed_whole() -> None:
    tokenizer, text = ByteTokenizer(), "naïve – 日本語 🎉!"
    parts = list(stream_text(tokenizer, [65], iter(tokenizer.encode([text])[0].tolist())))
    assert [part for part in parts if part] == list(text)


def test_a_prompt_cut_inside_a_character_does_no_harm() -> None:
    tokenizer = ByteTokenizer()
    prompt = tokenizer.encode(["日本語日本語"])[0].tolist()
    new = tokenizer.encode(["日本"])[0].tolist()
    assert "".join(stream_text(tokenizer, prompt, iter(new))) == "日本"


@pytest.mark.parametrize("broken", [[0xFF] * 30, [0xE6, 0x97], [65, 0xF0, 0x9F], [0x80, 66]])
def test_broken_characters_neither_stop_the_stream_nor_vanish(broken: list[int]) -> None:
    tokenizer = ByteTokenizer()
    assert "".join(stream_text(tokenizer, [65], iter(broken))) == tokenizer.decode(broken)


def test_unknown_characters_are_shown() -> None:
    tokenizer = CharTokenizer("ab")
    assert "".join(stream_text(tokenizer, [0], iter([0, 2, 1, 2]))) == "a\ufffdb\ufffd"


def test_a_token_is_shown_before_the_next_is_drawn() -> None:
    tokenizer, drawn = ByteTokenizer(), list[int]()

    def draw() -> Any:
        for token in b"abc":
            drawn.append(token)
            yield token

    stream = stream_text(tokenizer, [65], draw())
    assert next(stream) == "a"
    assert drawn == [ord("a")]


def test_an_empty_prompt_is_the_start_of_a_document() -> None:
    assert encode_prompt(ByteTokenizer(), "") == [256]
    assert encode_prompt(ByteTokenizer(), "hi") == [104, 105]


@pytest.fixture
def saved(net: GPT, tmp_path: Path) -> Path:
    """A checkpoint as a run leaves it, less what only training needs."""
    net_settings = {
        "class_path": "lmtemplate.models.GPT",
        "init_args": {"n_layer": 2, "n_head": 2, "n_embd": 16},
    }
    path = tmp_path / "step-000000001.ckpt"
    state = {
        "config": {"model": {"net": net_settings}},
        "state_dict": {f"net.{name}": weight for name, weight in net.state_dict().items()},
        "global_step": 1,
        "vocab_size": 257,
        "block_size": 16,
        "tokenizer": ByteTokenizer().to_json(),
    }
    files.write(state, path)
    return path


@pytest.mark.parametrize("prompt", ["Hello", ""])
def test_the_text_alone_goes_to_standard_output(
    saved: Path, net: GPT, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"checkpoint": str(saved), "device": "cpu"}
    generate(saved.parent, prompt, 30, temperature=0.7, seed=5, **words)  # type: ignore[arg-type]
    ids = encode_prompt(ByteTokenizer(), prompt)
    tokens = list(generate_tokens(net, ids, 30, temperature=0.7, seed=5, stop_id=256))
    written = capsys.readouterr()
    assert written.out == prompt + ByteTokenizer().decode(tokens) + "\n"
    assert not written.err


def test_impossible_settings_are_refused_by_their_flag(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"--top_p 1\.1 has to be"):
        generate(saved.parent, checkpoint=str(saved), top_p=1.1)


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_gpu_is_taken_if_there_is_one(
    saved: Path, there: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def move(net: GPT, device: str) -> GPT:
        asked.append(device)
        return net

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(GPT, "to", move)
    generate(saved.parent, max_new_tokens=1, checkpoint=str(saved))
    assert asked == [expected]


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        generate(tmp_path / "nowhere")


def test_the_coldest_temperature_takes_the_likeliest() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    for temperature in (0.0, 1e-45, 1e-7):
        assert logits_to_probs(logits, temperature).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max_new_tokens": -1}, "--max_new_tokens -1 has to be 0 or more"),
        ({"temperature": -0.5}, "--temperature -0.5 has to be 0 or more"),
        ({"temperature": math.nan}, "--temperature nan has to be 0 or more"),
        ({"top_k": 0}, "--top_k 0 has to be 1 or more"),
        ({"top_p": 90.0}, "--top_p 90.0 has to be above 0, at most 1"),
        ({"top_p": 0.0}, "--top_p 0.0 has to be above 0, at most 1"),
    ],
)
def test_what_nothing_can_be_drawn_with_is_refused_with_its_range(
    changed: dict[str, Any], says: str
) -> None:
    sound = {"max_new_tokens": 0, "temperature": 0.0, "top_k": 1, "top_p": 1.0}
    check_draw(**sound)
    with pytest.raises(ConfigError, match=re.escape(says)):
        check_draw(**{**sound, **changed})


@pytest.mark.parametrize("seed", [-(2**63), 2**80])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert list(generate_tokens(FixedLogits(LOGITS), [0], 9, seed=seed))


@pytest.mark.parametrize(("temperature", "use_cache"), [(0.0, False), (1.0, True)])
def test_prompts_of_all_lengths_at_once_come_out_as_each_alone(
    net: GPT, temperature: float, use_cache: bool
) -> None:
    numbers = torch.randint(256, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [numbers[:7], numbers[3:4], numbers, numbers[:16], numbers[5:15]]
    how: dict[str, Any] = {"temperature": temperature, "stop_id": 99, "use_cache": use_cache}
    exact = copy.deepcopy(net).double()  # a batch is summed in another order than a row
    alone = [
        list(generate_tokens(exact, prompt, 12, seed=seed, **how))
        for seed, prompt in enumerate(prompts)
    ]
    rows = generate_batch(exact, prompts, 12, seeds=range(5), **how)
    assert columns(rows, 5) == alone
    assert len({tuple(ids) for ids in alone}) == 5


def test_a_net_whose_numbers_have_turned_bad_draws_nothing() -> None:
    with pytest.raises(NumbersError, match="not finite"):
        choose(torch.tensor([[0.5, 0.5], [math.nan, 0.5]]), [0.1, 0.1])


def test_an_id_is_drawn_where_the_sum_of_probabilities_passes_the_number() -> None:
    rows = torch.tensor([[0.5, 0.0, 0.3, 0.2]] * 5)
    assert choose(rows, [0.0, 0.49, 0.5, 0.79, 0.81]) == [0, 0, 2, 2, 3]


def test_a_file_of_prompts_is_continued_line_by_line_in_its_order(
    saved: Path, net: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["Hello, world", "", "no"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    how: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.0, "device": "cpu"}
    generate(saved.parent, prompts=tmp_path / "prompts.txt", checkpoint=str(saved), **how)
    together, expected = capsys.readouterr().out, ""
    for line in lines:
        generate(saved.parent, line, checkpoint=str(saved), **how)
        expected += capsys.readouterr().out + "\n"
    assert together == expected


def test_prompts_that_cannot_be_read_are_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, says in (("empty", "is empty"), ("gone", "cannot be read")):
        with pytest.raises(ConfigError, match=says):
            generate(saved.parent, prompts=tmp_path / name)
    (tmp_path / "lines").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="give one"):
        generate(saved.parent, "text", prompts=tmp_path / "lines")
