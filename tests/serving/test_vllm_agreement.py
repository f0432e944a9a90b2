"""On a real vLLM every way of asking gives the verdicts that the local engine gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from guardrails_qwen import (
    Category,
    Conversation,
    Outcome,
    Severity,
    UnreadableVerdict,
    Verdict,
    Windows,
)
from guardrails_qwen.engines.asking import Way
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.transformers import TransformersEngine
from tests.engines.data import conversations, needs_data
from tests.servers.processes import RealServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

WAYS: Mapping[str, dict[str, Any]] = {
    "tokens": {"way": "tokens", "tokenizer": "tiny"},
    "tokens, the server's tokenizer": {"way": "tokens"},
    "chat": {"way": "chat", "tokenizer": "tiny"},
    "constrained": {"way": "constrained", "tokenizer": "tiny"},
}

WHOLE = Windows(tokens=1200)
"""Nothing is cut, which without a tokenizer is done by estimated lengths."""


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32", windows=WHOLE)


@needs_data
@pytest.mark.parametrize("replies", [False, True], ids=["prompts", "replies"])
@pytest.mark.parametrize("options", WAYS.values(), ids=list(WAYS))
def test_verdicts_are_those_of_the_local_engine(
    vllm_server: RealServer, tiny: TransformersEngine, options: dict[str, Any], replies: bool
) -> None:
    """Verdicts are equal; probabilities to 0.01, where the way offers any. A chat offers none where
    the documented answers have less than nearly all of the probability.

    What the model answers outside the format is unreadable here; a way that forces or constrains
    the answer cannot see that. A category beside Safe, which is unreadable as well, is not read by
    the tokens way, because it costs each safe text a request.
    """
    asked = _short(conversations(replies=replies, most=800))[:500]
    assert len(asked) == 500
    expected = tiny.judge(asked)
    with OpenAICompatibleEngine.from_url(
        vllm_server.base_url, deadline=None, max_concurrency=16, windows=WHOLE, **options
    ) as engine:
        found = engine.judge(asked)
        way = engine.explore().way
    compared = scored = 0
    for local, remote in zip(expected, found, strict=True):
        if isinstance(local, UnreadableVerdict):
            continue
        assert _said(remote) == _said(local)
        compared += 1
        if isinstance(remote, Verdict) and remote.scores:
            assert _numbers(remote, way) == pytest.approx(_numbers(local, way), abs=1e-2)
            scored += 1
    assert compared >= 495
    assert scored >= 490


def _short(asked: list[Conversation]) -> list[Conversation]:
    """Of fewer characters than a window has tokens."""
    return [one for one in asked if sum(len(m.text) for m in one.messages) < 1200]


def _said(outcome: Outcome) -> object:
    assert isinstance(outcome, Verdict)
    return outcome.severity, outcome.categories, outcome.refusal


def _numbers(outcome: Outcome, way: Way) -> list[float]:
    """Probabilities: of categories where single tokens are read."""
    assert isinstance(outcome, Verdict)
    assert outcome.scores is not None
    scores = outcome.scores
    categories = [scores.category[category] for category in Category] if way is Way.TOKENS else []
    return [*(scores.severity[level] for level in Severity), *categories, scores.refusal or 0.0]
