"""Notices in texts, by which a violation gets past those who catch exceptions."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardrails_qwen import Action, Decision, Guard, Stage
from llama_index_guardrails_qwen.incidents import claimed, report


def blocked(text: str = "a bomb") -> Decision:
    return Decision(action=Action.BLOCK, stage=Stage.TOOL_RESULT, text=text)


def test_a_notice_gives_its_decision_once() -> None:
    decision = blocked()
    notice = report(decision)
    assert claimed(f"Observation: {notice}\nThought: ") is decision
    assert claimed(notice) is None


def test_a_notice_quotes_nothing() -> None:
    notice = report(blocked("a bomb"))
    assert re.fullmatch(r"\[withheld by the guard, incident [0-9a-f]{32}\]", notice)
    assert claimed(notice)


def test_of_several_the_first_one_is_told_and_all_are_claimed() -> None:
    first, second = blocked(), blocked()
    notices = [report(first), report(second)]
    assert claimed("\n".join(notices)) is first
    assert claimed(notices[1]) is None


NUMBER = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        pytest.param(r"incident", "accident", id="other words"),
        pytest.param(r".\]$", "]", id="a number cut short"),
        pytest.param(r".\]$", "00]", id="a number of one digit more"),
        pytest.param(NUMBER.pattern, "0" * 32, id="a number that was made up"),
        pytest.param(r".*", "", id="nothing"),
    ],
)
def test_what_is_no_notice_claims_nothing(part: str, other: str) -> None:
    decision = blocked()
    notice = report(decision)
    assert claimed(re.sub(part, other, notice)) is None
    assert claimed(notice) is decision


def test_the_oldest_are_forgotten() -> None:
    first = report(blocked())
    later = [report(blocked()) for _ in range(1_000)]
    assert claimed(first) is None
    assert all(claimed(notice) for notice in later)


@pytest.mark.parametrize("checkpoint", ["tiny", "tiny-stream"])
@pytest.mark.parametrize("said", ["{}", "Observation: {}"], ids=["result", "observation"])
def test_a_notice_offends_no_guard(checkpoint: str, said: str) -> None:
    """It stays in threads, which guards read again."""
    guard = Guard.from_pretrained(checkpoint)
    notices = [said.format(report(blocked())) for _ in range(10)]
    for stage in (Stage.TOOL_RESULT, Stage.INPUT):
        assert all(decision.allowed for decision in guard.check_many(notices, stage=stage))


def test_one_notice_is_claimed_by_one_thread() -> None:
    notices = [report(blocked()) for _ in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(claimed, notices * 8))
    assert sum(decision is not None for decision in found) == len(notices)
