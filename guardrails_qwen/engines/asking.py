"""The ways of asking an OpenAI-compatible server for a verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, Protocol

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.base import Dialect
from guardrails_qwen.dialects.token_tree import Node, OffFormat
from guardrails_qwen.dialects.tree_walk import TreeWalk
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.completions import (
    Following,
    Written,
    prompt_tokens,
    read_chat,
    read_next,
)
from guardrails_qwen.engines.remote_prompts import Prompts, Whole, together, words
from guardrails_qwen.engines.transport import Deadline, Transport
from guardrails_qwen.errors import UnreadableVerdict
from guardrails_qwen.verdict import Scores, Verdict

_LOGPROBS = 20
"""Alternatives asked for of each token: what vLLM and OpenAI give at most."""


class Way(str, Enum):
    """How a server is asked."""

    CHAT = "chat"
    """Chat completions: the server applies the template and generates the whole answer."""
    CONSTRAINED = "constrained"
    """The same, with the answer's regular expression: no other answer can be written."""
    TOKENS = "tokens"
    """Completions of token ids: prompts are made here, and single tokens read. The fastest, and the
    only one in which no text can become a special token of the server's tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatForm:
    """What a chat request to a server has to be like."""

    model: str
    logprobs: int = 0
    """Alternatives of each token that the server tells; 0 for none."""
    continued: bool = False
    """Whether replies are followed by an empty assistant message that is to be continued. SGLang
    takes a last assistant message for a user's otherwise."""
    constraint: str | None = None
    """The field of a request that takes a regular expression, if it is to be used."""

    def body(self, dialect: Dialect, conversation: Conversation) -> dict[str, Any]:
        """The request for a verdict on a conversation."""
        messages = dialect.messages(conversation)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": dialect.answer_tokens,
            **dialect.options,
        }
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.logprobs}
        if self.continued and messages[-1]["role"] == "assistant":
            body["messages"] = [*messages, {"role": "assistant", "content": ""}]
            body["continue_final_message"] = True
        regex = dialect.regex(conversation) if self.constraint else None
        return body | (constraint(self.constraint, regex) if self.constraint and regex else {})


def constraint(kind: str, regex: str) -> dict[str, Any]:
    """A regular expression as the field that a server takes it in."""
    return {kind: {"regex": regex}} if kind == "structured_outputs" else {kind: regex}


class Asker(Protocol):
    """Asks a server for a verdict on one conversation, which is short enough."""

    async def __call__(self, conversation: Conversation, deadline: Deadline) -> Verdict:
        """The verdict, with what it cost.

        Raises:
            GuardError: There is none.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsker:
    """Asks by chat completions, and checks that the server read and did what it was asked."""

    transport: Transport
    dialect: Dialect
    form: ChatForm
    least: Mapping[bool, int] = field(default_factory=dict[bool, int])
    """The least tokens of a prompt beside one for each word that is sent, where it judges a
    response and where not; empty where the server does not count."""
    model: str | None = None
    """Who answers, as the server said when it was explored."""
    whole: Whole = field(default_factory=Whole)

    async def __call__(self, conversation: Conversation, deadline: Deadline) -> Verdict:
        """The verdict; see `Asker`."""
        body = self.form.body(self.dialect, conversation)
        written = await self._written(body, deadline)
        await self._require_read(written.read, body, conversation, deadline)
        self._require_constrained(written, conversation)
        verdict = self.dialect.read(written.text, conversation, written.steps)
        return replace(verdict, tokens=written.tokens)

    async def _written(self, body: Mapping[str, Any], deadline: Deadline) -> Written:
        written = read_chat(await self.transport.post("/chat/completions", body, deadline))
        require_same_model(self.model, written.model)
        return written

    async def _require_read(
        self,
        read: int | None,
        body: Mapping[str, Any],
        conversation: Conversation,
        deadline: Deadline,
    ) -> None:
        """Refuse a verdict on less text than was sent: some servers truncate and say nothing.

        Every word takes a token at least, so that a prompt of fewer tokens cannot hold them all.
        Not all text has words, so a prompt that is longer than any before it is not believed before
        a harmless one that is longer still was seen to be read.
        """
        if not self.least:
            return
        least = self.least[judges_response(conversation)] + words(body)
        if read is None or read < least:
            raise UnreadableVerdict(
                "",
                f"the server read {read or 'an unknown number of'} tokens of a prompt that has "
                f"{least} at least: give it a longer context",
            )
        await self.whole.require(read, self.dialect.probes[0], partial(self._measured, deadline))

    async def _measured(self, deadline: Deadline, conversation: Conversation) -> int | None:
        """Tokens of the prompt for a conversation, as the server counts them."""
        body = {**self.form.body(self.dialect, conversation), "max_tokens": 1}
        return prompt_tokens(await self.transport.post("/chat/completions", body, deadline))

    def _require_constrained(self, written: Written, conversation: Conversation) -> None:
        regex = self.dialect.regex(conversation) if self.form.constraint else None
        if regex and re.fullmatch(regex, written.text.strip()) is None:
            raise UnreadableVerdict(written.text, "the server ignored the regular expression")


def require_same_model(explored: str | None, answered: str | None) -> None:
    """Refuse what another model says than the one that was tried.

    Raises:
        UnreadableVerdict: It is another, by the name that the server gives it.
    """
    if explored != answered:
        raise UnreadableVerdict("", "another model answered than the one that was explored")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensAsker:
    """Reads single tokens behind a prompt, and relies on the server's prefix cache for the rest.

    A prompt that is clearly safe takes one token. The server has to have read as many tokens as it
    was sent.
    """

    transport: Transport
    model: str
    prompts: Prompts
    answering: str | None = None
    """Who answers, as the server said when it was explored."""

    async def __call__(self, conversation: Conversation, deadline: Deadline) -> Verdict:
        """The verdict; see `Asker`."""
        walk = TreeWalk(self.prompts.trees[judges_response(conversation)])
        prompt = await self.prompts.ids(conversation, deadline)
        reads = 0
        while wanted := walk.wanted:
            found = await together(self.next(prompt, node, deadline) for node in wanted)
            for node, following in zip(wanted, found, strict=True):
                logprobs, likeliest = following.by_id(self.prompts.texts)
                try:
                    walk.tell(node, logprobs, likeliest)
                except OffFormat:
                    raise UnreadableVerdict(
                        "", "the model would not have written a documented answer"
                    ) from None
            reads += len(wanted)
        verdict = qwen3guard.scored_verdict(walk.scored(), _as_is)
        return replace(verdict, tokens=len(prompt) + reads)

    async def next(self, prompt: list[int], node: Node, deadline: Deadline) -> Following:
        """What follows a node of the answer tree behind a prompt.

        Raises:
            UnreadableVerdict: The server read another number of tokens than it was sent.
        """
        sent = [*prompt, *(one.token for one in node.path())]
        body = {
            "model": self.model,
            "prompt": sent,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": _LOGPROBS,
            "return_tokens_as_token_ids": True,
        }
        following = read_next(await self.transport.post("/completions", body, deadline))
        require_same_model(self.answering, following.model)
        if following.read != len(sent):
            raise UnreadableVerdict(
                "", f"the server read {following.read} tokens where {len(sent)} were sent"
            )
        return following


def _as_is(scores: Scores) -> Scores:
    return scores
