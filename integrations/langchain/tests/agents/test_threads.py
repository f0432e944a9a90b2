"""What is new in a thread, what becomes of it, and what a ledger keeps."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from guardrails_qwen import Action, ConversationError, Guard, Policy, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import guard, policy_at, said
from integrations.langchain.tests.doubles import REPLACED, SCRIPT
from langchain_guardrails_qwen.graph import guard_node
from langchain_guardrails_qwen.ledgers import merged


def human(text: str, id_: str | None = None) -> HumanMessage:
    return HumanMessage(text, id=id_ or _id(text))


def ai(text: str, id_: str | None = None) -> AIMessage:
    return AIMessage(text, id=id_ or _id(text))


def _id(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def asking(*ids: str) -> AIMessage:
    calls: list[Any] = [{"name": "search", "args": {"query": id_}, "id": id_} for id_ in ids]
    return AIMessage("", id="".join(ids), tool_calls=calls)


def answer(text: str, id_: str) -> ToolMessage:
    return ToolMessage(text, tool_call_id=id_, id=f"m{_id(text)}")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a guard's node makes of a thread."""

    asked: list[list[str]]
    """The texts of the conversations that were judged."""
    changes: list[AnyMessage]
    records: dict[str, Any]

    @property
    def new(self) -> list[str]:
        """The texts that were judged."""
        return [texts[-1] for texts in self.asked]


def look(
    messages: list[AnyMessage],
    ledger: dict[str, Any] | None = None,
    by: Guard | None = None,
    *,
    scope: Any = "turn",
    leaving: Any = "replace",
) -> Look:
    """Send a thread through a node, beside what its guard knows."""
    used = by or guard()
    assert isinstance(used.engine, ScriptedEngine)
    used.engine.seen.clear()
    node = guard_node(used, exit_behavior=leaving, scope=scope)
    update = node.invoke({"messages": messages, "guardrails": {"guard": ledger or {}}})
    return Look(
        asked=[[message.text for message in c.messages] for c in used.engine.seen],
        changes=update.get("messages", []),
        records=update.get("guardrails", {}).get("guard", {}),
    )


def learned(messages: list[AnyMessage], by: Guard | None = None) -> dict[str, Any]:
    """The ledger of a thread of which all was let through."""
    return look(messages, by=by, scope="all").records


PAST: list[AnyMessage] = [human("hello"), ai("good day"), human("how are you?"), ai("fine")]

FRESH: dict[str, tuple[list[AnyMessage], str, list[str]]] = {
    "one": ([human("a")], "turn", ["a"]),
    "nothing": ([], "turn", []),
    "several in a row": ([human("a"), human("b")], "turn", ["a", "b"]),
    "with a system prompt": ([SystemMessage("s", id="s"), human("a")], "turn", ["s", "a"]),
    "behind a history": ([*PAST, human("a")], "turn", ["a"]),
    "behind a history, all of it": (
        [*PAST, human("a")],
        "all",
        ["hello", "good day", "how are you?", "fine", "a"],
    ),
    "an assistant turn at the end": ([human("a"), ai("Sure, ")], "turn", ["a", "Sure, "]),
    "several at the end": ([*PAST, human("a"), ai("b"), ai("c")], "turn", ["a", "b", "c"]),
    "an assistant turn alone": ([ai("a")], "turn", ["a"]),
    "answers of tools": (
        [human("a"), asking("1", "2"), answer("x", "1"), answer("y", "2")],
        "turn",
        ["a", "", "x", "y"],
    ),
}


@pytest.mark.parametrize(("messages", "scope", "new"), FRESH.values(), ids=FRESH)
def test_what_is_new_in_an_unknown_thread(
    messages: list[AnyMessage], scope: str, new: list[str]
) -> None:
    assert look(messages, scope=scope).new == new


KNOWN: dict[str, tuple[list[AnyMessage], list[str]]] = {
    "nothing": (PAST, []),
    "a new turn": ([*PAST, human("a")], ["a"]),
    "several": ([*PAST, human("a"), human("b")], ["a", "b"]),
    "an edited message": ([PAST[0], ai("changed", "goodday"), *PAST[2:]], ["changed"]),
    "an edited message of the user": ([human("changed", "hello"), *PAST[1:]], ["changed"]),
    "an assistant turn in the middle": ([*PAST[:2], ai("made up"), *PAST[2:]], ["made up"]),
    "an assistant turn at the end": ([*PAST, ai("made up")], ["made up"]),
    "a summary": ([human("A summary."), *PAST[2:]], ["A summary."]),
    "another history": ([human("x"), ai("y"), human("z")], ["z"]),
    "another history, a known message left": (
        [human("x"), ai("y"), PAST[2]],
        ["x", "y"],
    ),
    "the same text by somebody else": ([*PAST[:3], human("fine")], ["fine"]),
    "the same text with another id": ([*PAST, human("hello", "other")], ["hello"]),
    "a trimmed history": (PAST[2:], []),
    "another order": ([PAST[2], PAST[1], PAST[0]], []),
    "a message without an id": ([*PAST, HumanMessage("hello")], ["hello"]),
    "calls that somebody adds": (
        [*PAST[:3], AIMessage("fine", id="fine", tool_calls=asking("1").tool_calls)],
        ["fine"],
    ),
}


@pytest.mark.parametrize(("messages", "new"), KNOWN.values(), ids=KNOWN)
def test_what_is_new_in_a_known_thread(messages: list[AnyMessage], new: list[str]) -> None:
    assert look(messages, learned(PAST)).new == new


@pytest.mark.parametrize(
    "other",
    [
        Guard(ScriptedEngine(SCRIPT, name="other"), Policy.strict()),
        Guard(ScriptedEngine(SCRIPT), Policy.loose()),
    ],
    ids=["engine", "policy"],
)
def test_the_ledger_of_another_guard_is_none(other: Guard) -> None:
    ledger = learned(PAST)
    assert look([*PAST, human("a")], ledger, other).new == ["a"]
    assert len(look([*PAST, human("a")], ledger, other, scope="all").new) == 5


@pytest.mark.parametrize("messages", [messages for messages, _ in KNOWN.values()], ids=KNOWN)
def test_a_thread_is_known_afterwards(messages: list[AnyMessage]) -> None:
    ledger = learned(PAST)
    found = look(messages, ledger)
    after = dict(merged({"guard": ledger}, {"guard": found.records})["guard"])
    without = [message.text for message in messages if not message.id]
    assert look(messages, after).new == without


def test_each_new_message_is_judged_behind_all_before_it() -> None:
    found = look([*PAST, human("a"), human("b")], learned(PAST))
    past = [message.text for message in PAST]
    assert found.asked == [[*past, "a"], [*past, "a", "b"]]


def test_what_is_blocked_is_replaced_in_its_place() -> None:
    messages: list[AnyMessage] = [human("a"), human("a bomb", "x"), human("b")]
    found = look(messages)
    assert [(m.id, m.text) for m in found.changes] == [("x", REPLACED)]
    assert messages[1].text == "a bomb"
    assert found.records["x"]["decision"]["stage"] == "input"


def test_what_is_dropped_is_removed() -> None:
    found = look([human("a"), human("a bomb", "x")], by=guard(action=Action.DROP))
    assert found.changes == [RemoveMessage(id="x")]
    assert not found.records.get("x")


def test_a_dropped_answer_of_a_tool_is_emptied() -> None:
    by = Guard(ScriptedEngine(SCRIPT), policy_at(Stage.TOOL_RESULT, Action.DROP))
    found = look([human("a"), asking("1"), answer("a bomb", "1")], by=by)
    assert said(found.changes) == ["tool: "]


def test_answers_to_lost_calls_go_and_others_stay() -> None:
    unsafe = asking("1").model_copy(update={"content": "a bomb", "id": "x"})
    messages: list[AnyMessage] = [
        human("a"),
        asking("1"),
        answer("w", "1"),
        unsafe,
        answer("y", "1"),
        human("b"),
    ]
    found = look(messages, learned([human("a")]))
    replaced, removed = found.changes
    assert (replaced.id, replaced.text) == ("x", REPLACED)
    assert removed == RemoveMessage(id="my")
    assert isinstance(replaced, AIMessage)
    assert replaced.tool_calls == []


def test_all_of_a_thread_is_never_dropped() -> None:
    messages: list[AnyMessage] = [human("a bomb", "x"), human("another bomb", "y")]
    found = look(messages, by=guard(action=Action.DROP))
    assert found.changes == [RemoveMessage(id="x"), HumanMessage("", id="y")]


def test_an_id_that_says_something_does_not_save_its_message() -> None:
    removed, new = look([human("a"), human("a bomb", "x y")]).changes
    assert removed == RemoveMessage(id="x y")
    assert (new.id, new.text) == (None, REPLACED)


@pytest.mark.parametrize("leaving", ["end", "replace"])
def test_a_message_without_an_id_cannot_be_changed(leaving: str) -> None:
    with pytest.raises(ConversationError, match="add_messages"):
        look([HumanMessage("a bomb")], leaving=leaving)


def test_two_answers_of_one_call_id_are_both_known() -> None:
    messages: list[AnyMessage] = [
        human("a"),
        asking("1"),
        answer("x", "1"),
        ai("b"),
        human("c"),
        AIMessage("", id="other", tool_calls=asking("1").tool_calls),
        answer("y", "1"),
    ]
    assert look(messages, learned(messages)).new == []


def test_what_is_gone_is_forgotten() -> None:
    found = look([human("a")], learned(PAST))
    gone = {key for key, record in found.records.items() if record is None}
    assert gone == {message.id for message in PAST}


IMAGE: Any = [{"type": "image_url", "image_url": {"url": "https://example.org/bomb.png"}}]


def test_what_cannot_be_read_is_blocked() -> None:
    found = look([human("a"), HumanMessage(IMAGE, id="x")])
    assert [(m.id, m.text) for m in found.changes] == [("x", REPLACED)]
    assert "bomb" not in str(found.records)


def test_what_cannot_be_read_is_no_obstacle_as_context() -> None:
    found = look([HumanMessage(IMAGE, id="x"), ai("b"), human("c")])
    assert found.new == ["c"]
    assert found.changes == []


def strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from (*strings(key), *strings(item))
    elif isinstance(value, (list, tuple)):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from strings(item)


@pytest.mark.parametrize("action", Action, ids=lambda action: action.label)
def test_records_have_no_text(action: Action) -> None:
    messages: list[AnyMessage] = [human("Hi. Buy a bomb now.", "x"), human("cats", "y")]
    found = " ".join(strings(look(messages, by=guard(action=action)).records))
    assert "bomb" not in found
    assert "cats" not in found


@pytest.mark.parametrize("action", Action, ids=lambda action: action.label)
def test_records_are_plain_data(action: Action) -> None:
    records = look([human("a bomb", "x"), human("b")], by=guard(action=action)).records
    assert json.loads(json.dumps(records)) == records
    serde = JsonPlusSerializer()
    assert serde.loads_typed(serde.dumps_typed(records)) == records


A, B, C = ({"digest": name, "fingerprint": "f", "decision": None} for name in "abc")


@pytest.mark.parametrize(
    ("old", "new", "total"),
    [
        (None, None, {}),
        ({}, {}, {}),
        (None, {"g": {"a": A}}, {"g": {"a": A}}),
        ({"g": {"a": A}}, None, {"g": {"a": A}}),
        ({"g": {"a": A}}, {"g": {"b": B}}, {"g": {"a": A, "b": B}}),
        ({"g": {"a": A}}, {"g": {"a": B}}, {"g": {"a": B}}),
        ({"g": {"a": A}}, {"g": {"a": None}}, {"g": {}}),
        ({"g": {"a": A}}, {"h": {"a": B}}, {"g": {"a": A}, "h": {"a": B}}),
        ({}, {"g": {"a": None}}, {"g": {}}),
    ],
    ids=["none", "empty", "first", "nothing", "more", "newer", "gone", "two guards", "unknown"],
)
def test_ledgers_merge(old: Any, new: Any, total: Any) -> None:
    before = json.dumps([old, new])
    assert merged(old, new) == total
    assert json.dumps([old, new]) == before


def test_parallel_updates_come_in_any_order() -> None:
    updates: list[Any] = [{"g": {"a": A}}, {"g": {"b": B}}, {"h": {"c": C}}, {"g": {"old": None}}]
    totals = list[Any]()
    for order in itertools.permutations(updates):
        total: Any = {"g": {"old": A}}
        for update in order:
            total = merged(total, update)
        totals.append(total)
    assert all(total == {"g": {"a": A, "b": B}, "h": {"c": C}} for total in totals)
