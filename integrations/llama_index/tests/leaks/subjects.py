"""What keeps, or does not keep, unsafe text from being observed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor import PIINodePostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.tools import BaseTool
from typing_extensions import override

from guardrails_qwen import Guard, Policy
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import UNSAFE, WritingLLM
from integrations.llama_index.tests.leaks.threats import UNSAFE_WORD
from llama_index_guardrails_qwen.chat_engine import GuardedChatEngine
from llama_index_guardrails_qwen.llm import GuardedLLM
from llama_index_guardrails_qwen.messages import said
from llama_index_guardrails_qwen.postprocessor import GuardPostprocessor
from llama_index_guardrails_qwen.query_engine import GuardedQueryEngine
from llama_index_guardrails_qwen.tools import guarded_tools

SCRIPT = {UNSAFE_WORD: UNSAFE}
_T = TypeVar("_T")


def _same(value: _T) -> _T:
    return value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """One way to guard what runs: pieces that are put around, or in the place of, its own.

    Args:
        column: Its name in the tables; several subjects share one.
        variant: What tells them apart.
        model: Makes the model of the model.
        tools: Makes the tools of the tools.
        query: Makes the query engine of the query engine.
        chat: Makes the chat engine of the chat engine.
        postprocessors: Makes what retrieved nodes go through.
    """

    column: str
    variant: str = ""
    model: Callable[[LLM], LLM] = _same
    tools: Callable[[list[BaseTool]], Sequence[BaseTool]] = _same
    query: Callable[[BaseQueryEngine], BaseQueryEngine] = _same
    chat: Callable[[BaseChatEngine], BaseChatEngine] = _same
    postprocessors: Callable[[], list[BaseNodePostprocessor]] = list

    def __str__(self) -> str:
        return f"{self.column} {self.variant}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """Our pieces, all with the same judge and the same way to answer."""

    engine: str
    on_violation: Any
    beside: bool = False
    """Whether a model is asked before its messages are judged."""

    @property
    def guard(self) -> Guard:
        """A guard that judges tokens, or whole texts again and again."""
        make = {"tokens": ScriptedStreamEngine, "texts": ScriptedEngine}[self.engine]
        return Guard(make(SCRIPT), Policy.strict())

    def model(self, inner: LLM) -> LLM:
        how: dict[str, Any] = {"on_violation": self.on_violation, "beside": self.beside}
        return GuardedLLM(inner=inner, guard=self.guard, **how)

    def tools(self, tools: list[BaseTool]) -> Sequence[BaseTool]:
        return guarded_tools(tools, self.guard, on_violation=self.on_violation)

    def query(self, inner: BaseQueryEngine) -> BaseQueryEngine:
        return GuardedQueryEngine(inner, self.guard, on_violation=self.on_violation)

    def chat(self, inner: BaseChatEngine) -> BaseChatEngine:
        return GuardedChatEngine(inner, self.guard, on_violation=self.on_violation)

    def postprocessors(self) -> list[BaseNodePostprocessor]:
        return [GuardPostprocessor(guard=self.guard)]

    def subject(self, column: str, *pieces: str) -> Subject:
        """These of them."""
        made: dict[str, Any] = {piece: getattr(self, piece) for piece in pieces}
        return Subject(column=column, variant=f"{self.on_violation}, {self.engine}", **made)


class _Masker(WritingLLM):
    """Masks what is unsafe, in the form that `PIINodePostprocessor` asks for, and never errs."""

    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        asked = messages[-1].content or ""
        text = asked.rpartition("Context:\n")[2].rpartition("\nTask:")[0]
        masked, names = text, dict[str, str]()
        for number, name in enumerate(re.findall(rf"{UNSAFE_WORD}\w*", text)):
            names[f"NAME{number}"] = name
            masked = masked.replace(name, f"[NAME{number}]")
        told = f"{masked}\nOutput Mapping:\n{json.dumps(names)}"
        return ChatResponse(message=said(messages[-1].role, told))


def _pii() -> list[BaseNodePostprocessor]:
    return [PIINodePostprocessor(llm=_Masker(replies=[]))]


def _each(column: str, *pieces: str) -> list[Subject]:
    return [
        Ours(engine=engine, on_violation=way).subject(column, *pieces)
        for engine in ("tokens", "texts")
        for way in ("raise", "reply")
    ]


UNGUARDED = Subject(column="no guard")
MODELS = _each("GuardedLLM", "model")
AGENTS = _each("GuardedLLM, guarded_tools", "model", "tools")
ENGINES = _each("GuardedQueryEngine, GuardedChatEngine", "query", "chat")
BOTH = _each("both", "model", "query", "chat")
BESIDE = Ours(engine="tokens", on_violation="raise", beside=True).subject("beside", "model")
POSTPROCESSORS = [
    Ours(engine=engine, on_violation="raise").subject("GuardPostprocessor", "postprocessors")
    for engine in ("tokens", "texts")
]
PII = Subject(column="PIINodePostprocessor", postprocessors=_pii)
