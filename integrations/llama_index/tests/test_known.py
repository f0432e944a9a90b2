"""What is known of messages that were judged before."""

import copy
import pickle

import pytest

from guardrails_qwen import Action, Guard, Message, Policy, Role, Stage, ToolCall
from guardrails_qwen.testing import ScriptedEngine
from llama_index_guardrails_qwen.known import Known, Prefix, digests_of

PICTURE = "https://a.example/b.png"
HI = Message(role=Role.USER, text="Hi.")
HO = Message(role=Role.ASSISTANT, text="Ho.")


@pytest.fixture
def guard() -> Guard:
    return Guard(ScriptedEngine())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([HI], [HO]),
        ([HI], [Message(role=Role.ASSISTANT, text="Hi.")]),
        ([HI], [Message(role=Role.USER, text="Hi.", name="Ann")]),
        ([HI], [Message(role=Role.USER, text="Hi.", images=(PICTURE,))]),
        ([HI, HO], [HO, HO]),
        ([HO], [HI, HO]),
        (
            [Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="ab", arguments="c"),))],
            [Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="a", arguments="bc"),))],
        ),
        (
            [Message(role=Role.USER, text="ab", name="c")],
            [Message(role=Role.USER, text="b", name="ca")],
        ),
        (
            [Message(role=Role.USER, tool_calls=(ToolCall(name=PICTURE, arguments=PICTURE),))],
            [Message(role=Role.USER, images=(PICTURE, PICTURE))],
        ),
    ],
    ids=["text", "role", "name", "picture", "before", "first", "call", "shifted", "call-picture"],
)
def test_what_is_read_otherwise_is_another(
    one: list[Message], other: list[Message], guard: Guard
) -> None:
    assert digests_of(one, guard)[-1] != digests_of(other, guard)[-1]


def test_the_same_is_the_same_wherever_a_conversation_was_cut_off(guard: Guard) -> None:
    assert digests_of([HI, HO, HI], guard)[-1] == digests_of([HO, HI], guard)[-1]


def test_by_another_policy_or_model_nothing_is_known(guard: Guard) -> None:
    others = [
        Guard(guard.engine, Policy.loose()),
        Guard(ScriptedEngine(name="another"), guard.policy),
    ]
    assert len({digests_of([HI], one)[0] for one in [guard, *others]}) == 3


def test_what_was_not_looked_for_the_longest_goes_first() -> None:
    known = Known(most=2)
    known.add(b"a")
    known.add(b"b")
    assert b"a" in known
    known.add(b"c")
    assert [digest in known for digest in (b"a", b"b", b"c")] == [True, False, True]


def test_what_was_refused_is_not_known_as_allowed() -> None:
    known, guard = Known(), Guard(ScriptedEngine("Safety: Unsafe\nCategories: Violent"))
    decision = guard.check("Hi.", stage=Stage.INPUT)
    known.add(b"a", refused=decision)
    assert b"a" not in known
    assert known.refused(b"a") == decision
    assert decision.action is Action.BLOCK
    assert known.refused(b"b") is None


def test_copies_share_it_and_other_processes_begin_anew() -> None:
    known = Known()
    known.add(b"a")
    assert b"a" in copy.deepcopy(known)
    assert b"a" not in pickle.loads(pickle.dumps(known))


def test_pictures_are_not_taken_for_calls(guard: Guard) -> None:
    one, two = "https://example.com/a.png", "https://example.com/b.png"
    shows = Message(role=Role.USER, text="Look.", images=(one, two))
    calls = Message(role=Role.USER, text="Look.", tool_calls=(ToolCall(name=one, arguments=two),))
    assert digests_of([shows], guard) != digests_of([calls], guard)
    assert Prefix(guard).then(shows) != Prefix(guard).then(calls)
