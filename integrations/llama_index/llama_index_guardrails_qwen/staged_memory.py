"""A memory to which nothing is written before it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from threading import Lock
from typing import Any, Protocol

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import SimpleComposableMemory
from llama_index.core.memory.types import BaseMemory
from pydantic import PrivateAttr
from typing_extensions import Self, override

from llama_index_guardrails_qwen.memory_drafts import Draft, adraft_of, draft_of


class Admission(Protocol):
    """Who says what of a memory may be read."""

    def admitted(self, messages: list[ChatMessage], *, begun: bool) -> list[ChatMessage]:
        """What passes of messages; `begun`: those of this turn are among them."""
        ...

    async def aadmitted(self, messages: list[ChatMessage], *, begun: bool) -> list[ChatMessage]:
        """`admitted`, without blocking the event loop."""
        ...


class StagedMemory(BaseMemory):
    """A memory as one turn sees it: what is written is read here, and nowhere else.

    `commit` writes to the memory itself. Fields that this has not are those of the memory. Make one
    with `of` or `aof`.
    """

    _real: BaseMemory = PrivateAttr()
    _draft: Draft = PrivateAttr()
    _base: list[ChatMessage] = PrivateAttr()
    _lock: Lock = PrivateAttr()
    _set: list[ChatMessage] | None = PrivateAttr(default=None)
    _written: list[ChatMessage] = PrivateAttr(default_factory=list[ChatMessage])
    _admission: Admission | None = PrivateAttr(default=None)

    def __init__(self, real: BaseMemory, draft: Draft, lock: Lock) -> None:
        super().__init__()
        self._real = real
        self._draft = draft
        self._base = draft.messages
        self._lock = lock

    @classmethod
    def of(cls, memory: BaseMemory, lock: Lock) -> Self:
        """A memory as it is now.

        Args:
            memory: The memory.
            lock: Held while it is written to: the same for all turns.
        """
        return cls(memory, draft_of(memory), lock)

    @classmethod
    async def aof(cls, memory: BaseMemory, lock: Lock) -> Self:
        """`of`, without blocking the event loop."""
        return cls(memory, await adraft_of(memory), lock)

    @classmethod
    @override
    def from_defaults(cls, **kwargs: Any) -> BaseMemory:
        raise NotImplementedError("a staged memory is made of a memory")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattr__(name)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue, reportUnknownVariableType]
        return getattr(self._real, name)

    @property
    def written(self) -> list[ChatMessage]:
        """What was put into it since it was made, or set."""
        return list(self._written)

    def admit(self, admission: Admission) -> None:
        """From now on, only what this lets pass is read."""
        self._admission = admission

    def commit(self, messages: Sequence[ChatMessage]) -> None:
        """Write what was set, and these messages in place of those that were put, to the memory.

        Raises:
            Exception: Whatever the memory raises.
        """
        with self._lock:
            if self._set is not None:
                self._real.set(list(self._set))
            elif self._shrunk and self._real.get_all() == self._base:
                self._real.set(self._shrunk)
            if messages:
                self._real.put_messages(list(messages))

    async def acommit(self, messages: Sequence[ChatMessage]) -> None:
        """`commit`, without blocking the event loop.

        A memory that knows no batches of its own writes on a thread, under the lock: so no other
        turn comes between the messages of this one.
        """
        if type(self._real).aput_messages is BaseMemory.aput_messages:
            await asyncio.to_thread(self.commit, messages)
            return
        if self._set is not None:
            await self._real.aset(list(self._set))
        if messages:
            await self._real.aput_messages(list(messages))

    @property
    def _shrunk(self) -> list[ChatMessage]:
        """What the memory made of its messages when they were read, a summary say; or nothing."""
        if isinstance(self._real, SimpleComposableMemory):
            return []  # to set it is to write to other memories as well
        had, count = self._draft.messages, len(self._written)
        kept = had[: len(had) - count]
        if count and had[-count:] != self._written:
            return []
        return kept if kept != self._base else []

    @override
    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return self._admitted(self._draft.memory.get(input=input, **kwargs))

    @override
    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return await self._aadmitted(await self._draft.memory.aget(input=input, **kwargs))

    @override
    def get_all(self) -> list[ChatMessage]:
        return self._admitted(self._draft.memory.get_all())

    @override
    async def aget_all(self) -> list[ChatMessage]:
        return await self._aadmitted(await self._draft.memory.aget_all())

    @override
    def put(self, message: ChatMessage) -> None:
        self._written.append(message)
        self._draft.put(message)

    @override
    async def aput(self, message: ChatMessage) -> None:
        self.put(message)

    @override
    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        self.put_messages(messages)

    @override
    def set(self, messages: list[ChatMessage]) -> None:
        self._written = []
        self._set = list(messages)
        self._draft.set(messages)

    @override
    async def aset(self, messages: list[ChatMessage]) -> None:
        self.set(messages)

    @override
    def reset(self) -> None:
        self.set([])

    @override
    async def areset(self) -> None:
        self.set([])

    def _admitted(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        if self._admission is None:
            return messages
        return self._admission.admitted(messages, begun=bool(self._written))

    async def _aadmitted(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        if self._admission is None:
            return messages
        return await self._admission.aadmitted(messages, begun=bool(self._written))
