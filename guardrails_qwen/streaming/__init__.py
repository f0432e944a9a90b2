"""Moderating a reply while it is written."""

from guardrails_qwen.streaming.answers import aanswers, answers, aonce, once
from guardrails_qwen.streaming.beside import abeside, beside
from guardrails_qwen.streaming.boundaries import SentenceEnds
from guardrails_qwen.streaming.events import Block, Event, Hold, Redact, Release
from guardrails_qwen.streaming.guarded import GuardedStream, readable
from guardrails_qwen.streaming.judges import RepeatedJudge, judge_for
from guardrails_qwen.streaming.moderator import StreamModerator
from guardrails_qwen.streaming.settings import Debounce, HoldBack, Streaming
from guardrails_qwen.streaming.sources import (
    aclose_quietly,
    aclose_source,
    aclosed_after,
    close_quietly,
    close_source,
    closed_after,
)
from guardrails_qwen.streaming.steps import Ask, Feed, Finish, Steps, Truncate, arun, run

__all__ = [
    "Ask",
    "Block",
    "Debounce",
    "Event",
    "Feed",
    "Finish",
    "GuardedStream",
    "Hold",
    "HoldBack",
    "Redact",
    "Release",
    "RepeatedJudge",
    "SentenceEnds",
    "Steps",
    "StreamModerator",
    "Streaming",
    "Truncate",
    "aanswers",
    "abeside",
    "aclose_quietly",
    "aclose_source",
    "aclosed_after",
    "answers",
    "aonce",
    "arun",
    "beside",
    "close_quietly",
    "close_source",
    "closed_after",
    "judge_for",
    "once",
    "readable",
    "run",
]
