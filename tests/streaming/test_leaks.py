"""What of a harmful sentence gets through a guarded stream, by way of holding back.

The engine is mostly an oracle, which is right about every word from a known one on: then what
leaks is the moderator's doing alone. How much the bundled checkpoint lets through is for the
benchmark to say; here it has to keep the rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from benchmarks.streaming.leaks import Outcome, Stream, moderated, streams, summarised
from benchmarks.streaming.material import Material, made_up, real
from guardrails_qwen import Category, Severity, Verdict
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.streaming import Debounce, HoldBack, Streaming
from guardrails_qwen.testing import ScriptedStreamEngine

UNSAFE = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))
SAFE = Verdict(severity=Severity.SAFE)

SENTENCE = Streaming(hold_back=HoldBack.SENTENCE)
MODES = {
    "no debounce": Streaming(debounce=Debounce.OFF),
    "tokens": Streaming(),
    "two tokens more": Streaming(tokens=2),
    "sentence": SENTENCE,
    "reply": Streaming(hold_back=HoldBack.REPLY),
}
KEPT = {"sentence", "reply"}
"""Of these, nothing of a sentence is released before all of it was judged."""


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def oracle(onset: int) -> Callable[[Stream], ScriptedStreamEngine]:
    """Unsafe from so many words into the harmful sentence on, and never before."""

    def engine_of(stream: Stream) -> ScriptedStreamEngine:
        spans = words(stream.reply[stream.start : stream.end])
        begins = stream.start + spans[min(onset, len(spans) - 2)][0]
        return ScriptedStreamEngine(tokens=lambda reply: UNSAFE if len(reply) > begins else SAFE)

    return engine_of


def made(material: Material, count: int) -> list[Stream]:
    return list(streams(material.harmless, material.harmful, count))


def require_rules(outcomes: Sequence[Outcome]) -> None:
    for one in outcomes:
        reply = one.stream.reply
        assert reply.startswith(one.released)
        assert len(one.released) <= one.received <= len(reply)
        assert one.blocked or one.released == reply


def require_harmless_passes(outcomes: Sequence[Outcome]) -> None:
    """What stands before a harmful sentence is released, but where a sentence's end is missed.

    The first word of a sentence comes with the white space that belongs to the one before, which by
    sentences is kept with it.
    """
    wanted = sum(one.stream.start for one in outcomes)
    assert sum(min(len(one.released), one.stream.start) for one in outcomes) > 0.95 * wanted


@pytest.mark.parametrize("onset", [0, 3], ids=["seen at once", "seen three words later"])
@pytest.mark.parametrize("mode", MODES)
async def test_an_oracle_lets_only_what_it_has_not_seen_through(mode: str, onset: int) -> None:
    outcomes = await moderated(oracle(onset), made(made_up(), 100), settings=MODES[mode])
    require_rules(outcomes)
    assert all(one.blocked and not one.early for one in outcomes)
    held = max(0, MODES[mode].tokens - 1)  # one of them is the bad word that waits for the next
    most = 0 if mode in KEPT else max(0, onset - held)
    assert max(one.leaked_tokens(words) for one in outcomes) == most
    if mode == "reply":
        assert not any(one.released for one in outcomes)
    elif mode != "sentence" or onset:
        require_harmless_passes(outcomes)


@pytest.mark.parametrize("onset", [0, 3, 99], ids=["at once", "three words later", "near the end"])
async def test_real_text_by_sentences_leaks_nothing(onset: int) -> None:
    material = real()
    if material is None:
        pytest.skip("the collection of public texts is not beside this checkout")
    outcomes = await moderated(oracle(onset), made(material, 500), settings=SENTENCE, at_once=64)
    found = summarised(outcomes, words)
    print(f"\noracle, onset {onset}: {found}")  # noqa: T201 - a figure, not a condition
    require_rules(outcomes)
    if onset:
        require_harmless_passes(outcomes)
    assert (found.streams, found.clean, found.missed, found.early) == (500, 500, 0, 0)
    assert found.leaked == 0
    assert found.harmful > 5000


@pytest.mark.parametrize("mode", MODES)
async def test_the_bundled_checkpoint_keeps_the_rules(mode: str) -> None:
    material = real() or made_up()
    async with StreamEngine.from_pretrained("tiny-stream", device="cpu") as engine:
        outcomes = await moderated(lambda _: engine, made(material, 24), settings=MODES[mode])
        assert engine.open_sessions == 0
    require_rules(outcomes)
    assert any(one.blocked for one in outcomes)
    print(f"\ntiny-stream, {mode}: {summarised(outcomes, words)}")  # noqa: T201
