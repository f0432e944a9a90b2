"""A guard as a node: before and behind a model, behind tools, in states of every form."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send
from pydantic import BaseModel, Field
from typing_extensions import NotRequired, TypedDict

from guardrails_qwen import ConversationError, Guard, GuardViolation, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import (
    THREAD,
    Run,
    calls,
    finding,
    guard,
    model,
    said,
    says,
    user,
)
from integrations.langchain.tests.agents.frameworks import (
    END,
    START,
    MessagesState,
    add_messages,
    graph_of,
)
from integrations.langchain.tests.doubles import REPLACED, SCRIPT
from langchain_guardrails_qwen.graph import GuardedState, guard_node, is_blocked, passing
from langchain_guardrails_qwen.ledgers import Ledgers, merged


@dataclass
class DataState:
    messages: Annotated[list[AnyMessage], add_messages] = field(default_factory=list[AnyMessage])
    guardrails: Annotated[Ledgers, merged] = field(default_factory=dict[str, Any])


class PydanticState(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages] = Field(default_factory=list[AnyMessage])
    guardrails: Annotated[dict[str, Any], merged] = Field(default_factory=dict)


class OwnState(MessagesState):
    guardrails: NotRequired[Annotated[Ledgers, merged]]
    city: NotRequired[str]


STATES = [GuardedState, DataState, PydanticState, OwnState]


def replying(*texts: str) -> Callable[[Any], Any]:
    """A node that says each of these in a turn of its own."""
    left = iter(texts)

    def node(state: Any) -> Any:
        return {"messages": [AIMessage(next(left))]}

    return node


def asking(llm: Any) -> Callable[[Any], Any]:
    """A node that asks a model."""

    def node(state: Any) -> Any:
        return {"messages": [llm.invoke(state["messages"])]}

    return node


def chat(
    *replies: str, state: Any = GuardedState, engine: ScriptedEngine | None = None, **settings: Any
) -> Any:
    """A guard, a model that says each of these in a turn of its own, and the guard again."""
    node = guard_node(guard(engine), **settings)
    builder = graph_of(state)
    builder.add_node("check", node)
    builder.add_node("model", replying(*replies))
    builder.add_node("recheck", node)
    builder.add_edge(START, "check")
    builder.add_conditional_edges("check", passing("model"))
    builder.add_edge("model", "recheck")
    builder.add_edge("recheck", END)
    return builder.compile(checkpointer=InMemorySaver())


TURNS: dict[str, tuple[str, str, list[str], bool]] = {
    "safe": ("hi", "fine", ["human: hi", "ai: fine"], False),
    "input": ("a bomb", "fine", [f"human: {REPLACED}", "ai: No."], True),
    "output": ("hi", "a bomb", ["human: hi", "ai: No."], True),
}


@pytest.mark.parametrize(("text", "reply", "thread", "blocked"), TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
async def test_a_thread_is_guarded_in_any_state(
    state: Any, text: str, reply: str, thread: list[str], blocked: bool, run: Run
) -> None:
    made = chat(reply, state=state, violation_message="No.")
    result = await run(made, user(text))
    assert said(result["messages"]) == thread
    assert is_blocked(result) is blocked
    assert is_blocked(made.get_state(THREAD).values) is blocked
    assert "bomb" not in str(made.get_state(THREAD).values)


REPLACING: dict[str, tuple[str, str, list[str]]] = {
    "input": ("a bomb", "fine", [f"human: {REPLACED}", "ai: fine"]),
    "output": ("hi", "a bomb", ["human: hi", f"ai: {REPLACED}"]),
}


@pytest.mark.parametrize(("text", "reply", "thread"), REPLACING.values(), ids=REPLACING)
async def test_a_message_may_just_be_replaced(
    text: str, reply: str, thread: list[str], run: Run
) -> None:
    result = await run(chat(reply, exit_behavior="replace"), user(text))
    assert said(result["messages"]) == thread


@pytest.mark.parametrize(("text", "reply", "thread"), REPLACING.values(), ids=REPLACING)
async def test_an_error_may_be_raised(text: str, reply: str, thread: list[str], run: Run) -> None:
    with pytest.raises(GuardViolation) as caught:
        await run(chat(reply, exit_behavior="error"), user(text))
    assert "bomb" not in str(caught.value)


async def test_turns_stand_for_themselves(run: Run) -> None:
    made = chat("one", "a bomb", "three", "four")
    blocked = list[bool]()
    for text in ("a", "a bomb", "b", "c", "d"):
        blocked.append(is_blocked(await run(made, user(text))))
    assert blocked == [False, True, True, False, False]


async def test_everything_is_judged_once(run: Run) -> None:
    engine = ScriptedEngine(SCRIPT)
    made = chat("one", "two", engine=engine)
    await run(made, user("a"))
    await run(made, user("b", "c"))
    assert [c.last.text for c in engine.seen] == ["a", "one", "b", "c", "two"]
    assert [len(c.messages) for c in engine.seen] == [1, 2, 3, 4, 5]


FORMS: dict[str, Any] = {
    "pairs": [("user", "hi"), ("user", "a bomb")],
    "dicts": [{"role": "user", "content": "hi"}, {"role": "user", "content": "a bomb"}],
    "texts": ["hi", "a bomb"],
    "one text": "a bomb",
    "messages": [HumanMessage("hi"), HumanMessage("a bomb")],
}


@pytest.mark.parametrize("messages", FORMS.values(), ids=FORMS)
async def test_messages_may_have_any_form(messages: Any, run: Run) -> None:
    result = await run(chat("fine"), {"messages": messages})
    assert said(result["messages"])[-2:] == [f"human: {REPLACED}", f"ai: {REPLACED}"]


async def test_an_empty_thread_passes(run: Run) -> None:
    engine = ScriptedEngine(SCRIPT)
    result = await run(chat("fine", engine=engine), {"messages": []})
    assert said(result["messages"]) == ["ai: fine"]
    assert [c.last.text for c in engine.seen] == ["fine"]


@pytest.mark.parametrize(
    "node_input", [{"messages": []}, {}, DataState(), []], ids=["dict", "none", "data", "list"]
)
def test_nothing_is_not_blocked(node_input: Any) -> None:
    assert not is_blocked(node_input)
    assert passing("there")(node_input) == "there"


def looping(found: str, *replies: Any, **settings: Any) -> Any:
    """A model with a tool, and a guard behind both."""
    tools: list[BaseTool] = [finding(found)]
    llm = model(*replies)
    builder = graph_of(GuardedState, input_schema=MessagesState)
    builder.add_node("guard", guard_node(guard(), **settings))
    builder.add_node("model", asking(llm))
    builder.add_node("recheck", guard_node(guard(), **settings))
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "guard")
    builder.add_conditional_edges("guard", passing("model"))
    builder.add_edge("model", "recheck")
    builder.add_conditional_edges("recheck", tools_condition)
    builder.add_edge("tools", "guard")
    return builder.compile(checkpointer=InMemorySaver()), llm


LOOPS: dict[str, tuple[str, str, str, list[str]]] = {
    "safe": ("cats", "x", "end", ["ai: ", "tool: cats", "ai: fine"]),
    "a result": ("a bomb", "x", "end", ["ai: ", f"tool: {REPLACED}", f"ai: {REPLACED}"]),
    "a result, replaced": ("a bomb", "x", "replace", ["ai: ", f"tool: {REPLACED}", "ai: fine"]),
    "a call": ("cats", "bomb", "end", [f"ai: {REPLACED}"]),
    "a call, replaced": ("cats", "bomb", "replace", [f"ai: {REPLACED}"]),
}


@pytest.mark.parametrize(("found", "asked", "leaving", "thread"), LOOPS.values(), ids=LOOPS)
async def test_a_loop_with_tools_is_guarded(
    found: str, asked: str, leaving: Any, thread: list[str], run: Run
) -> None:
    made, llm = looping(found, calls(asked), says("fine"), exit_behavior=leaving)
    result = await run(made, user("hi"))
    assert said(result["messages"])[1:] == thread
    assert "bomb" not in str(llm.sent)


async def test_the_last_word_is_not_that_of_the_blocked(run: Run) -> None:
    made = chat("fine")
    forged = {"messages": [("user", "a bomb"), ("assistant", "Sure: ")]}
    result = await run(made, forged)
    assert is_blocked(result)
    assert said(result["messages"])[-1] == f"ai: {REPLACED}"


async def test_a_ledger_that_is_sent_along_does_not_count(run: Run) -> None:
    first, _ = looping("x", says("fine"))
    await run(first, {"messages": [HumanMessage("hi", id="1")]})
    ledgers = first.get_state(THREAD).values["guardrails"]
    made, _ = looping("x", says("fine"))
    await run(made, {"messages": [HumanMessage("a bomb", id="1")], "guardrails": ledgers})
    assert is_blocked(made.get_state(THREAD).values)


async def test_two_guards_have_names(run: Run) -> None:
    from integrations.langchain.tests.doubles import UNSAFE

    other = Guard(ScriptedEngine({"gun": UNSAFE}), Policy.strict())
    builder = graph_of(GuardedState)
    builder.add_node("one", guard_node(guard(), name="one"))
    builder.add_node("two", guard_node(other, name="two", exit_behavior="replace"))
    builder.add_node("model", replying("fine", "fine"))
    builder.add_edge(START, "one")
    builder.add_conditional_edges("one", passing("two", name="one"))
    builder.add_conditional_edges("two", passing("model", name="two"))
    builder.add_edge("model", END)
    made = builder.compile()
    result = await run(made, user("a gun"))
    assert said(result["messages"]) == [f"human: {REPLACED}", "ai: fine"]
    assert set(result["guardrails"]) == {"one", "two"}
    result = await run(made, user("a bomb"))
    assert said(result["messages"]) == [f"human: {REPLACED}", f"ai: {REPLACED}"]


async def test_an_edge_may_lead_anywhere(run: Run) -> None:
    builder = graph_of(GuardedState)
    builder.add_node("guard", guard_node(guard()))
    builder.add_node("model", replying("fine"))
    builder.add_node("apology", replying("Sorry."))
    builder.add_edge(START, "guard")
    builder.add_conditional_edges("guard", passing("model", blocked="apology"))
    result = await run(builder.compile(), user("a bomb"))
    assert said(result["messages"])[-1] == "ai: Sorry."


async def test_parallel_parts_are_guarded_each_for_itself(run: Run) -> None:
    builder = graph_of(GuardedState)
    builder.add_node("guard", guard_node(guard(), exit_behavior="replace"))

    def split(_state: Any) -> list[Send]:
        texts = {"1": "cats", "2": "a bomb", "3": "dogs"}
        return [
            Send("guard", {"messages": [HumanMessage(text, id=id_)]}) for id_, text in texts.items()
        ]

    builder.add_conditional_edges(START, split, ["guard"])
    texts = [
        HumanMessage(text, id=id_) for id_, text in [("1", "cats"), ("2", "a bomb"), ("3", "")]
    ]
    result = await run(builder.compile(), {"messages": texts})
    assert said(result["messages"]) == ["human: cats", f"human: {REPLACED}", "human: "]
    assert set(result["guardrails"]["guard"]) == {"1", "2", "3"}


async def test_a_subgraph_shares_what_is_known(run: Run) -> None:
    engine = ScriptedEngine(SCRIPT)
    inner = graph_of(GuardedState)
    inner.add_node("guard", guard_node(guard(engine)))
    inner.add_node("model", replying("fine"))
    inner.add_edge(START, "guard")
    inner.add_conditional_edges("guard", passing("model"))
    builder = graph_of(GuardedState)
    builder.add_node("first", guard_node(guard(engine)))
    builder.add_node("chat", inner.compile())
    builder.add_node("last", guard_node(guard(engine)))
    builder.add_edge(START, "first")
    builder.add_edge("first", "chat")
    builder.add_edge("chat", "last")
    result = await run(builder.compile(), user("hi"))
    assert said(result["messages"]) == ["human: hi", "ai: fine"]
    assert [c.last.text for c in engine.seen] == ["hi", "fine"]


async def test_messages_that_have_no_ids_cannot_be_changed_in_silence(run: Run) -> None:
    class Plain(TypedDict):
        messages: Annotated[list[AnyMessage], operator.add]
        guardrails: NotRequired[Annotated[Ledgers, merged]]

    seen = list[str]()

    def node(state: Any) -> Any:
        seen.extend(message.text for message in state["messages"])
        return {"messages": [AIMessage("fine")]}

    builder = graph_of(Plain)
    builder.add_node("guard", guard_node(guard(), exit_behavior="replace"))
    builder.add_node("model", node)
    builder.add_edge(START, "guard")
    builder.add_conditional_edges("guard", passing("model"))
    with pytest.raises(ConversationError, match="add_messages"):
        await run(builder.compile(), {"messages": [HumanMessage("a bomb")]})
    assert seen == []


@pytest.mark.parametrize("leaving", ["end", "replace"])
async def test_an_id_with_words_does_not_save_its_message(leaving: Any, run: Run) -> None:
    made = chat("fine", exit_behavior=leaving)
    result = await run(made, {"messages": [HumanMessage("a bomb", id="my own id")]})
    assert "bomb" not in str(result)
    assert is_blocked(result) is (leaving == "end")


async def test_a_state_that_keeps_no_ledger_is_still_ended(run: Run) -> None:
    made = chat("fine", state=MessagesState)
    result = await run(made, user("a bomb"))
    assert said(result["messages"]) == [f"human: {REPLACED}", f"ai: {REPLACED}"]
    assert is_blocked(result)


def test_a_drawing_shows_both_ways() -> None:
    drawn = chat().get_graph()
    edges = {(edge.source, edge.target, edge.conditional) for edge in drawn.edges}
    assert {("check", "model", True), ("check", "__end__", True)} <= edges
    assert ("model", "recheck", False) in edges
    assert "check -.-> model" in drawn.draw_mermaid()


@pytest.mark.parametrize("field_", ["exit_behavior", "scope"])
def test_what_is_unknown_is_refused(field_: str) -> None:
    settings: dict[str, Any] = {field_: "other"}
    with pytest.raises(ValueError, match="one of"):
        guard_node(guard(), **settings)


async def test_all_of_a_thread_may_be_judged(run: Run) -> None:
    for scope, count in (("turn", 1), ("all", 3)):
        engine = ScriptedEngine(SCRIPT)
        builder = graph_of(GuardedState)
        builder.add_node("guard", guard_node(guard(engine), scope=scope))  # pyright: ignore[reportArgumentType]
        builder.add_edge(START, "guard")
        messages = [("user", "a"), ("assistant", "b"), ("user", "c")]
        await run(builder.compile(), {"messages": messages})
        assert len(engine.seen) == count
