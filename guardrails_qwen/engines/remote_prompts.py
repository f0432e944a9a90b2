"""Prompts of token ids for a server, made here or by the server's `/tokenize`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.base import Dialect
from guardrails_qwen.dialects.token_tree import TokenTree
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.completions import Tokens, narrowed
from guardrails_qwen.engines.prompting import Prompting
from guardrails_qwen.engines.transport import TOO_LONG, Deadline, Transport
from guardrails_qwen.errors import RequestRejected, UnreadableVerdict

Result = TypeVar("Result")


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

        async def measure(one: Conversation) -> int:
            return len(await self._tokens(self._dialect.messages(one), deadline))

        messages = self._dialect.messages(conversation)
        found = await self._tokens(messages, deadline)
        least = self.least.get(judges_response(conversation), 0) + words({"messages": messages})
        if len(found) < least:
            raise UnreadableVerdict(
                "", f"the server made {len(found)} tokens of a prompt that has {least} at least"
            )
        await self._whole.require(len(found), self._dialect.probes[0], measure)
        return found

    async def _tokens(self, messages: Sequence[Mapping[str, Any]], deadline: Deadline) -> list[int]:
        return await tokenized(self._transport, self._model, messages, deadline)


_LONGEST = 65_536
"""Tokens of the longest prompt that is asked about; no window is longer."""
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


@dataclass(slots=True)
class Whole:
    """Up to which length a server is known not to truncate."""

    proven: int = 0
    """In tokens of a prompt."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def require(
        self,
        length: int,
        probe: Conversation,
        measure: Callable[[Conversation], Awaitable[int | None]],
    ) -> None:
        """See that a server takes longer prompts than this one whole, or refuses them.

        Args:
            length: Tokens of a prompt, as the server counts.
            probe: A harmless conversation.
            measure: Has the server count the tokens of a prompt; None where it does not.

        Raises:
            UnreadableVerdict: It truncates.
            GuardError: It could not be found out.
        """
        if length <= self.proven:
            return
        async with self._lock:
            if length > self.proven:
                await self._prove(length, probe, measure)

    async def _prove(
        self,
        length: int,
        probe: Conversation,
        measure: Callable[[Conversation], Awaitable[int | None]],
    ) -> None:
        if length > _LONGEST:
            raise UnreadableVerdict("", f"the server read {length} tokens: nobody sent so many")
        longer = 2 * length
        try:
            found = await measure(probe.with_last_text(" ".join(["word"] * longer)))
        except RequestRejected as error:
            if error.status not in TOO_LONG:
                raise
            found = longer  # it says so where a prompt is too long
        if found is None or found < longer:
            raise UnreadableVerdict(
                "",
                f"the server read {found} tokens of a prompt that has {longer} at least, so that "
                f"one of {length} may have been truncated: give it a longer context",
            )
        self.proven = max(self.proven, longer)


def words(body: Mapping[str, Any]) -> int:
    """The words of a chat request's messages. Each takes a token at least."""
    return sum(len(str(message["content"]).split()) for message in body["messages"])


async def together(work: Iterable[Awaitable[Result]]) -> list[Result]:
    """All results, in order; where one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
