"""A reply in chunks, on its way to the reader: what of it left, and what waits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)

from guardrails_qwen import Action, Decision, GuardError, GuardViolation, Role
from guardrails_qwen.streaming import Block, Event, Redact, Release
from llama_index_guardrails_qwen.content import hidden, images, tool_calls, words
from llama_index_guardrails_qwen.messages import decided_message, role_of, said
from llama_index_guardrails_qwen.metadata import extra_of, noted, told_of


class Reply:
    """The chunks of a reply, and what leaves of them, by what a moderator says.

    Its text leaves as it is cleared, in chunks of its own. Thoughts, tool calls and all else that a
    reply may hold wait for its end, and are judged together with the text then.
    """

    def __init__(self) -> None:
        self._came = ""
        """Its text, as it came."""
        self._told = ""
        """… and as it left."""
        self._waits = False
        """Whether all of it waits for the end."""
        self._last: ChatResponse | None = None
        self._raw: dict[str, Any] = {}

    def add(self, chunk: ChatResponse, *, waits: bool = False) -> str:
        """One more chunk; the text of it that has to be moderated.

        Args:
            chunk: The chunk. Its text is its delta; where it has none, what its message has grown
                by. What else a message says is seen at the end.
            waits: Whether nothing of the reply may leave before its end.
        """
        self._last, self._waits = by_assistant(chunk), waits
        self._raw |= told_of(chunk.raw) or {}
        new = self._grown(chunk.message) if chunk.delta is None else chunk.delta
        self._came += new
        return "" if waits else new

    def passed(self, events: Iterable[Event]) -> Iterator[ChatResponse]:
        """What leaves, after what a moderator said.

        Raises:
            GuardViolation: It is blocked, and there is no closing text.
        """
        for event in events:
            if isinstance(event, Release):
                yield self._tell(event.text)
            elif isinstance(event, Redact):
                yield self._tell(event.marker)
            elif isinstance(event, Block):
                if event.closing is None:
                    raise GuardViolation(event.decision)
                yield self.closed(event.closing, event.decision)

    @property
    def told(self) -> str:
        """Its text, as far as it has left."""
        return self._told

    @property
    def whole(self) -> ChatMessage | None:
        """The reply, if it has to be judged as a whole; None where its text is all that it says."""
        if self._last is None:
            return None
        message = self._complete(self._last.message)
        return message if self._waits or _says_more(message, _joined(self._came)) else None

    def end(self, decision: Decision | None) -> Iterator[ChatResponse]:
        """The last chunk of a reply whose text has passed, and nothing of one without chunks.

        Args:
            decision: What was decided about its text, if that is all that it says.
        """
        if self._last is not None:
            yield self._chunk(said(MessageRole.ASSISTANT, self._told), "", decision)

    def rest(self, decision: Decision) -> Iterator[ChatResponse]:
        """What leaves at the end of a reply that was judged as a whole.

        Raises:
            GuardViolation: It is blocked.
        """
        if (message := self.whole) is None:
            return
        if decision.allowed:
            passed = self._assembled(message)
            yield self._chunk(passed, self._unsaid(words(passed)), decision)
        elif decision.action is Action.BLOCK:
            raise GuardViolation(decision)
        elif decision.action is not Action.REDACT:
            yield self.closed(decision.text or "", decision)
        elif self._waits:
            yield self.closed(words(decided_message(message, decision)), decision)
        else:
            yield self._chunk(said(MessageRole.ASSISTANT, self._told), "", decision)

    def closed(self, text: str, decision: Decision) -> ChatResponse:
        """The last chunk of a reply that ends early: what left of it, and this text instead."""
        apart = " " if text and self._told and not self._told[-1].isspace() else ""
        self._told += apart + text
        return self._chunk(said(MessageRole.ASSISTANT, self._told), apart + text, decision)

    def _tell(self, text: str) -> ChatResponse:
        self._told += text
        message = said(MessageRole.ASSISTANT, self._told)
        return ChatResponse(message=message, delta=text)

    def _chunk(self, message: ChatMessage, delta: str, decision: Decision | None) -> ChatResponse:
        fields = extra_of(self._last) if self._last else {}
        return ChatResponse(
            message=message,
            delta=delta,
            raw=self._raw or None,
            additional_kwargs=noted(fields, decision),
        )

    def _grown(self, message: ChatMessage) -> str:
        content = message.content or ""
        return content[len(self._came) :] if content.startswith(self._came) else ""

    def _complete(self, message: ChatMessage) -> ChatMessage:
        """The last message, with the text that came where it repeats none of it."""
        if message.content or not self._came:
            return message
        return _with_text(message, _joined(self._came))

    def _unsaid(self, text: str) -> str:
        """What a reader of deltas does not have yet of a text."""
        return text[len(self._told) :] if text.startswith(self._told) else ""

    def _assembled(self, message: ChatMessage) -> ChatMessage:
        """The message without what was taken out of its text."""
        if self._waits or self._told == _joined(self._came):
            return message
        return _with_text(message, self._told)


def by_assistant(response: ChatResponse) -> ChatResponse:
    """A response whose message is the assistant's, whatever it says: the default is the user."""
    message = response.message
    if role_of(message) is Role.ASSISTANT:
        return response
    message = message.model_copy(update={"role": MessageRole.ASSISTANT})
    return response.model_copy(update={"message": message})


def _with_text(message: ChatMessage, text: str) -> ChatMessage:
    """A message with another text, behind its thoughts and before its calls."""
    others = [block for block in message.blocks if not isinstance(block, TextBlock)]
    thoughts = [block for block in others if isinstance(block, ThinkingBlock)]
    return ChatMessage(
        role=message.role,
        blocks=[
            *thoughts,
            *([TextBlock(text=text)] if text else []),
            *(block for block in others if not isinstance(block, ThinkingBlock)),
        ],
        additional_kwargs=message.additional_kwargs,
    )


def _says_more(message: ChatMessage, came: str) -> bool:
    """Whether a message says more than the text that came; what cannot be read does."""
    try:
        if hidden(message) or tool_calls(message) or images(message):
            return True
        return not came.strip().startswith(words(message).strip())
    except GuardError:
        return True


def _joined(text: str) -> str:
    """A text without characters in two halves, of which models may write one at a time."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
