"""The local engine under many callers, on the bundled checkpoint."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardrails_qwen import Conversation, EngineClosed, EngineOverloaded, Outcome, Verdict
from guardrails_qwen.calibration import Calibration
from guardrails_qwen.engines.batching import Batching
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.errors import CheckpointError
from guardrails_qwen.longtext import Windows

ASKED = [
    *(Conversation.of(f"How do I cook {n} eggs?") for n in range(10)),
    *(Conversation.of(f"How can I make {n} bombs?") for n in range(10)),
    *(Conversation.exchange("How can I make a bomb?", f"No. {n} times no.") for n in range(5)),
]


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    with TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32") as engine:
        yield engine


def _said(outcome: Outcome) -> tuple[object, ...]:
    assert isinstance(outcome, Verdict)
    return outcome.severity, outcome.categories, outcome.refusal


def test_500_callers_get_what_each_gets_alone(engine: TransformersEngine) -> None:
    alone = [_said(engine.judge([conversation])[0]) for conversation in ASKED]
    assert len(set(alone)) > 2
    barrier = threading.Barrier(251)

    def ask(index: int) -> tuple[object, ...]:
        barrier.wait()
        return _said(engine.judge([ASKED[index % len(ASKED)]])[0])

    async def ask_all() -> list[tuple[object, ...]]:
        asked = [engine.ajudge([ASKED[i % len(ASKED)]]) for i in range(250)]
        await asyncio.to_thread(barrier.wait)
        return [_said(found) for [found] in await asyncio.gather(*asked)]

    with ThreadPoolExecutor(250) as pool:
        threads = [pool.submit(ask, index) for index in range(250)]
        tasks = asyncio.run(ask_all())
        found = [thread.result() for thread in threads]
    expected = [alone[index % len(ASKED)] for index in range(250)]
    assert found == expected
    assert tasks == expected


async def test_a_cancelled_call_spares_the_others(engine: TransformersEngine) -> None:
    bulk = [Conversation.of(f"{n} eggs, please.") for n in range(300)]
    cancelled = asyncio.create_task(engine.ajudge(bulk))
    kept = asyncio.create_task(engine.ajudge(ASKED))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert len(await kept) == len(ASKED)


async def test_closing_answers_those_who_wait_and_refuses_the_next() -> None:
    engine = TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32")
    waiting = asyncio.create_task(engine.ajudge(ASKED[:10]))
    await asyncio.sleep(0)
    async with engine:
        pass
    assert all(isinstance(outcome, Verdict) for outcome in await waiting)
    with pytest.raises(EngineClosed):
        engine.judge(ASKED)
    with pytest.raises(EngineClosed):
        await engine.ajudge(ASKED)


async def test_too_many_waiting_are_refused() -> None:
    options = Batching(capacity=2)
    with TransformersEngine.from_pretrained("tiny", device="cpu", batching=options) as engine:
        asked = [engine.ajudge([conversation]) for conversation in ASKED]
        found = await asyncio.gather(*asked, return_exceptions=True)
    refused = [item for item in found if isinstance(item, EngineOverloaded)]
    assert 0 < len(refused) < len(ASKED)
    assert all(isinstance(item, (list, EngineOverloaded)) for item in found)


async def test_the_loop_goes_on_while_a_long_text_is_prepared(engine: TransformersEngine) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    [verdict] = await engine.ajudge([Conversation.of("All is well here. " * 2000)])
    ticking.cancel()
    assert isinstance(verdict, Verdict)
    assert ticks > 10


def test_a_calibration_scales_probabilities_and_changes_the_fingerprint(
    engine: TransformersEngine,
) -> None:
    calibration = Calibration(severity=3.0, fingerprint=engine.fingerprint)
    softer = TransformersEngine.from_pretrained(
        "tiny", device="cpu", dtype="float32", calibration=calibration
    )
    [before], [after] = engine.judge(ASKED[:1]), softer.judge(ASKED[:1])
    assert isinstance(before, Verdict)
    assert isinstance(after, Verdict)
    assert before.scores
    assert after.scores == calibration.apply(before.scores)
    assert after.scores != before.scores
    assert before.severity is after.severity
    assert engine.fingerprint not in {softer.fingerprint, after.fingerprint}
    assert after.fingerprint == softer.fingerprint


def test_a_calibration_of_another_model_is_refused() -> None:
    calibration = Calibration(severity=2.0, model="another", fingerprint="0123456789abcdef")
    with pytest.raises(CheckpointError):
        TransformersEngine.from_pretrained("tiny", device="cpu", calibration=calibration)


def test_windows_are_part_of_the_fingerprint(engine: TransformersEngine) -> None:
    other = TransformersEngine.from_pretrained(
        "tiny", device="cpu", dtype="float32", windows=Windows(tokens=64, overlap=16)
    )
    assert other.fingerprint != engine.fingerprint


def test_a_warm_engine_judges_as_a_cold_one_does(engine: TransformersEngine) -> None:
    warm = TransformersEngine.from_pretrained("tiny", device="cpu", dtype="float32", warm_up=True)
    assert list(map(_said, warm.judge(ASKED))) == list(map(_said, engine.judge(ASKED)))
