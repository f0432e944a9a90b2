"""The ways of asking an OpenAI-compatible server for a verdict."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, TypeVar

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.base import Dialect
from guardrails_qwen.dialects.token_tree import Node, OffFormat, TokenTree
from guardrails_qwen.dialects.tree_walk import TreeWalk
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.completions import (
    Following,
    Tokens,
    Written,
    narrowed,
    prompt_tokens,
    read_chat,
    read_next,
)
from guardrails_qwen.engines.prompting import Prompting
from guardrails_qwen.engines.transport import TOO_LONG, Deadline, Transport
from guardrails_qwen.errors import RequestRejected, UnreadableVerdict
from guardrails_qwen.verdict import Scores, Verdict

Result = TypeVar("Result")

_LONGEST = 65_536
"""Tokens of the longest prompt that is asked about; no window is longer."""
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


@dataclass(slots=True)
class Whole:
    """Up to which length a server is known not to truncate."""

    proven: int = 0
    """In tokens of a prompt."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is found out."""


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
        async with self.whole.lock:
            if read > self.whole.proven:
                await self._prove(read, deadline)

    async def _prove(self, read: int, deadline: Deadline) -> None:
        """See that the server reads a prompt of more than so many tokens, or refuses it."""
        if read > _LONGEST:
            raise UnreadableVerdict("", f"the server read {read} tokens: nobody sent so many")
        longer = 2 * read
        probe = self.dialect.probes[0].with_last_text(" ".join(["word"] * longer))
        body = {**self.form.body(self.dialect, probe), "max_tokens": 1}
        try:
            answer = await self.transport.post("/chat/completions", body, deadline)
        except RequestRejected as error:
            if error.status not in TOO_LONG:
                raise
            self.whole.proven = max(self.whole.proven, longer)  # it says so where one is too long
            return
        found = prompt_tokens(answer)
        if found is None or found < longer:
            raise UnreadableVerdict(
                "",
                f"the server read {found} tokens of a prompt that has {longer} at least, so that "
                f"one of {read} may have been truncated: give it a longer context",
            )
        self.whole.proven = max(self.whole.proven, longer)

    def _require_constrained(self, written: Written, conversation: Conversation) -> None:
        regex = self.dialect.regex(conversation) if self.form.constraint else None
        if regex and re.fullmatch(regex, written.text.strip()) is None:
            raise UnreadableVerdict(written.text, "the server ignored the regular expression")


def words(body: Mapping[str, Any]) -> int:
    """The words of a chat request's messages. Each takes a token at least."""
    return sum(len(str(message["content"]).split()) for message in body["messages"])


def require_same_model(explored: str | None, answered: str | None) -> None:
    """Refuse what another model says than the one that was tried.

    Raises:
        UnreadableVerdict: It is another, by the name that the server gives it.
    """
    if explored != answered:
        raise UnreadableVerdict("", "another model answered than the one that was explored")


class Prompts(Protocol):
    """Makes prompts of token ids."""

    @property
    def texts(self) -> Mapping[str, int]:
        """Token ids by the text that servers name them by, of those that are read."""
        ...

    @property
    def trees(self) -> Mapping[bool, TokenTree]:
        """The answers, on responses and on prompts."""
        ...

    async def ids(self, conversation: Conversation, deadline: Deadline) -> list[int]:
        """The prompt that asks for a verdict on a conversation."""
        ...


class LocalPrompts:
    """Prompts made here, where content cannot become a special token."""

    def __init__(self, prompting: Prompting) -> None:
        self._prompting = prompting
        self.trees: Mapping[bool, TokenTree] = {
            response: prompting.tree(response=response) for response in (False, True)
        }
        forks = {token for tree in self.trees.values() for token in tree.forks}
        self.texts: Mapping[str, int] = {prompting.encoder.token(id_): id_ for id_ in forks}

    async def ids(self, conversation: Conversation, deadline: Deadline) -> list[int]:
        """At once."""
        return self._prompting.prompts([conversation])[0].ids


class ServerPrompts:
    """Prompts that the server's `/tokenize` makes of messages, as vLLM's does.

    One request more than with a tokenizer here, and special tokens in content are broken up as for
    a chat, since the server's tokenizer would take them for what they say.
    """

    texts: Mapping[str, int] = {}

    def __init__(
        self, transport: Transport, model: str, dialect: Dialect, trees: Mapping[bool, TokenTree]
    ) -> None:
        self._transport = transport
        self._model = model
        self._dialect = dialect
        self._whole = Whole()
        self.trees = trees
        self.least: dict[bool, int] = {}
        """The least tokens of a prompt beside one for each word of its text, once explored."""

    @classmethod
    async def connect(
        cls, transport: Transport, model: str, dialect: Dialect, deadline: Deadline
    ) -> ServerPrompts:
        """With the answers of Qwen3Guard-Gen in the server's tokens."""
        await tokenized(transport, model, "Safety:", deadline)  # one, before all the others

        async def tree(*, response: bool) -> TokenTree:
            answer = qwen3guard.answer_format(response=response)
            texts = map(answer.write, answer.answers)
            found = await together(tokenized(transport, model, one, deadline) for one in texts)
            return TokenTree(
                {values: [*ids, _END] for values, ids in zip(answer.answers, found, strict=True)},
                resolve=len(qwen3guard.EXPECTED),
                expected=qwen3guard.EXPECTED,
            )

        trees = {response: await tree(response=response) for response in (False, True)}
        return cls(transport, model, dialect, trees)

    async def ids(self, conversation: Conversation, deadline: Deadline) -> list[int]:
        """From the server."""
        messages = self._dialect.messages(conversation)
        found = await tokenized(self._transport, self._model, messages, deadline)
        least = self.least.get(judges_response(conversation), 0) + words({"messages": messages})
        if len(found) < least:
            raise UnreadableVerdict(
                "", f"the server made {len(found)} tokens of a prompt that has {least} at least"
            )
        async with self._whole.lock:
            if len(found) > self._whole.proven:
                await self._prove(len(found), deadline)
        return found

    async def _prove(self, length: int, deadline: Deadline) -> None:
        """See that the server makes longer prompts than this whole, or refuses to."""
        longer = 2 * length
        probe = self._dialect.probes[0].with_last_text(" ".join(["word"] * longer))
        messages = self._dialect.messages(probe)
        try:
            found = await tokenized(self._transport, self._model, messages, deadline)
        except RequestRejected as error:
            if error.status not in TOO_LONG:
                raise
        else:
            if len(found) < longer:
                raise UnreadableVerdict(
                    "", f"the server made {len(found)} tokens of {longer} words: it truncates"
                )
        self._whole.proven = max(self._whole.proven, longer)


_END = -1
"""Stands for the end of a turn, which nobody reads."""


async def tokenized(
    transport: Transport,
    model: str,
    asked: str | Sequence[Mapping[str, Any]],
    deadline: Deadline,
) -> list[int]:
    """What a server's `/tokenize` makes of a text, or of messages in the template.

    Raises:
        GuardError: It cannot, or does something else.
    """
    if isinstance(asked, str):
        body: dict[str, Any] = {"model": model, "prompt": asked, "add_special_tokens": False}
    else:
        body = {"model": model, "messages": asked, "add_generation_prompt": True}
    return narrowed(Tokens, await transport.post("//tokenize", body, deadline)).tokens


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


async def together(work: Iterable[Awaitable[Result]]) -> list[Result]:
    """All results, in order; where one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _as_is(scores: Scores) -> Scores:
    return scores
