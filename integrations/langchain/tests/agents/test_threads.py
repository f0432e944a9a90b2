"""What is new in a thread, what becomes of it, and what a ledger keeps."""

import itertools
import json
import warnings
from collections.abc import Iterable
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
from langchain_guardrails_qwen.threads import (
    Admission,
    Inspection,
    Ledger,
    Scope,
    merged,
)


def human(text: str, id_: str | None = None) -> HumanMessage:
    return HumanMessage(text, id=id_ or _id(text))


def ai(text: str, id_: str | None = None) -> AIMessage:
    return AIMessage(text, id=id_ or _id(text))


def _id(text: str) -> str:
    return text.replace(" ", "-").strip("?-")


def asking(*ids: str) -> AIMessage:
    calls: list[Any] = [{"name": "search", "args": {"query": id_}, "id": id_} for id_ in ids]
    return AIMessage("", id="".join(ids), tool_calls=calls)


def answer(text: str, id_: str) -> ToolMessage:
    return ToolMessage(text, tool_call_id=id_, id=f"m-{text}")


def look(
    messages: list[AnyMessage],
    ledger: Ledger | None = None,
    by: Guard | None = None,
    *,
    scope: Scope = "turn",
) -> tuple[Inspection, Admission]:
    used = by or guard()
    inspection = Inspection.of(messages, ledger or {}, used, scope=scope)
    decisions = used.check_many(inspection.conversations, return_exceptions=True)
    return inspection, inspection.settle(decisions)


def learned(messages: list[AnyMessage], by: Guard | None = None) -> Ledger:
    """The ledger of a thread of which all was let through."""
    _, admission = look(messages, by=by, scope="all")
    return {key: record for key, record in admission.records.items() if record}


PAST = [human("hello"), ai("good day"), human("how are you?"), ai("fine")]

FRESH: dict[str, tuple[list[AnyMessage], Scope, list[str]]] = {
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
        ["x", "y"],
    ),
}


@pytest.mark.parametrize(("messages", "scope", "new"), FRESH.values(), ids=FRESH)
def test_what_is_new_in_an_unknown_thread(
    messages: list[AnyMessage], scope: Scope, new: list[str]
) -> None:
    inspection, _ = look(messages, scope=scope)
    assert [messages[index].text for index in inspection.new] == new


KNOWN: dict[str, tuple[list[AnyMessage], list[str]]] = {
    "nothing": (PAST, []),
    "a new turn": ([*PAST, human("a")], ["a"]),
    "several": ([*PAST, human("a"), human("b")], ["a", "b"]),
    "an edited message": ([PAST[0], ai("changed", "good-day"), *PAST[2:]], ["changed"]),
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
    inspection, _ = look(messages, learned(list[AnyMessage](PAST)))
    assert [messages[index].text for index in inspection.new] == new


@pytest.mark.parametrize(
    "other",
    [
        Guard(ScriptedEngine(SCRIPT, name="other"), Policy.strict()),
        Guard(ScriptedEngine(SCRIPT), Policy.loose()),
    ],
    ids=["engine", "policy"],
)
def test_the_ledger_of_another_guard_is_none(other: Guard) -> None:
    ledger = learned(list[AnyMessage](PAST))
    inspection, _ = look([*PAST, human("a")], ledger, other)
    assert inspection.new == (4,)
    everything, _ = look([*PAST, human("a")], ledger, other, scope="all")
    assert everything.new == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("messages", [messages for messages, _ in KNOWN.values()], ids=KNOWN)
def test_a_thread_is_known_afterwards(messages: list[AnyMessage]) -> None:
    ledger = learned(list[AnyMessage](PAST))
    _, admission = look(messages, ledger)
    after = merged({"guard": ledger}, {"guard": admission.records})["guard"]
    again, _ = look(admission.messages, after)
    assert [messages[index].id for index in again.new if messages[index].id] == []


def test_each_new_message_is_judged_behind_all_before_it() -> None:
    inspection, _ = look([*PAST, human("a"), human("b")], learned(list[AnyMessage](PAST)))
    read = [[message.text for message in c.messages] for c in inspection.conversations]
    past = [message.text for message in PAST]
    assert read == [[*past, "a"], [*past, "a", "b"]]


def test_a_thread_that_passes_is_the_very_same() -> None:
    messages = list[AnyMessage](PAST)
    _, admission = look(messages, scope="all")
    assert admission.messages is messages
    assert admission.changes == []


def test_what_is_blocked_is_replaced_in_its_place() -> None:
    messages: list[AnyMessage] = [human("a"), human("a bomb", "x"), human("b")]
    _, admission = look(messages)
    assert said(admission.messages) == ["human: a", f"human: {REPLACED}", "human: b"]
    [change] = admission.changes
    assert [(m.id, m.text) for m in change.update] == [("x", REPLACED)]
    assert messages[1].text == "a bomb"
    assert admission.violation
    assert admission.violation.stage is Stage.INPUT


def test_what_is_dropped_is_removed() -> None:
    messages: list[AnyMessage] = [human("a"), human("a bomb", "x")]
    _, admission = look(messages, by=guard(action=Action.DROP))
    assert said(admission.messages) == ["human: a"]
    assert [change.update for change in admission.changes] == [[RemoveMessage(id="x")]]
    assert not admission.records.get("x")


def test_a_dropped_answer_of_a_tool_is_emptied() -> None:
    messages: list[AnyMessage] = [human("a"), asking("1"), answer("a bomb", "1")]
    by = Guard(ScriptedEngine(SCRIPT), policy_at(Stage.TOOL_RESULT, Action.DROP))
    _, admission = look(messages, by=by)
    assert said(admission.messages)[-1] == "tool: "


def test_answers_to_lost_calls_go() -> None:
    reply = asking("1").model_copy(update={"content": "a bomb"})
    messages: list[AnyMessage] = [human("a"), reply, answer("x", "1"), human("b")]
    _, admission = look(messages, learned([human("a")]))
    assert said(admission.messages) == ["human: a", f"ai: {REPLACED}", "human: b"]


def test_all_of_a_thread_is_never_dropped() -> None:
    messages: list[AnyMessage] = [human("a bomb", "x"), human("another bomb", "y")]
    _, admission = look(messages, by=guard(action=Action.DROP))
    assert admission.messages


def test_an_id_that_says_something_does_not_save_its_message() -> None:
    messages: list[AnyMessage] = [human("a"), human("a bomb", "x y")]
    _, admission = look(messages)
    [change] = admission.changes
    removed, new = change.update
    assert removed == RemoveMessage(id="x y")
    assert (new.id, new.text) == (None, REPLACED)


def test_a_message_without_an_id_cannot_be_changed() -> None:
    _, admission = look([HumanMessage("a bomb")])
    [change] = admission.changes
    with pytest.raises(ConversationError, match="add_messages"):
        assert change.update


def test_two_answers_of_one_call_id_are_both_known() -> None:
    messages: list[AnyMessage] = [
        human("a"),
        asking("1"),
        answer("x", "1"),
        ai("b"),
        human("c"),
        asking("1"),
        answer("y", "1"),
    ]
    ledger = learned(messages)
    inspection, _ = look(messages, ledger)
    assert inspection.new == ()


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
    _, admission = look(messages, by=guard(action=action))
    found = " ".join(strings(dict(admission.records)))
    assert "bomb" not in found
    assert "cats" not in found


@pytest.mark.parametrize("action", Action, ids=lambda action: action.label)
def test_records_are_plain_data(action: Action) -> None:
    _, admission = look([human("a bomb", "x"), human("b")], by=guard(action=action))
    assert json.loads(json.dumps(admission.records)) == admission.records
    serde = JsonPlusSerializer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert serde.loads_typed(serde.dumps_typed(admission.records)) == admission.records


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
