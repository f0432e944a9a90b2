"""What an engine that asks a chat endpoint has to know of a model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One generated token, and what the model held likely in its place."""

    text: str = field(repr=False)
    logprobs: Mapping[str, float] = field(repr=False)
    """Natural log-probabilities by token, those of the likeliest only; the chosen one included."""


class Dialect(Protocol):
    """How one model family is asked through a chat endpoint, and how its answer is read. Pure."""

    @property
    def name(self) -> str:
        """The family, as `qwen3guard` or `llama_guard`."""
        ...

    @property
    def fingerprint(self) -> str:
        """What makes its verdicts what they are, beside the model: policies, mappings."""
        ...

    @property
    def answer_tokens(self) -> int:
        """The most tokens that an answer may take; a longer one is not read."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What a chat request of this family has to say besides, as fields of its body."""
        ...

    @property
    def probes(self) -> Sequence[Conversation]:
        """Harmless conversations, one for each form of answer.

        A server that serves this family answers every one of them readably.
        """
        ...

    def messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """What a chat endpoint that applies the family's own template is sent.

        All text is in it, and none of it can pass for a special token, a marker or another role.

        Raises:
            ConversationError: It holds something that the family cannot judge.
        """
        ...

    def regex(self, conversation: Conversation) -> str | None:
        """A regular expression for every answer that can be read; None where there is none."""
        ...

    def read(self, answer: str, conversation: Conversation, steps: Sequence[Step] = ()) -> Verdict:
        """The verdict in an answer, with scores where the steps that it was written in give any.

        Args:
            answer: The whole answer, without reasoning.
            conversation: What it judges.
            steps: The tokens of the answer, in order; empty where the server told none.

        Raises:
            UnreadableVerdict: It is not of the documented format, or contradicts itself.
        """
        ...
