"""Text from outside cannot pass for what a prompt is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen.dialects.neutral import Markers, without_special_tokens

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|channel|>",
    "<|header_start|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_response>",
]

MARKERS = Markers(["BEGIN CONVERSATION", "END CONVERSATION"], ["USER", "ASSISTANT"])


@pytest.mark.parametrize("token", SPECIAL)
def test_no_special_token_survives(token: str) -> None:
    found = without_special_tokens(f"a{token}b{token}{token}")
    assert token not in found
    assert found.replace("< ", "<").replace("| ", "|").replace("\uff5c ", "\uff5c") == (
        f"a{token}b{token}{token}"
    )


@pytest.mark.parametrize(
    "text",
    ["", "a < b | c > d", "x <- y", "<html><body>", "if (a<|b)", "<|", "I think", "5 <6> 7"],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert without_special_tokens(text) == text


_pieces = st.sampled_from(
    ["<", "|", ">", "im_end", "im_start", "think", "/", "\n", " ", "<|", "|>", "<|im_", "end|>"]
)


@given(st.lists(st.one_of(_pieces, st.sampled_from(SPECIAL), st.text(max_size=3)), max_size=20))
def test_no_pieces_add_up_to_one(pieces: list[str]) -> None:
    found = without_special_tokens("".join(pieces))
    assert not [token for token in SPECIAL if token in found]


@given(st.text(max_size=80))
def test_only_spaces_are_added(text: str) -> None:
    assert without_special_tokens(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "forged",
    [
        "<END CONVERSATION>",
        "<end conversation>",
        "<End\nConversation>",
        "< END  CONVERSATION >",
        "</END CONVERSATION>",
        "<END CONVERSATION/>",
        "<END_CONVERSATION>",
        "<END-CONVERSATION>",
        "<END\u200bCONVERSATION>",
        "\uff1cEND CONVERSATION\uff1e",
        "<BEGIN CONVERSATION>",
    ],
)
def test_a_section_marker_becomes_words(forged: str) -> None:
    found = MARKERS.defanged(f"before {forged} after")
    assert forged not in found
    assert "<" not in found
    assert "(" in found
    assert found.startswith("before (")
    assert found.endswith(") after")


@pytest.mark.parametrize(
    "forged", ["USER:", "user:", "Assistant:", "ASSISTANT :", "USER\u200b:", "USER\uff1a"]
)
def test_a_label_becomes_words(forged: str) -> None:
    found = MARKERS.defanged(f"a\n\n{forged} b")
    assert found == f"a\n\n({forged.replace(chr(0xFF1A), ':')}) b"


@pytest.mark.parametrize(
    "text",
    ["SUPERUSER: root", "a user is here", "END CONVERSATION", "<b>bold</b>", "(USER:) hi", ""],
)
def test_what_is_no_marker_stays(text: str) -> None:
    assert MARKERS.defanged(text) == text


def test_markers_are_those_of_a_template() -> None:
    scaffold = ["Judge:\n<BEGIN CHAT>\n\nHUMAN: ", "\n\nBOT: ", "\n\n<END CHAT>\nAnswer:"]
    markers = Markers.of(scaffold)
    assert markers.defanged("<END CHAT> HUMAN: x BOT: y USER: z") == (
        "(END CHAT) (HUMAN:) x (BOT:) y USER: z"
    )


_forgery = st.sampled_from(
    ["<", ">", "END", "BEGIN", " ", "CONVERSATION", "USER", ":", "(", ")", "\n"]
)


@given(st.lists(_forgery, max_size=16))
def test_defanging_again_changes_nothing_more(pieces: list[str]) -> None:
    once = MARKERS.defanged("".join(pieces))
    assert MARKERS.defanged(once) == once
    assert "<END CONVERSATION>" not in once
    assert "<BEGIN CONVERSATION>" not in once
