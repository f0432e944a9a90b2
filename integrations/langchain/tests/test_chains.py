"""A guard is a runnable like any other: named, traced, drawn, retried, configured."""

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langgraph.graph import (  # pyright: ignore[reportMissingTypeStubs]
    START,
    MessagesState,
    StateGraph,
)

from guardrails_qwen import (
    EngineError,
    Guard,
    GuardViolation,
    OnError,
    Policy,
    Severity,
    Stage,
    Verdict,
)
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.langchain.tests.doubles import Door, EchoModel, Guarding, Texts
from langchain_guardrails_qwen import GuardRunnable


class Trace(BaseCallbackHandler):
    """Names and tags of the runs, in order of their beginning."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, list[str]]] = []
        self.errors: list[str] = []

    def on_chain_start(self, *_args: Any, tags: list[str] | None = None, **run: Any) -> None:
        self.runs.append((run["name"], [tag for tag in tags or [] if not tag.startswith("seq:")]))

    def on_chain_error(self, error: Any, **_run: Any):
        self.errors.append(repr(error))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "guard"),
        ({"stage": Stage.INPUT}, "guard-input"),
        ({"stage": Stage.TOOL_CALL}, "guard-tool-call"),
        ({"stage": Stage.INPUT, "name": "doorman"}, "doorman"),
    ],
)
def test_its_name(fields: dict[str, Any], name: str, guarding: Guarding) -> None:
    assert guarding(**fields).get_name() == name


async def test_traces_read_well(door: Door, guarding: Guarding, llm: EchoModel) -> None:
    trace = Trace()
    left = guarding(stage=Stage.INPUT).with_config(tags=["mine"])
    await door(left | llm | guarding(stage=Stage.OUTPUT), "hi", {"callbacks": [trace]})
    names = [run for run in trace.runs if run[0].startswith("guard")]
    assert names == [("guard-input", ["mine"]), ("guard-output", [])]


async def test_a_trace_of_a_violation_does_not_quote_in_its_errors(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    trace = Trace()
    with pytest.raises(GuardViolation):
        await door(guarding() | llm, "bomb", {"callbacks": [trace]})
    assert trace.errors
    assert "bomb" not in str(trace.errors)


def piped(guard: GuardRunnable, llm: EchoModel) -> Runnable[Any, Any]:
    return guard | llm | guard


def alone(guard: GuardRunnable, llm: EchoModel) -> Runnable[Any, Any]:
    return guard


@pytest.mark.parametrize(
    ("chain", "edges"),
    [
        pytest.param(
            piped,
            ["guard_1 --> EchoModel;", "EchoModel --> guard_2;"],
            id="pipe",
        ),
        pytest.param(
            GuardRunnable.wrap,
            [
                *["guard-input --> EchoModel;", "EchoModel --> guard-output;"],
                *["Input --> guard-input;", "guard-output --> Output;"],
            ],
            id="wrap",
        ),
        pytest.param(alone, [], id="alone"),
    ],
)
def test_graphs_read_well(chain: Any, edges: list[str], guarding: Guarding, llm: EchoModel) -> None:
    drawn = chain(guarding(), llm).get_graph().draw_mermaid()
    assert [line.strip() for line in drawn.splitlines() if "-->" in line] == edges
    assert "guard" in drawn


def test_reprs_and_dumps_hold_no_text(guarding: Guarding, llm: EchoModel) -> None:
    guard = guarding()
    chain = guard | llm | guard
    chain.invoke("xyzzy")
    wrapped = guard.wrap(llm)
    assert repr(guard) == (
        "GuardRunnable(guard=Guard(ScriptedEngine(name='scripted'), policy='strict'))"
    )
    llm.sent.clear()
    for runnable in [guard, chain, wrapped]:
        assert "xyzzy" not in repr(runnable)
        assert "xyzzy" not in dumps(runnable)


def test_schemas(guarding: Guarding, llm: EchoModel) -> None:
    chain = guarding() | llm | guarding()
    assert chain.get_input_jsonschema()
    assert chain.get_output_jsonschema()


def verdicts_after(failures: int):
    left = [EngineError("busy")] * failures

    def answer(_: Any):
        return left.pop() if left else Verdict(severity=Severity.SAFE)

    return answer


@pytest.mark.parametrize("method", ["invoke", "ainvoke"])  # it does not retry streams
async def test_with_retry(method: str, guarding: Guarding, engine: ScriptedEngine) -> None:
    engine.script = verdicts_after(2)
    guard = guarding(on_error=OnError.RAISE)
    retried = guard.with_retry(
        retry_if_exception_type=(EngineError,), wait_exponential_jitter=False
    )
    passed = retried.invoke("hi") if method == "invoke" else await retried.ainvoke("hi")
    assert passed == "hi"


async def test_with_fallbacks(door: Door, guarding: Guarding) -> None:
    policy = Policy.strict(on_error=OnError.RAISE)
    failing = GuardRunnable(Guard(FailingEngine(), policy))
    guard = failing.with_fallbacks([guarding()], exceptions_to_handle=(EngineError,))
    assert await door(guard, "hi") == ["hi"]
    with pytest.raises(GuardViolation):
        await door(guard, "bomb")


async def test_an_unavailable_engine_blocks_by_default(door: Door, llm: EchoModel) -> None:
    with pytest.raises(GuardViolation) as caught:
        await door(GuardRunnable(Guard(FailingEngine())) | llm, "hi")
    assert caught.value.decision.degraded
    assert llm.sent == []


async def test_an_unavailable_engine_may_be_let_pass(door: Door) -> None:
    policy = Policy.strict(on_error=OnError.ALLOW)
    assert await door(GuardRunnable(Guard(FailingEngine(), policy)), "hi") == ["hi"]


async def test_a_guard_chosen_by_configuration(door: Door, guarding: Guarding) -> None:
    open_ = Guard(ScriptedEngine())
    guard = guarding().configurable_fields(guard=ConfigurableField(id="guard"))
    with pytest.raises(GuardViolation):
        await door(guard, "bomb")
    assert await door(guard, "bomb", {"configurable": {"guard": open_}}) == ["bomb"]


async def test_a_violation_can_be_answered_by_a_fallback(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    def apologise(_: object) -> AIMessage:
        return AIMessage("Sorry.")

    chain = (guarding() | llm | guarding()).with_fallbacks(
        [RunnableLambda(apologise)], exceptions_to_handle=(GuardViolation,)
    )
    assert await door(chain, "bomb") == [AIMessage("Sorry.")]


async def test_around_and_inside_of_a_state_graph(
    guarding: Guarding, llm: EchoModel, texts: Texts
) -> None:
    async def answer(state: MessagesState):
        return {"messages": [await guarding().wrap(llm).ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)  # pyright: ignore[reportUnknownMemberType]
    graph.add_edge(START, "answer")
    agent = graph.compile()  # pyright: ignore[reportUnknownMemberType]
    chain = guarding() | agent | guarding()
    state = await chain.ainvoke({"messages": [("human", "hi")]})
    assert [message.text for message in state["messages"]] == ["hi", "re: hi"]
    assert texts() == [["user: hi"], ["user: hi"], *[["user: hi", "assistant: re: hi"]] * 2]
    with pytest.raises(GuardViolation):
        await chain.ainvoke({"messages": [("human", "bomb")]})
