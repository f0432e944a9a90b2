"""Copies of memories that read as they do, and write nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory, SimpleComposableMemory
from llama_index.core.memory.types import BaseMemory
from llama_index.core.storage.chat_store import BaseChatStore, SimpleChatStore
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from pydantic import Field, PrivateAttr
from typing_extensions import override


class Draft:
    """A memory as it would be, without being it.

    Args:
        memory: What is read from: a copy of the memory, on a store of its own.
        store: This store.
        key: Under which the messages are in it.
    """

    def __init__(self, memory: BaseMemory, store: Rows | SimpleChatStore, key: str) -> None:
        self.memory = memory
        self._store = store
        self._key = key

    @property
    def messages(self) -> list[ChatMessage]:
        """All that is in the store."""
        if isinstance(self._store, Rows):
            return list(self._store.rows)
        return list(self._store.get_messages(self._key))

    def put(self, message: ChatMessage) -> None:
        """Add a message to the store alone: a memory that is full passes old ones on elsewhere."""
        self.set([*self.messages, message])

    def set(self, messages: Sequence[ChatMessage]) -> None:
        """The store holds these from now on."""
        if isinstance(self._store, Rows):
            self._store.rows = _copies(messages)
        else:
            self._store.set_messages(self._key, _copies(messages))


def draft_of(memory: BaseMemory) -> Draft:
    """A draft of a memory as it is now."""
    return _draft(memory, _known_kind(memory) and _held(memory))


async def adraft_of(memory: BaseMemory) -> Draft:
    """`draft_of`, without blocking the event loop."""
    return _draft(memory, _known_kind(memory) and await _aheld(memory))


class Rows(AsyncDBChatStore):
    """The active messages of one session, in this process."""

    rows: list[ChatMessage] = Field(default_factory=list[ChatMessage])

    @override
    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        rows = _copies(self.rows[offset or 0 :])
        return [] if status is MessageStatus.ARCHIVED else rows[:limit]

    @override
    async def count_messages(
        self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE
    ) -> int:
        return len(await self.get_messages(key, status))

    @override
    async def add_message(
        self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        self.rows.append(message)

    @override
    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        self.rows.extend(messages)

    @override
    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        self.rows = list(messages)

    @override
    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        return self.rows.pop(idx) if 0 <= idx < len(self.rows) else None

    @override
    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        self.rows = []

    @override
    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        gone, self.rows = self.rows[:n], self.rows[n:]
        return gone

    @override
    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        return await self.delete_oldest_messages(key, n)

    @override
    async def get_keys(self) -> list[str]:
        return []


class Behind(BaseMemory):
    """What a memory of any kind has, and behind it what is in a store."""

    _memory: BaseMemory | None = PrivateAttr(default=None)
    _store: Rows = PrivateAttr(default_factory=Rows)

    def __init__(self, memory: BaseMemory, store: Rows) -> None:
        super().__init__()
        self._memory = memory
        self._store = store

    @classmethod
    @override
    def from_defaults(cls, **kwargs: Any) -> BaseMemory:
        raise NotImplementedError("a draft is made of a memory")

    def forget(self) -> None:
        """The memory is not read from now on, as if it were empty."""
        self._memory = None

    @override
    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        had = self._memory.get(input=input, **kwargs) if self._memory else []
        return _copies([*had, *self._store.rows])

    @override
    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        had = await self._memory.aget(input=input, **kwargs) if self._memory else []
        return _copies([*had, *self._store.rows])

    @override
    def get_all(self) -> list[ChatMessage]:
        had = self._memory.get_all() if self._memory else []
        return _copies([*had, *self._store.rows])

    @override
    async def aget_all(self) -> list[ChatMessage]:
        had = await self._memory.aget_all() if self._memory else []
        return _copies([*had, *self._store.rows])

    @override
    def put(self, message: ChatMessage) -> None:
        self._store.rows.append(message)

    @override
    def set(self, messages: list[ChatMessage]) -> None:
        self.forget()
        self._store.rows = list(messages)

    @override
    def reset(self) -> None:
        self.set([])


class _BehindDraft(Draft):
    """A draft of which only what was written is in the store."""

    def __init__(self, memory: BaseMemory) -> None:
        store = Rows()
        self._behind = Behind(memory, store)
        super().__init__(self._behind, store, "")

    @override
    def set(self, messages: Sequence[ChatMessage]) -> None:
        self._behind.forget()
        super().set(messages)

    @override
    def put(self, message: ChatMessage) -> None:
        self._behind.put(message)


def _draft(memory: BaseMemory, held: Sequence[ChatMessage] | bool) -> Draft:
    if isinstance(held, bool):
        return _BehindDraft(memory)
    if isinstance(memory, SimpleComposableMemory):
        draft = _draft(memory.primary_memory, held)
        draft.memory = memory.model_copy(update={"primary_memory": draft.memory})
        return draft
    if isinstance(memory, Memory):
        rows = Rows(rows=_copies(held))
        return Draft(memory.model_copy(update={"sql_store": rows}), rows, memory.session_id)
    _, key = _store_of(memory)
    store = SimpleChatStore(store={key: _copies(held)})
    return Draft(memory.model_copy(update={"chat_store": store}), store, key)


def _known_kind(memory: BaseMemory) -> bool:
    if isinstance(memory, SimpleComposableMemory):
        return _known_kind(memory.primary_memory)
    return isinstance(memory, Memory) or _has_store(memory)


def _has_store(memory: BaseMemory) -> bool:
    return {"chat_store", "chat_store_key"} <= set(type(memory).model_fields)


def _store_of(memory: Any) -> tuple[BaseChatStore, str]:
    return memory.chat_store, memory.chat_store_key


def _held(memory: BaseMemory) -> Sequence[ChatMessage]:
    if isinstance(memory, SimpleComposableMemory):
        return _held(memory.primary_memory)
    if isinstance(memory, Memory):
        return memory.get_all(status=MessageStatus.ACTIVE)
    store, key = _store_of(memory)
    return store.get_messages(key)


async def _aheld(memory: BaseMemory) -> Sequence[ChatMessage]:
    if isinstance(memory, SimpleComposableMemory):
        return await _aheld(memory.primary_memory)
    if isinstance(memory, Memory):
        return await memory.aget_all(status=MessageStatus.ACTIVE)
    store, key = _store_of(memory)
    return await store.aget_messages(key)


def _copies(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Messages of which blocks and arguments may be changed: memories do that to what they read."""
    return [
        message.model_copy(
            update={
                "blocks": list(message.blocks),
                "additional_kwargs": dict(message.additional_kwargs),
            }
        )
        for message in messages
    ]
