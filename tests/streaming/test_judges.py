"""Who judges a reply while it grows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import (
    Conversation,
    ConversationError,
    EngineClosed,
    GuardError,
    Message,
    Outcome,
    Role,
    Severity,
    TextTooLong,
    Verdict,
)
from guardrails_qwen.engines.session import Judged
from guardrails_qwen.streaming import RepeatedJudge, Streaming, judge_for
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from tests.streaming.doors import StreamDoors
from tests.streaming.test_laws import texts

PROMPT = Conversation.of("What do I do?")
SAFE = Verdict(severity=Severity.SAFE)
EAGER = Streaming(stride=1, growth=1.0001)


def seen(engine: ScriptedEngine) -> list[str]:
    """The replies that an engine was asked about."""
    return [conversation.last.text for conversation in engine.seen]


def spans(judged: Sequence[Judged]) -> list[tuple[int, int]]:
    return [(one.start, one.end) for one in judged]


def test_an_engine_is_asked_about_the_reply_so_far_with_its_prompt(doors: StreamDoors) -> None:
    engine = ScriptedEngine()
    judge = RepeatedJudge(engine, PROMPT, EAGER)
    judged = [spans(some) for some in doors.judged(judge, ["Mix it. Ba", "ke it. Eat", " it."])]
    assert judged == [[(0, 8)], [(8, 17)], [], [(17, 24)]]
    assert seen(engine) == ["Mix it. ", "Mix it. Bake it. ", "Mix it. Bake it. Eat it."]
    assert all(asked.messages[:-1] == PROMPT.messages for asked in engine.seen)
    assert {asked.last.role for asked in engine.seen} == {Role.ASSISTANT}


def test_without_a_prompt_the_reply_is_judged_alone(doors: StreamDoors) -> None:
    engine = ScriptedEngine()
    list(doors.judged(RepeatedJudge(engine, None, EAGER), ["Mix it."]))
    assert engine.seen == [Conversation.of(Message(role=Role.ASSISTANT, text="Mix it."))]


STRIDES = [
    pytest.param(Streaming(stride=1, growth=1.0001), [5, 10, 15, 20, 25, 30], id="each sentence"),
    pytest.param(Streaming(stride=8, growth=1.0001), [10, 20, 30], id="a stride"),
    pytest.param(Streaming(stride=1, growth=2), [5, 10, 20], id="growth"),
    pytest.param(Streaming(stride=100), [], id="none before the end"),
]


@pytest.mark.parametrize(("streaming", "ends"), STRIDES)
def test_where_a_reply_is_judged(doors: StreamDoors, streaming: Streaming, ends: list[int]) -> None:
    engine = ScriptedEngine()
    text = "Mix. " * 7
    list(doors.judged(RepeatedJudge(engine, PROMPT, streaming), text))
    assert [len(reply) for reply in seen(engine)] == [*ends, len(text)]


@given(st.data(), texts, st.integers(1, 20), st.sampled_from([1.01, 1.5, 4]))
def test_where_a_reply_is_judged_depends_on_its_text_alone(
    data: st.DataObject, text: str, stride: int, growth: float
) -> None:
    streaming = Streaming(stride=stride, growth=growth)
    whole, cut = ScriptedEngine(), ScriptedEngine()
    doors = StreamDoors(asynchronous=False)
    list(doors.judged(RepeatedJudge(whole, None, streaming), [text]))
    at = data.draw(st.integers(0, len(text)))
    list(doors.judged(RepeatedJudge(cut, None, streaming), [text[:at], *text[at:]]))
    assert seen(cut) == seen(whole)
    *before, _ = [0, *map(len, seen(whole))]
    assert sum(before) <= growth / (growth - 1) * len(text)


def test_one_batch_for_all_that_came_at_once() -> None:
    engine = ScriptedEngine()
    RepeatedJudge(engine, PROMPT, EAGER).feed("One. Two. Three. Four")
    assert engine.batches == [3]


def test_white_space_alone_is_not_judged(doors: StreamDoors) -> None:
    engine = ScriptedEngine()
    assert [*doors.judged(RepeatedJudge(engine, PROMPT, EAGER), [" ", "\n\n "])] == [[], [], []]
    assert engine.seen == []


def test_what_was_judged_before_a_failure_is_not_lost(doors: StreamDoors) -> None:
    def script(conversation: Conversation) -> Verdict | GuardError:
        return TextTooLong(9, 8) if "Two" in conversation.last.text else SAFE

    judge = RepeatedJudge(ScriptedEngine(script), PROMPT, EAGER)
    judging = doors.judged(judge, ["One. Two. Three"])
    assert spans(next(judging)) == [(0, 5)]
    with pytest.raises(TextTooLong):
        next(judging)


def test_an_engine_that_answers_too_little_fails(doors: StreamDoors) -> None:
    class Short(ScriptedEngine):
        def judge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            return super().judge(conversations)[1:]

    with pytest.raises(GuardError, match="0 outcomes for 1 conversations"):
        list(doors.judged(RepeatedJudge(Short(), PROMPT, EAGER), ["One. Two"]))


def test_what_is_truncated_is_forgotten(doors: StreamDoors) -> None:
    engine = ScriptedEngine()
    judge = RepeatedJudge(engine, PROMPT, EAGER)
    list(doors.judged(judge, ["One. Two. Three. "]))
    judge.truncate(5)
    assert [spans(some) for some in doors.judged(judge, ["Four. Fi", "ve."])] == [
        [(5, 11)],
        [],
        [(11, 16)],
    ]
    assert seen(engine)[-2:] == ["One. Four. ", "One. Four. Five."]


def test_a_session_is_opened_with_the_first_text(doors: StreamDoors) -> None:
    engine = ScriptedStreamEngine()
    judge = judge_for(engine, PROMPT, Streaming())
    assert engine.sessions == []
    judged = [spans(some) for some in doors.judged(judge, ["Mix ", "it."])]
    assert judged == [[(0, 3)], [], [(3, 7)]]
    assert engine.seen == []  # texts; the prompt is judged by opening
    [session] = engine.sessions
    judge.truncate(3)
    assert session.reply == "Mix"
    judge.close()
    judge.close()
    assert session.closed


def test_a_closed_judge_opens_nothing(doors: StreamDoors) -> None:
    engine = ScriptedStreamEngine()
    judge = judge_for(engine, PROMPT, Streaming())
    judge.close()
    with pytest.raises(EngineClosed):
        next(doors.judged(judge, ["Mix"]))
    assert engine.sessions == []


def test_a_prompt_that_cannot_be_judged_fails_at_the_first_text(doors: StreamDoors) -> None:
    picture = Message(role=Role.USER, images=("https://example.com/a.png",))
    judge = judge_for(ScriptedStreamEngine(), Conversation.of(picture), Streaming())
    with pytest.raises(ConversationError):
        next(doors.judged(judge, ["Mix"]))
