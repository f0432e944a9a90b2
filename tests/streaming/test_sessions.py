"""The laws of streams on the sessions of a real model, with random weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st

from guardrails_qwen import Decision, Guard, Policy
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.streaming import Event, Streaming
from tests.engines import stream_shaped
from tests.streaming.doors import told
from tests.streaming.test_laws import cuts, policies, settings, texts


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StreamEngine]:
    folder = stream_shaped.save(tmp_path_factory.mktemp("stream"))
    with StreamEngine.from_pretrained(folder, device="cpu", dtype="float32") as engine:
        yield engine


def moderated(
    engine: StreamEngine, policy: Policy, streaming: Streaming, chunks: list[str]
) -> tuple[str, Decision]:
    with Guard(engine, policy).stream("What do I do?", settings=streaming) as stream:
        events: list[Event] = [event for chunk in chunks for event in stream.feed(chunk)]
        events += stream.finish()
    assert stream.decision is not None
    return told(events), stream.decision


# the same examples each time: of logits that all but tie, another batch may pick another
@with_settings(max_examples=40, derandomize=True)
@given(st.data(), texts, policies, settings)
def test_every_chunking_gives_the_same_text_and_the_same_decision(
    engine: StreamEngine, data: st.DataObject, text: str, policy: Policy, streaming: Streaming
) -> None:
    whole, decision = moderated(engine, policy, streaming, [text])
    for chunks in (data.draw(cuts(text)), list(text)):
        read, other = moderated(engine, policy, streaming, chunks)
        assert read == whole
        assert other.action is decision.action
        assert other.rule == decision.rule
        assert other.redactions == decision.redactions
        assert not other.degraded
