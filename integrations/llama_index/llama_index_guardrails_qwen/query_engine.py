"""A query engine whose queries and answers are judged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from typing_extensions import override

from guardrails_qwen import Guard, Stage
from guardrails_qwen.streaming import Streaming
from llama_index_guardrails_qwen.answering import aanswered, answered
from llama_index_guardrails_qwen.gate import Gate, OnViolation
from llama_index_guardrails_qwen.queries import admitted, asked_about_query, query_of
from llama_index_guardrails_qwen.response_streams import moderated
from llama_index_guardrails_qwen.responses import asked_about_answer, settled

_STREAMING = Streaming()


class GuardedQueryEngine(BaseQueryEngine):
    """A query engine that is asked only what may be asked, and answers only what may be read.

    ```python
    engine = GuardedQueryEngine(index.as_query_engine(), Guard.from_pretrained("tiny"))
    ```

    The query is judged before anything is retrieved, by the rules for input: its text, its picture,
    and what is to be embedded in its place. The answer is judged together with the query that went
    on, by the rules for output; a stream while it comes. A structured answer is judged by all that
    its fields say; it cannot be rebuilt, so one that is changed becomes a `Response` with the
    policy's replacement. What an engine tells beside an answer (why it chose a tool, its SQL) is
    judged as well, and left out where it may not pass.

    Source nodes and metadata come with answers that pass as they are, and with no others. Those of
    a stream appear in the same list and dict when it has passed to its end. The nodes themselves
    are not judged here, nor is what engines inside of this one say to each other: see
    `GuardPostprocessor`, and guard those engines too.

    It is asked like the engine inside: `query`, `retrieve`, `synthesize` and their asynchronous
    doors, prompts and callback manager. Nothing else of that engine is reached through this one,
    because it would be unguarded: ask `inner` for it. What asks for a `RetrieverQueryEngine` by its
    type, as `CondenseQuestionChatEngine` does before it lets an answer stream, does not find one:
    guard that chat engine, or make the engine inside with `streaming=True`.

    What handlers are told is not judged, neither of this engine's queries as they came nor of what
    the engine inside does. Put a `GuardedLLM` inside where they may not hear it. Errors of the
    engine inside pass as they are, and LlamaIndex's own may quote what a model wrote.

    Args:
        engine: The engine to guard, any `BaseQueryEngine`.
        guard: The engine and the policy that judge.
        on_violation: `raise`: a blocked query or answer raises `GuardViolation`; out of a stream,
            where it is read. `reply`: it is answered with the policy's replacement, and nothing is
            retrieved. A query that is dropped has an empty answer.
        streaming: How streams are moderated. Its closing text takes the place of every blocked
            answer, and ends a stream that is blocked.
        check_input: Whether queries are judged.
        check_output: Whether answers are judged.

    Raises:
        TypeError: `engine` is no query engine, or `guard` no guard.
        GuardViolation: The query or the answer is blocked.
        GuardError: It could not be judged, and the policy says to raise.
    """

    def __init__(  # noqa: PLR0913 - all but the first two by name
        self,
        engine: BaseQueryEngine,
        guard: Guard,
        *,
        on_violation: OnViolation = "raise",
        streaming: Streaming = _STREAMING,
        check_input: bool = True,
        check_output: bool = True,
    ) -> None:
        self._query_engine = _require_engine(engine)
        self._gate = Gate(
            guard=guard, component="query_engine", on_violation=on_violation, streaming=streaming
        )
        self._checks_input = check_input
        self._checks_output = check_output

    @property
    def inner(self) -> BaseQueryEngine:
        """The engine that is guarded. What it is asked directly nobody judges."""
        return self._query_engine

    @property
    def callback_manager(self) -> CallbackManager:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the engine inside."""
        return self._query_engine.callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self._query_engine.callback_manager = callback_manager

    @override
    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """What the engine finds for a query that may be asked; nothing for any other."""
        query = self._admitted(query_bundle)
        return [] if isinstance(query, str) else self._query_engine.retrieve(query)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """`retrieve`, where the engine inside has it.

        Raises:
            NotImplementedError: It has not.
        """
        inner: Any = self._query_engine
        if not hasattr(inner, "aretrieve"):
            raise NotImplementedError("the guarded query engine has no aretrieve: use retrieve")
        query = await self._aadmitted(query_bundle)
        return [] if isinstance(query, str) else await inner.aretrieve(query)

    @override
    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """The answer made of nodes. The query is judged here too: it need not be `retrieve`'s."""
        query = self._admitted(query_bundle)
        if isinstance(query, str):
            return answered(query, self._query_engine)
        response = self._query_engine.synthesize(query, nodes, additional_source_nodes)
        return self._passed(query, response)

    @override
    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """`synthesize`, without blocking the event loop."""
        query = await self._aadmitted(query_bundle)
        if isinstance(query, str):
            return aanswered(query, self._query_engine)
        response = await self._query_engine.asynthesize(query, nodes, additional_source_nodes)
        return await self._apassed(query, response)

    @override
    def get_prompts(self) -> PromptDictType:
        """Those of the engine inside, by the same names."""
        return self._query_engine.get_prompts()

    @override
    def update_prompts(self, prompts_dict: PromptDictType) -> None:
        """Update those of the engine inside."""
        self._query_engine.update_prompts(prompts_dict)

    @override
    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self._query_engine}

    @override
    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        query = self._admitted(query_bundle)
        if isinstance(query, str):
            return answered(query, self._query_engine)
        return self._passed(query, self._query_engine.query(query))

    @override
    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        query = await self._aadmitted(query_bundle)
        if isinstance(query, str):
            return aanswered(query, self._query_engine)
        return await self._apassed(query, await self._query_engine.aquery(query))

    def _admitted(self, query: QueryBundle) -> QueryBundle | str:
        """The query as it goes on, or its answer."""
        query = query_of(query)
        if not self._checks_input:
            return query
        asked = asked_about_query(query)
        return admitted(self._gate, query, self._gate.judge(asked, Stage.INPUT))

    async def _aadmitted(self, query: QueryBundle) -> QueryBundle | str:
        query = query_of(query)
        if not self._checks_input:
            return query
        if query.image_path:  # it is read from a file
            asked = await asyncio.to_thread(asked_about_query, query)
        else:
            asked = asked_about_query(query)
        return admitted(self._gate, query, await self._gate.ajudge(asked, Stage.INPUT))

    def _passed(self, query: QueryBundle, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """What callers get of an answer."""
        if not self._checks_output:
            return response
        if isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
            return moderated(self._gate, query, response)
        asked = asked_about_answer(query, response)
        decisions = self._gate.judge([*asked.values()], Stage.OUTPUT)
        return settled(self._gate, response, dict(zip(asked, decisions, strict=True)))

    async def _apassed(self, query: QueryBundle, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        if not self._checks_output:
            return response
        if isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
            return moderated(self._gate, query, response)
        asked = asked_about_answer(query, response)
        decisions = await self._gate.ajudge([*asked.values()], Stage.OUTPUT)
        return settled(self._gate, response, dict(zip(asked, decisions, strict=True)))


def guard_query_engine(  # noqa: PLR0913 - all but the first two by name
    engine: BaseQueryEngine,
    guard: Guard,
    *,
    on_violation: OnViolation = "raise",
    streaming: Streaming = _STREAMING,
    check_input: bool = True,
    check_output: bool = True,
) -> GuardedQueryEngine:
    """`GuardedQueryEngine` with the same arguments: one line around an engine.

    ```python
    engine = guard_query_engine(index.as_query_engine(), Guard.from_pretrained("tiny"))
    ```
    """
    return GuardedQueryEngine(
        engine,
        guard,
        on_violation=on_violation,
        streaming=streaming,
        check_input=check_input,
        check_output=check_output,
    )


def _require_engine(engine: object) -> BaseQueryEngine:
    if not isinstance(engine, BaseQueryEngine):
        raise TypeError(
            f"the engine is {type(engine).__name__}, not a query engine: give what "
            "index.as_query_engine() makes"
        )
    return engine
