"""What servers answer is narrowed, and what is of another shape is no verdict."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import UnreadableVerdict
from guardrails_qwen.engines.completions import (
    Models,
    Tokens,
    narrowed,
    read_chat,
    read_next,
    read_text,
)

SECRET = "xylophone"


def chat(
    content: object = "Safety: Safe",
    reason: object = "stop",
    usage: Any = None,
    logprobs: Any = None,
) -> dict[str, Any]:
    choice = {"message": {"content": content}, "finish_reason": reason, "logprobs": logprobs}
    return {"choices": [choice], **({"usage": usage} if usage else {})}


def following(
    tokens: object = ("token_id:5",), top: object = ({"token_id:5": -0.1, "x": -3.0},), **usage: int
) -> dict[str, Any]:
    logprobs = {"tokens": tokens, "top_logprobs": top}
    return {"choices": [{"logprobs": logprobs}], "usage": usage}


class TestChat:
    def test_text_steps_and_usage(self) -> None:
        top = [{"token": "Safe", "logprob": -0.1}, {"token": "Un", "logprob": -2.4}]
        logprobs = {"content": [{"token": "Safe", "logprob": -0.1, "top_logprobs": top}]}
        usage = {"prompt_tokens": 90, "completion_tokens": 8}
        found = read_chat(chat(usage=usage, logprobs=logprobs))
        assert found.text == "Safety: Safe"
        assert [(step.text, dict(step.logprobs)) for step in found.steps] == [
            ("Safe", {"Safe": -0.1, "Un": -2.4})
        ]
        assert (found.read, found.tokens) == (90, 98)

    def test_cached_tokens_cost_nothing(self) -> None:
        usage = {
            "prompt_tokens": 90,
            "completion_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 80},
        }
        assert read_chat(chat(usage=usage)).tokens == 18

    @pytest.mark.parametrize(
        "usage", [{}, {"prompt_tokens": None}, {"completion_tokens": 3}], ids=str
    )
    def test_what_it_does_not_count_is_unknown(self, usage: dict[str, Any]) -> None:
        assert read_chat(chat(usage=usage)).read is None

    @pytest.mark.parametrize("reason", ["length", "content_filter", "tool_calls", "abort", SECRET])
    def test_an_answer_that_was_cut_off(self, reason: str) -> None:
        with pytest.raises(UnreadableVerdict) as caught:
            read_chat(chat(reason=reason))
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("reason", ["stop", "eos", None])
    def test_an_answer_that_ended(self, reason: str | None) -> None:
        assert read_chat(chat(reason=reason)).text

    @pytest.mark.parametrize("logprob", [math.nan, math.inf, 0.5, "high"], ids=str)
    def test_a_probability_that_is_none(self, logprob: object) -> None:
        top = [{"token": SECRET, "logprob": logprob}]
        logprobs = {"content": [{"token": SECRET, "top_logprobs": top}]}
        with pytest.raises(UnreadableVerdict) as caught:
            read_chat(chat(logprobs=logprobs))
        assert SECRET not in f"{caught.value!r}"

    def test_it_shows_nothing_of_the_text(self) -> None:
        assert SECRET not in repr(read_chat(chat(SECRET)))


SHAPES: dict[str, Any] = {
    "null": None,
    "a number": 1,
    "a text": SECRET,
    "a list": [SECRET],
    "empty": {},
    "no choices": {"choices": []},
    "a choice of null": {"choices": [None]},
    "a text as a choice": {"choices": [SECRET]},
    "a message of null": {"choices": [{"message": None, "text": None, "logprobs": None}]},
    "a number as text": {"choices": [{"message": {"content": 5}, "text": 5, "logprobs": 5}]},
    "no tokens": following(tokens=[], top=[]),
    "no alternatives": following(top=[]),
    "alternatives of null": following(top=[None]),
}


@pytest.mark.parametrize("data", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("read", [read_chat, read_next, read_text])
def test_another_shape_is_unreadable_and_not_quoted(read: Any, data: object) -> None:
    with pytest.raises(UnreadableVerdict, match=r"shape|ended") as caught:
        read(data)
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.answer}"
    assert caught.value.__cause__ is None


class TestNext:
    def test_tokens_by_number_and_by_text(self) -> None:
        found = read_next(following(top=[{"token_id:5": -0.1, " Un": -3.0, "?": -4.0}]))
        assert found.by_id({" Un": 77}) == ({5: -0.1, 77: -3.0, -1: -4.0}, 5)

    def test_a_likeliest_token_that_nobody_knows(self) -> None:
        _, likeliest = read_next(following(tokens=["?"])).by_id({" Un": 77})
        assert likeliest == -1

    @pytest.mark.parametrize("token", ["token_id:", "token_id:-1", "token_id:x", "token_id:5 "])
    def test_a_number_that_is_none(self, token: str) -> None:
        assert read_next(following(tokens=[token])).by_id({})[1] == -1

    def test_a_text_that_looks_like_a_number_is_looked_up(self) -> None:
        assert read_next(following(tokens=["5"])).by_id({"5": 20})[1] == 20

    def test_tokens_read(self) -> None:
        assert read_next(following(prompt_tokens=12)).read == 12
        assert read_next(following()).read is None


def test_models_and_tokens() -> None:
    [model] = narrowed(Models, {"data": [{"id": "m", "max_model_len": 9, "root": "/x"}]}).data
    assert (model.id, model.max_model_len, model.owned_by) == ("m", 9, None)
    assert narrowed(Tokens, {"tokens": [1, 2], "count": 2}).tokens == [1, 2]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "logprobs", "tokens", "usage", "text"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_any_json_is_read_or_unreadable(data: object) -> None:
    for read in (read_chat, read_next, read_text):
        try:
            read(data)
        except UnreadableVerdict:
            continue
