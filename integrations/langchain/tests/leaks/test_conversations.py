"""Threads that people and other middleware change: all is judged, and nothing twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.graph.message import REMOVE_ALL_MESSAGES  # pyright: ignore[reportMissingTypeStubs]
from langgraph.types import Command
from typing_extensions import override

from integrations.langchain.tests.leaks.doors import astream
from integrations.langchain.tests.leaks.models import Reply, StreamingModel
from integrations.langchain.tests.leaks.talk import CALLING, REMOVED, Talk, model
from integrations.langchain.tests.leaks.threats import HARMLESS, SCENARIOS, Threat

UNSAFE_REPLY = SCENARIOS[0].replies[0]
UNSAFE = f"Where is a {Threat.INPUT.word}?"
WELL = "All is well now."
TEA = 'shout({"text": "some tea"})'
MADE = "Take a kablout."


def _talk(place: str, middleware: Any, **fields: Any) -> Talk:
    """A talk with middleware before or behind the guard."""
    before, behind = ([middleware], []) if place == "before" else ([], [middleware])
    return Talk(before=before, behind=behind, **fields)


async def test_what_was_judged_is_not_judged_again() -> None:
    talk = Talk(model=model(*CALLING))
    await talk.say(HumanMessage("A word?"))
    assert talk.judged == ["A word?", TEA, "SOME TEA", WELL]
    await talk.say(HumanMessage("And again?"))
    assert talk.judged == ["And again?", WELL]


def _decide(**decision: Any) -> Command[Any]:
    return Command(resume={"decisions": [decision]})


def _edit(text: str) -> Command[Any]:
    action = {"name": "shout", "args": {"text": text}}
    return _decide(type="edit", edited_action=action)


def _reviewed() -> Talk:
    reviewer = HumanInTheLoopMiddleware(interrupt_on={"shout": True})
    return Talk(model=model(*CALLING), before=[reviewer])


async def test_an_approved_call_runs_and_is_not_judged_again() -> None:
    talk = _reviewed()
    await talk.say(HumanMessage("A word?"))
    assert talk.judged == ["A word?", TEA]
    await talk.go(_decide(type="approve"))
    assert (talk.ran, talk.judged) == (["some tea"], ["SOME TEA", WELL])


async def test_an_edited_call_is_judged_before_it_runs() -> None:
    talk = _reviewed()
    await talk.say(HumanMessage("A word?"))
    await talk.go(_edit("some mint"))
    assert talk.ran == ["some mint"]
    assert talk.judged[0] == 'shout({"text": "some mint"})'


@pytest.mark.parametrize(
    "decision",
    [
        pytest.param(_edit("a kablarg"), id="edit"),
        pytest.param(_decide(type="reject", message="Rather a kablarg."), id="reject"),
        pytest.param(_decide(type="respond", message="It says kablarg."), id="respond"),
    ],
)
@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_what_a_reviewer_writes_is_judged(decision: Command[Any], leaving: str) -> None:
    allowed: Any = ["approve", "edit", "reject", "respond"]
    reviewer = HumanInTheLoopMiddleware(interrupt_on={"shout": {"allowed_decisions": allowed}})
    settings = [{"exit_behavior": leaving}]
    talk = Talk(model=model(*CALLING), before=[reviewer], guards=settings)
    await talk.say(HumanMessage("A word?"))
    await talk.go(decision)
    assert leaving == "error" or "kabl" not in str(talk.texts)
    await talk.say(HumanMessage("And again?"))
    assert talk.ran == []
    assert "kabl" not in str(talk.sent)


async def test_a_run_can_be_replayed_from_any_checkpoint() -> None:
    talk = Talk()
    await talk.say(HumanMessage("A word?"))
    before = [s for s in talk.agent.get_state_history(talk.watch.plain) if s.next == ("model",)]
    talk.engine.seen.clear()
    out = await talk.agent.ainvoke(None, before[0].config)
    assert [message.text for message in out["messages"]] == ["A word?", WELL]
    assert talk.judged == [WELL]


async def test_a_fork_of_an_older_checkpoint_is_guarded() -> None:
    talk = Talk()
    await talk.say(HumanMessage("A word?"))
    old = talk.agent.get_state(talk.watch.plain)
    await talk.say(HumanMessage("And again?"))
    talk.engine.seen.clear()
    out = await talk.agent.ainvoke({"messages": [HumanMessage(UNSAFE)]}, old.config)
    assert [message.text for message in out["messages"]] == ["A word?", WELL, REMOVED, REMOVED]
    assert talk.judged == [UNSAFE]


async def test_history_that_was_edited_is_judged() -> None:
    talk = Talk()
    await talk.say(HumanMessage("A word?"))
    edited = AIMessage(MADE, id=talk.messages[-1].id)
    talk.agent.update_state(talk.watch.plain, {"messages": [edited]})
    await talk.say(HumanMessage("And again?"))
    assert talk.texts == ["A word?", REMOVED, "And again?", REMOVED]
    assert MADE not in talk.sent


@pytest.mark.parametrize("which", [0, 1, 2, 3])
async def test_a_message_can_be_removed(which: int) -> None:
    talk = Talk(model=model(*CALLING))
    await talk.say(HumanMessage("A word?"))
    gone = RemoveMessage(id=talk.messages[which].id or "")
    await talk.say(gone, HumanMessage("And again?"))
    assert talk.judged == ["And again?", WELL]


async def test_a_thread_that_was_emptied_is_guarded() -> None:
    talk = Talk()
    await talk.say(HumanMessage("A word?"))
    await talk.say(RemoveMessage(id=REMOVE_ALL_MESSAGES), HumanMessage(UNSAFE))
    assert talk.texts == [REMOVED, REMOVED]
    await talk.say(RemoveMessage(id=REMOVE_ALL_MESSAGES), HumanMessage("And again?"))
    assert (talk.texts, talk.judged) == (["And again?", WELL], ["And again?", WELL])


class Trimming(AgentMiddleware[Any, Any]):
    """Keeps the last two messages of a thread."""

    @override
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any]:
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *state["messages"][-2:]]}


class Shortening(AgentMiddleware[Any, Any]):
    """Sends the last two messages only; what is dropped stays in the thread."""

    @override
    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[..., Awaitable[Any]]
    ) -> Any:
        return await handler(request.override(messages=request.messages[-2:]))


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("middleware", [Trimming, Shortening], ids=lambda kind: kind.__name__)
async def test_a_history_can_be_trimmed(middleware: Any, place: str) -> None:
    talk = _talk(place, middleware())
    for question in ("A word?", "And again?", "Once again?"):
        await talk.say(HumanMessage(question))
        assert talk.judged == [question, WELL]
    await talk.say(HumanMessage(UNSAFE))
    assert talk.judged == [UNSAFE]
    await talk.say(HumanMessage("Well again?"))
    assert talk.judged == ["Well again?", WELL]
    assert "kabl" not in str(talk.sent)


@pytest.mark.parametrize("place", ["before", "behind"])
async def test_a_summary_is_judged(place: str) -> None:
    writer = FakeListChatModel(responses=["They talk of a kablsum."])
    summary = SummarizationMiddleware(writer, trigger=("messages", 4), keep=("messages", 2))
    talk = _talk(place, summary)
    for question in ("A word?", "And again?", "Once again?"):
        await talk.say(HumanMessage(question))
    assert any("kablsum" in text for text in talk.judged)
    assert "kablsum" not in str([*talk.sent, *talk.texts])


class Broken(StreamingModel):
    """A model that is out of order."""

    @override
    def _reply(self, messages: list[BaseMessage]) -> Reply:
        raise ConnectionError("down")


def _fallback() -> tuple[StreamingModel, ModelFallbackMiddleware]:
    return Broken(script=lambda _: HARMLESS), ModelFallbackMiddleware(model(UNSAFE_REPLY))


@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_another_model_is_guarded_as_well(leaving: str) -> None:
    broken, fallback = _fallback()
    talk = Talk(model=broken, before=[fallback], guards=[{"exit_behavior": leaving}])
    await talk.say(HumanMessage("A word?"), door=astream)
    assert talk.places(Threat.OUTPUT.word) == set()


@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_a_model_put_in_behind_the_guard_is_judged_when_it_is_complete(leaving: str) -> None:
    broken, fallback = _fallback()
    talk = Talk(model=broken, behind=[fallback], guards=[{"exit_behavior": leaving}])
    await talk.say(HumanMessage("A word?"), door=astream)
    heard = {"callbacks: model", "stream: messages", "tracer"}
    assert talk.places(Threat.OUTPUT.word) == heard


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("leaving", ["end", "replace", "error"])
async def test_who_asks_a_model_again_hears_nothing_unsafe(place: str, leaving: str) -> None:
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
    talk = _talk(place, retry, model=model(UNSAFE_REPLY), guards=[{"exit_behavior": leaving}])
    await talk.say(HumanMessage("A word?"), door=astream)
    assert talk.places(Threat.OUTPUT.word) == set()


async def test_an_agent_may_have_several_guards() -> None:
    only_input = {"name": "input", "check_output": False, "check_tool_results": False}
    others = {"name": "output", "check_input": False}
    talk = Talk(model=model(CALLING[0], UNSAFE_REPLY), guards=[only_input, others])
    await talk.say(HumanMessage("A word?"), door=astream)
    assert talk.places(Threat.OUTPUT.word) == set()
    assert talk.ran == ["some tea"]
    await talk.say(HumanMessage(UNSAFE))
    assert talk.texts[-2:] == [REMOVED, REMOVED]
    assert set(talk.agent.get_state(talk.watch.plain).values["guardrails"]) == {"input", "output"}


_ASKED = AIMessage("", tool_calls=[{"name": "shout", "args": {"text": "tea"}, "id": "x"}])
_ASKED_UNSAFE = AIMessage("", tool_calls=[{"name": "shout", "args": {"text": UNSAFE}, "id": "x"}])


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param([SystemMessage(UNSAFE), HumanMessage("Well?")], id="system"),
        pytest.param([HumanMessage("Well?"), AIMessage(UNSAFE)], id="begun reply"),
        pytest.param([HumanMessage("Well?"), _ASKED_UNSAFE], id="call of the user's own"),
        pytest.param(
            [HumanMessage("Well?"), _ASKED, ToolMessage(UNSAFE, tool_call_id="x")],
            id="tool result of the user's own",
        ),
        pytest.param([FunctionMessage(name="f", content=UNSAFE)], id="function"),
        pytest.param([{"role": "user", "content": UNSAFE}], id="dict"),
        pytest.param([("user", UNSAFE)], id="pair"),
        pytest.param([HumanMessage("Well?", name="kablin")], id="name"),
        pytest.param([HumanMessage("Well?", additional_kwargs={"note": UNSAFE})], id="note"),
        pytest.param([ChatMessage(role="critic", content=UNSAFE)], id="unknown role"),
        pytest.param(
            [HumanMessage([{"type": "image_url", "image_url": {"url": "kablin.png"}}])], id="image"
        ),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["first turn", "later turn"])
async def test_an_unsafe_turn_in_any_form_reaches_neither_model_nor_tool(
    turn: list[Any], known: bool
) -> None:
    talk = Talk()
    if known:
        await talk.say(HumanMessage("Once again?"))
    asked = len(talk.model.sent)
    await talk.say(*turn)
    assert (len(talk.model.sent), talk.ran) == (asked, [])


@pytest.mark.parametrize("turn", [[HumanMessage("")], [HumanMessage("  ")]], ids=["", "blank"])
async def test_an_empty_turn_is_a_turn(turn: list[AnyMessage]) -> None:
    talk = Talk()
    await talk.say(*turn)
    assert talk.texts[-1] == WELL


async def test_no_turn_at_all_goes_on_where_the_thread_stands() -> None:
    talk = Talk()
    await talk.say(HumanMessage(UNSAFE))
    await talk.say()
    assert "kabl" not in str(talk.sent)


@pytest.mark.parametrize(("scope", "sent"), [("turn", True), ("all", False)])
async def test_a_history_that_the_caller_wrote_is_judged_if_asked_for(
    scope: str, sent: bool
) -> None:
    talk = Talk(guards=[{"scope": scope}])
    await talk.say(HumanMessage("Well?"), AIMessage(MADE), HumanMessage("Go on."))
    assert (MADE in talk.sent) is sent
