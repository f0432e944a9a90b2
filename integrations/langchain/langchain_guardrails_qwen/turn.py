"""One call of a guarded model: its messages on the way in, its replies on the way out."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult

from langchain_guardrails_qwen.gate import Gate, none_failed
from langchain_guardrails_qwen.generations import replies_of, with_messages
from langchain_guardrails_qwen.prompts import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call of the model. Its places remember the prompt as long as one of them lives."""

    gate: Gate
    messages: list[BaseMessage]
    left: Place
    right: Place

    @classmethod
    def begun(cls, gate: Gate, messages: list[BaseMessage]) -> Turn:
        """A call that begins, at places of its own."""
        run = uuid4()
        return cls(gate=gate, messages=messages, left=Place(run, 1), right=Place(run, 2))

    def admit(self) -> list[BaseMessage]:
        """The messages that may be sent: the very same list where they pass unchanged.

        Raises:
            GuardError: They may not, or could not be judged, and the policy says to raise.
        """
        return none_failed(self.gate.judge([self.messages], [self.left]))[0]

    async def aadmit(self) -> list[BaseMessage]:
        """`admit`, without blocking the event loop."""
        return none_failed(await self.gate.ajudge([self.messages], [self.left]))[0]

    def passed(self, result: ChatResult) -> ChatResult:
        """What may be released of a result: the very same one where it passes unchanged.

        Raises:
            GuardError: It may not, or could not be judged, and the policy says to raise.
        """
        replies = replies_of(result)
        judged = self.gate.judge(replies, [self.right] * len(replies))
        return with_messages(result, none_failed(judged))

    async def apassed(self, result: ChatResult) -> ChatResult:
        """`passed`, without blocking the event loop."""
        replies = replies_of(result)
        judged = await self.gate.ajudge(replies, [self.right] * len(replies))
        return with_messages(result, none_failed(judged))
