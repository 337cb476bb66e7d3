"""From tokens to an answer: no piece says more or less than the whole."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slmflow.served.answer import Answer, AnswerBuilder, Detokenizer, FinishReason, StopTexts
from tests.fakes import EOS, decode

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}"))
WORDS = ["", " a", "b", " ", "  c"]  # tokens of a tokenizer that writes spaces before words


def decode_words(ids: Sequence[int]) -> str:
    """As sentencepiece does: the space before the first word of a text is dropped."""
    return "".join(WORDS[token] for token in ids).removeprefix(" ")


@settings(deadline=None)
@given(st.lists(st.integers(0, 255)))
@example(list("a\N{EURO SIGN}\N{SLIGHTLY SMILING FACE}".encode())[:-1])  # ends inside a character
@example([0x80, 0x61, 0xE2, 0x82, 0x61])  # no text at all
def test_pieces_join_to_the_text_of_the_whole(tokens: list[int]) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in tokens]
    assert "".join(pieces) + detokenizer.flush() == decode(tokens)


@settings(deadline=None)
@given(st.lists(st.integers(0, len(WORDS) - 1)))
@example([2, 0, 1])  # a special token, which has no text, between two words
def test_a_space_between_words_is_never_lost(tokens: list[int]) -> None:
    detokenizer = Detokenizer(decode_words)
    pieces = [detokenizer.push(token) for token in tokens]
    assert "".join(pieces) + detokenizer.flush() == decode_words(tokens)


@settings(deadline=None)
@given(TEXTS)
@example("na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{SLIGHTLY SMILING FACE}")
def test_no_piece_holds_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)
    assert detokenizer.flush() == ""


def cut_before_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """What a reader sees who reads character by character and stops at once."""
    for end in range(1, len(text) + 1):
        met = [word for word in stop if text[:end].endswith(word)]
        if met:
            return text[: end - max(len(word) for word in met)], True
    return text, False


def pieces_of(text: str, cuts: Iterable[int]) -> list[str]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def read(pieces: Iterable[str], stop: Sequence[str]) -> tuple[str, bool]:
    texts = StopTexts(stop)
    shown = "".join([texts.push(piece) for piece in pieces])
    return shown + texts.flush(), texts.met


AB = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@settings(deadline=None)
@given(AB, STOPS, st.lists(st.integers(1, 11)))
@example("abab", ["bb", "aba"], [1, 2, 3])
@example("abc", ["abc", "b"], [2])  # "b" is complete while "abc" is not yet
@example("abc", ["abc", "b"], [])  # and so it is where both arrive at once
@example("abc", ["bc", "abc"], [])
def test_stop_texts_cut_alike_wherever_the_pieces_end(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    assert read(pieces_of(text, cuts), stop) == cut_before_stop(text, stop)


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS.filter(bool), max_size=3), st.lists(st.integers(1, 50)))
def test_what_is_shown_holds_no_stop_text_and_loses_nothing_without_one(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    shown, met = read(pieces_of(text, cuts), stop)
    assert not any(word in shown for word in stop)
    assert text.startswith(shown)
    assert met or shown == text


def test_a_possible_beginning_of_a_stop_text_is_held_back_until_it_is_none() -> None:
    texts = StopTexts(["<|end|>"])
    assert [texts.push(piece) for piece in ("a <", "|en", "dless", "|<|e")] == [
        "a ",
        "",
        "<|endless",
        "|",
    ]
    assert texts.flush() == "<|e"
    assert not texts.met


def test_nothing_follows_a_stop_text() -> None:
    texts = StopTexts(["."])
    assert [texts.push("One. Two."), texts.push(" Three."), texts.flush()] == ["One", "", ""]


def build(
    tokens: Iterable[int], stop: Sequence[str] = (), new_tokens: int = 100
) -> tuple[list[str], Answer]:
    """What is shown of one answer, token by token, and the whole."""
    builder = AnswerBuilder(decode, frozenset([EOS]), stop, 7, new_tokens)
    shown = [builder.push(token) for token in tokens]
    shown.append(builder.finish())
    return shown, builder.answer()


@pytest.mark.parametrize(
    ("tokens", "stop", "new_tokens", "text", "reason", "count"),
    [
        ([*b"Hello", EOS], [], 10, "Hello", "stop", 5),
        ([*b"Hello", EOS], [], 6, "Hello", "stop", 5),  # the end token is the last one allowed
        ([*b"Hello", EOS], [], 5, "Hello", "length", 5),  # nobody knows what would have come
        ([*b"Hello", EOS], [], 4, "Hell", "length", 4),
        ([EOS, *b"more"], [], 10, "", "stop", 0),
        ([*b"Hello", EOS, *b"!!!"], [], 100, "Hello", "stop", 5),
        (b"Hello", [], 100, "Hello", "length", 5),  # the runtime ended by itself
        (b"Hello", ["lo"], 5, "Hel", "stop", 5),  # complete exactly at the limit
        (b"Hello", ["lo"], 4, "Hell", "length", 4),  # half of it held back, then released
        ([*b"Hel", EOS], ["lo"], 100, "Hel", "stop", 3),
        (b"Hello. More.", ["."], 100, "Hello", "stop", 6),
        (b"Hello", ["Hello"], 100, "", "stop", 5),
        ([*"\N{EURO SIGN}".encode(), EOS], [], 3, "\N{EURO SIGN}", "length", 3),
        ([*"\N{EURO SIGN}".encode(), EOS], ["\N{EURO SIGN}"], 9, "", "stop", 3),
    ],
)
def test_an_answer_tells_why_it_ended(
    tokens: Iterable[int],
    stop: list[str],
    new_tokens: int,
    text: str,
    reason: FinishReason,
    count: int,
) -> None:
    shown, answer = build(tokens, stop, new_tokens)
    assert answer == Answer(text, reason, 7, count)
    assert "".join(shown) == text


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS.filter(bool), max_size=2), st.integers(1, 40))
def test_an_answer_is_what_was_shown_and_what_the_text_says(
    text: str, stop: list[str], new_tokens: int
) -> None:
    tokens = list(text.encode())
    shown, answer = build([*tokens, EOS], stop, new_tokens)
    assert "".join(shown) == answer.text
    assert answer.completion_tokens <= new_tokens
    assert answer.prompt_tokens == 7
    whole, met = cut_before_stop(decode(tokens[:new_tokens]), stop)
    assert answer.text == whole
    assert (answer.finish_reason == "stop") == (met or len(tokens) < new_tokens)
    assert met or answer.completion_tokens == min(len(tokens), new_tokens)
