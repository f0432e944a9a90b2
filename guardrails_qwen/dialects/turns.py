"""A conversation as most safety models take it: a user's and an assistant's turns, alternating."""

from __future__ import annotations

from itertools import groupby

from guardrails_qwen.conversation import Conversation, Role

Turn = tuple[Role, str]
"""A user's or an assistant's turn, as the model reads it."""


def judges_response(conversation: Conversation) -> bool:
    """Whether the last message is judged as a response: an assistant's is, all others are not."""
    return conversation.last.role is Role.ASSISTANT


def turns(conversation: Conversation) -> list[Turn]:
    """A conversation as strictly alternating turns, a user's first, with no text left out.

    System, developer and tool messages count as the user's: they reach the guarded model from
    outside. Consecutive messages of one side become one turn. Tool calls are the assistant's words.
    An assistant's first turn gets an empty user turn before it, without which the published
    template renders an empty conversation.
    """
    sides = [
        (Role.ASSISTANT if message.role is Role.ASSISTANT else Role.USER, message.judged_text)
        for message in conversation.messages
    ]
    merged = [
        (side, "\n\n".join(text for _, text in group if text))
        for side, group in groupby(sides, key=lambda turn: turn[0])
    ]
    return [(Role.USER, ""), *merged] if merged[0][0] is Role.ASSISTANT else merged
