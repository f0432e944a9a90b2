"""The error tree: who is at fault, and never what was said."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable

import pytest

from guardrails_qwen import (
    Action,
    CheckpointError,
    ConversationError,
    Decision,
    EngineClosed,
    EngineError,
    EngineOverloaded,
    GuardError,
    GuardViolation,
    PolicyError,
    Severity,
    Stage,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)

SECRET = "moderated words"
BLOCKED = Decision(
    action=Action.BLOCK, stage=Stage.INPUT, verdict=Verdict(severity=Severity.UNSAFE), policy="p"
)

TREE: list[tuple[type[Exception], type[Exception]]] = [
    (GuardError, Exception),
    (GuardViolation, GuardError),
    (PolicyError, GuardError),
    (PolicyError, ValueError),
    (ConversationError, GuardError),
    (ConversationError, ValueError),
    (TextTooLong, ConversationError),
    (CheckpointError, GuardError),
    (EngineError, GuardError),
    (UnreadableVerdict, EngineError),
    (EngineClosed, EngineError),
    (EngineOverloaded, EngineError),
]
ERRORS = [
    GuardError("a"),
    GuardViolation(BLOCKED),
    PolicyError("b"),
    ConversationError("c"),
    TextTooLong(10, 5),
    CheckpointError("d"),
    EngineError("e"),
    UnreadableVerdict(SECRET, "why"),
    EngineClosed("f"),
    EngineOverloaded("g"),
]


@pytest.mark.parametrize(("child", "parent"), TREE)
def test_the_tree_is_as_drawn(child: type[Exception], parent: type[Exception]) -> None:
    assert issubclass(child, parent)


@pytest.mark.parametrize("kind", [GuardViolation, ConversationError, PolicyError, CheckpointError])
def test_unsafe_and_unavailable_stay_apart(kind: type[Exception]) -> None:
    assert not issubclass(kind, EngineError)


def _pickled(error: GuardError) -> GuardError:
    return pickle.loads(pickle.dumps(error))


def _copied(error: GuardError) -> GuardError:
    return copy.copy(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [_pickled, _copied], ids=["pickle", "copy"])
def test_errors_survive_the_way_between_processes(
    error: GuardError, copied: Callable[[GuardError], GuardError]
) -> None:
    again = copied(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_violation_carries_its_decision() -> None:
    error = GuardViolation(BLOCKED)
    assert error.decision is BLOCKED
    assert str(error) == "input blocked: Unsafe, policy p"


def test_an_unreadable_answer_stays_off_the_message() -> None:
    error = UnreadableVerdict(SECRET)
    assert error.answer == SECRET
    shown = "".join(traceback.format_exception(error))
    for text in (str(error), repr(error), shown):
        assert SECRET not in text
    assert f"{len(SECRET)} characters" in str(error)


def test_a_text_too_long_says_how_long() -> None:
    error = TextTooLong(40_000, 32_768)
    assert (error.tokens, error.limit) == (40_000, 32_768)
    assert "40000" in str(error)
    assert "32768" in str(error)
