"""A guarded model is overheard by nobody, though its inner model asks another one."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.context import (
    collect_runs,
    tracing_v2_callback_var,
)
from langchain_core.tracers.schemas import Run
from langsmith import run_helpers, utils
from pydantic import Field

from guardrails_qwen import Action, Guard, Policy
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import REPLACED, SCRIPT, writing
from langchain_guardrails_qwen import GuardedChatModel

tracing_context: Any = run_helpers.tracing_context  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
tracing_is_enabled: Any = utils.tracing_is_enabled  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
HARMFUL = "Sure, here it is. Take a bomb and light it. Then run away. Goodbye."


class Asking(BaseChatModel):
    """Asks another model, as users do, and notes what it inherits."""

    other: BaseChatModel
    inherits: list[object] = Field(default_factory=list[object])

    @property
    def _llm_type(self) -> str:
        return "asking"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._note()
        return ChatResult(generations=[ChatGeneration(message=self.other.invoke(messages))])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        self._note()
        message = await self.other.ainvoke(messages)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.other.stream(messages):
            self._note()
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        stream: Any = self.other.astream(messages)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                self._note()
                yield ChatGenerationChunk(message=chunk)

    def _note(self) -> None:
        tracers = tracing_v2_callback_var.get(), tracing_is_enabled()
        self.inherits.append((var_child_runnable_config.get(), *tracers))


class Spy(BaseTracer):
    """Keeps all that a tracer is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> Any:
        self.told.append(f"{token} {kwargs}")
        return super().on_llm_new_token(token, **kwargs)

    def _on_llm_end(self, run: Any) -> None:
        self.told.append(str(run.outputs))

    def _persist_run(self, run: Run) -> None:
        self.told.append(run.model_dump_json(exclude={"parent_run", "serialized"}))


@pytest.fixture(params=[False, True], ids=["after", "beside"])
def model(request: pytest.FixtureRequest) -> GuardedChatModel:
    """A guarded model around one that asks another one."""
    return GuardedChatModel(
        inner=Asking(other=writing(HARMFUL)),
        guard=Guard(ScriptedEngine(SCRIPT), Policy.strict(action=Action.REPLACE)),
        streaming=Streaming(stride=1),
        beside=request.param,
    )


async def run(door: str, chain: Runnable[Any, Any], config: Any = None) -> list[Any]:
    if door == "invoke":
        return [chain.invoke("how?", config)]
    if door == "ainvoke":
        return [await chain.ainvoke("how?", config)]
    if door == "stream":
        return list(chain.stream("how?", config))
    if door == "astream":
        return [chunk async for chunk in chain.astream("how?", config)]
    return [event async for event in chain.astream_events("how?", config, version="v2")]


doors = pytest.mark.parametrize("door", ["invoke", "ainvoke", "stream", "astream", "events"])


@doors
async def test_in_a_chain_nobody_hears_what_the_inner_model_asks(
    door: str, model: GuardedChatModel
) -> None:
    spy = Spy()
    chain: Runnable[Any, Any] = RunnablePassthrough[Any]() | model
    out = await run(door, chain, {"callbacks": [spy]})
    assert REPLACED in str(out)
    assert REPLACED in str(spy.told)
    assert "bomb" not in f"{out} {spy.told}"


@doors
async def test_a_chain_inside_a_function_as_well(door: str, model: GuardedChatModel) -> None:
    spy = Spy()

    async def ask(text: str) -> list[Any]:
        return await run(door, model)

    out = await (RunnablePassthrough[Any]() | ask).ainvoke("how?", {"callbacks": [spy]})
    assert REPLACED in str(out)
    assert "bomb" not in f"{out} {spy.told}"


@doors
async def test_nothing_is_inherited_and_all_of_it_is_there_afterwards(
    door: str, model: GuardedChatModel
) -> None:
    token = var_child_runnable_config.set({"tags": ["outside"], "callbacks": [Spy()]})
    try:
        with tracing_context(enabled="local"):
            await run(door, model, {"callbacks": []})
            assert tracing_is_enabled() == "local"
        assert (var_child_runnable_config.get() or {}).get("tags") == ["outside"]
    finally:
        var_child_runnable_config.reset(token)
    asked: Any = model.inner
    assert set(asked.inherits) == {(None, None, False)}


async def test_runs_that_are_collected_are_those_of_the_guarded_model(
    model: GuardedChatModel,
) -> None:
    with collect_runs() as collected:
        model.invoke("how?")
    assert [run.name for run in collected.traced_runs] == ["GuardedChatModel"]
    runs: list[Any] = collected.traced_runs
    assert "bomb" not in str(runs[0].outputs)
