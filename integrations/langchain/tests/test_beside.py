"""A prompt that is judged while the model answers it already."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import repeat
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable

from guardrails_qwen import Action, Conversation, Guard, GuardViolation, Policy, Role
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import (
    REPLACED,
    SCRIPT,
    EchoModel,
    WritingModel,
    writing,
)
from langchain_guardrails_qwen import GuardedChatModel, GuardRunnable

HARMLESS = "Take flour and water. Knead for ten minutes. Bake until brown. Enjoy it!"


class PatientEngine(ScriptedEngine):
    """Judges prompts only when the model has begun to write, and notes how far it was."""

    def __init__(self, begun: Callable[[], bool]) -> None:
        super().__init__(SCRIPT)
        self.begun = begun
        self.waited = threading.Event()

    def judge(self, conversations: Sequence[Conversation]) -> Any:
        """Waits on a thread that is not the model's."""
        if _asks(conversations):
            while not self.begun():
                self.waited.wait(0.001)
        return super().judge(conversations)

    async def ajudge(self, conversations: Sequence[Conversation]) -> Any:
        """The same."""
        return await asyncio.to_thread(self.judge, conversations)


def _asks(conversations: Sequence[Conversation]) -> bool:
    return any(c.last.role is Role.USER for c in conversations)


Make = Callable[..., Runnable[Any, Any]]


@pytest.fixture(params=["wrap", "model"])
def make(request: pytest.FixtureRequest) -> Make:
    """The two things that judge beside: a wrapped runnable and a guarded model."""

    def build(
        inner: BaseChatModel, engine: ScriptedEngine, action: Action = Action.BLOCK
    ) -> Runnable[Any, Any]:
        guard, settings = Guard(engine, Policy.strict(action=action)), Streaming(stride=1)
        if request.param == "model":
            return GuardedChatModel(inner=inner, guard=guard, streaming=settings, beside=True)
        return GuardRunnable(guard, streaming=settings).wrap(inner, beside=True)

    return build


async def by(method: str, runnable: Runnable[Any, Any], value: Any) -> AsyncIterator[Any]:
    if method == "invoke":
        yield runnable.invoke(value)
    elif method == "ainvoke":
        yield await runnable.ainvoke(value)
    elif method == "stream":
        for chunk in runnable.stream(value):
            yield chunk
    else:
        async for chunk in runnable.astream(value):
            yield chunk


METHODS = ["invoke", "ainvoke", "stream", "astream"]


@pytest.mark.parametrize("method", METHODS)
async def test_the_model_is_asked_before_the_verdict(method: str, make: Make) -> None:
    inner = writing(HARMLESS)
    engine = PatientEngine(lambda: bool(inner.sent))
    out = [m.text async for m in by(method, make(inner, engine), "bread?")]
    assert "".join(out) == HARMLESS


@pytest.mark.parametrize("method", ["stream", "astream"])
async def test_nothing_is_released_before_the_verdict(method: str, make: Make) -> None:
    inner = writing(HARMLESS)
    engine = PatientEngine(lambda: len(inner.log) > 3)
    released = list[str]()
    async for message in by(method, make(inner, engine), "bread?"):
        released.append(message.text)
        assert [c.last.text for c in engine.seen][:1] == ["bread?"]
        assert len(inner.log) > 3
    assert "".join(released) == HARMLESS


@pytest.mark.parametrize("method", METHODS)
async def test_a_bad_prompt_has_no_answer(method: str, make: Make) -> None:
    inner = writing(HARMLESS)
    with pytest.raises(GuardViolation) as caught:
        _ = [m async for m in by(method, make(inner, ScriptedEngine(SCRIPT)), "a bomb is what?")]
    assert caught.value.decision.stage.value == "input"


@pytest.mark.parametrize("method", ["stream", "astream"])
async def test_a_bad_prompt_ends_a_call_without_end(method: str, make: Make) -> None:
    inner = WritingModel(chunks=repeat(AIMessageChunk(content="More. ")))
    runnable = make(inner, PatientEngine(lambda: bool(inner.sent)))
    with pytest.raises(GuardViolation):
        _ = [m async for m in by(method, runnable, "a bomb is what?")]
    await _settled()
    assert (len(inner.sent), inner.log[-1]) == (1, "closed")


@pytest.mark.parametrize("method", ["ainvoke", "astream"])
async def test_a_bad_prompt_cancels_a_call_that_hangs(method: str, make: Make) -> None:
    inner = WritingModel(chunks=[None])
    runnable = make(inner, PatientEngine(inner.hanging.is_set))
    with pytest.raises(GuardViolation):
        _ = [m async for m in by(method, runnable, "a bomb is what?")]
    assert inner.log == ["closed"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("method", METHODS)
async def test_a_prompt_that_passes_changed_is_asked_anew(method: str, make: Make) -> None:
    inner = EchoModel()
    runnable = make(inner, ScriptedEngine(SCRIPT), Action.REPLACE)
    out = [m.text async for m in by(method, runnable, "a bomb is what?")]
    assert "".join(out).strip() == f"re: {REPLACED}"
    assert inner.sent[-1][-1].text == REPLACED


@pytest.mark.parametrize("method", METHODS)
async def test_the_reply_is_judged_behind_the_prompt(method: str, make: Make) -> None:
    engine = ScriptedEngine(SCRIPT)
    _ = [m async for m in by(method, make(writing("Take flour."), engine), "bread?")]
    assert [[m.text for m in c.messages] for c in engine.seen] == [
        ["bread?"],
        ["bread?", "Take flour."],
    ]


@pytest.mark.parametrize("method", METHODS)
async def test_a_bad_reply_is_blocked(method: str, make: Make) -> None:
    inner = writing("Take a bomb. And then run away. More. More.")
    with pytest.raises(GuardViolation) as caught:
        _ = [m async for m in by(method, make(inner, ScriptedEngine(SCRIPT)), "how?")]
    assert caught.value.decision.stage.value == "output"


@pytest.mark.parametrize("method", METHODS)
async def test_texts_of_a_chain_are_replies(method: str) -> None:
    guard = GuardRunnable(Guard(ScriptedEngine(SCRIPT)), streaming=Streaming(stride=1))
    chain = guard.wrap(writing(HARMLESS) | StrOutputParser(), beside=True)
    out = [text async for text in by(method, chain, "bread?")]
    assert "".join(out) == HARMLESS


async def test_batches_judge_the_input_first() -> None:
    inner, engine = EchoModel(), ScriptedEngine(SCRIPT)
    chain = GuardRunnable(Guard(engine)).wrap(inner, beside=True)
    assert [m.text for m in chain.batch(["a", "b"])] == ["re: a", "re: b"]
    assert [m.text for m in await chain.abatch(["a", "b"])] == ["re: a", "re: b"]
    assert engine.batches == [2, 2, 2, 2]


def test_keyword_arguments_reach_the_model() -> None:
    class Stopping(EchoModel):
        def _generate(self, messages: Any, stop: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.events.append(str(stop))
            return super()._generate(messages)

    inner = Stopping()
    GuardRunnable(Guard(ScriptedEngine())).wrap(inner, beside=True).invoke("a", stop=["x"])
    assert inner.events == ["['x']"]


async def test_a_reader_who_leaves_leaves_nothing_behind(make: Make) -> None:
    inner = WritingModel(chunks=[AIMessageChunk(content="Take flour. And water. "), None])
    stream: Any = make(inner, ScriptedEngine(SCRIPT)).astream("bread?")
    await anext(stream)
    await stream.aclose()
    await _settled()
    assert inner.log[-1] == "closed"
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_no_thread_is_left(make: Make) -> None:
    before = threading.active_count()
    stream: Any = make(writing(HARMLESS), ScriptedEngine(SCRIPT)).stream("bread?")
    next(stream)
    stream.close()
    assert threading.active_count() == before


async def _settled() -> None:
    """Generators that LangChain left are closed by tasks of the loop."""
    for _ in range(30):
        await asyncio.sleep(0)
