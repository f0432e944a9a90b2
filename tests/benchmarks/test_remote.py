"""Ways of asking a server, measured on a loopback server around the bundled checkpoint."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.remote import client, speed, stub
from benchmarks.remote.__main__ import main
from benchmarks.remote.agreement import Agreement
from benchmarks.remote.contenders import ALL, CHAT, PLAIN, TOKENS, Contender, Target
from benchmarks.remote.questions import Kind
from guardrails_qwen import Category, EngineTimeout, Scores, Severity, Verdict
from guardrails_qwen.engines.prompting import Prompting
from tests.engines.data import needs_data
from tests.servers.quirks import CHATTING, VLLM
from tests.servers.tiny import TinyServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with TinyServer(VLLM) as server:
        yield server.base_url


def _target(url: str) -> Target:
    return Target(url=url, model="tiny", prompting=Prompting.from_pretrained("tiny"))


@asynccontextmanager
async def _contenders(url: str, *names: str) -> AsyncGenerator[list[Contender]]:
    contenders = [_target(url).contender(name) for name in names]
    yield contenders
    for contender in contenders:
        await contender.aclose()


def _run(folder: Path, url: str, *arguments: str) -> tuple[str, Any]:
    """What the command prints, and the numbers that it leaves."""
    main(["--url", url, "--model", "tiny", "--quick", "--folder", str(folder), *arguments])
    return (folder / "remote.md").read_text(), json.loads((folder / "remote.json").read_text())


def test_without_a_server_it_says_how_to_have_one() -> None:
    with pytest.raises(SystemExit, match=r"(?s)--url http.*vllm\.entrypoints"):
        main([])


def test_every_contender_gets_the_verdicts_right(url: str, tmp_path: Path) -> None:
    report, raw = _run(tmp_path, url, "--only", "latency,tokens", "--prompts", "3")
    for kind in Kind:
        row = raw["latency"][kind.value]
        assert list(row) == list(ALL)
        assert all(len(one["seconds"]) == 3 and not one["wrong"] for one in row.values())
    assert "unexpected severities: none" in report
    assert "How many times sooner than chat" in report
    safe = raw["costs"][Kind.SAFE.value]
    assert safe[TOKENS] == {"verdicts": 3, "requests": 3, "generated": 3}
    assert safe[CHAT] == safe[PLAIN]
    assert safe[CHAT]["requests"] == 3
    assert safe[CHAT]["generated"] > 12


async def test_callers_share_the_questions(url: str) -> None:
    async with _contenders(url, PLAIN, TOKENS) as contenders:
        measured = await speed.throughputs(contenders, callers=4, total=9, rounds=2)
    assert list(measured) == [PLAIN, TOKENS]
    for one in measured.values():
        assert len(one.rates) == 2
        assert one.wrong == 0


async def test_what_is_no_verdict_is_wrong() -> None:
    with TinyServer(CHATTING) as server:
        async with _contenders(server.base_url, PLAIN, CHAT) as contenders:
            measured = speed.latencies(contenders, Kind.SAFE, 2)
    assert [one.wrong for one in measured.values()] == [2, 2]


async def test_the_client_is_measured_against_a_stub() -> None:
    with stub.running(delay=0.01) as server:
        target = _target(server.url)
        processor = await client.processor(target, server, (PLAIN, TOKENS), 8, 1)
        held = [await client.held(target, server, name, 20, 2) for name in (CHAT, TOKENS)]
    for one in processor.values():
        assert one.wrong == 0
        assert min(*one.alone, *one.at_once) > 0
    for one in held:
        assert one.lost == 0
        assert 1 < one.at_once <= 40
        assert len(one.seconds) == 2


@needs_data
def test_all_ways_agree_with_the_local_engine(url: str, tmp_path: Path) -> None:
    _, raw = _run(tmp_path, url, "--only", "agreement", "--texts", "10")
    assert len(raw["agreement"]) == 3
    for one in raw["agreement"].values():
        assert one["same"] == one["texts"] == one["scored"] == 10
        assert one["apart"] == 0


def _verdict(severity: Severity, p: float, category: float = 0.0) -> Verdict:
    rest = {level: (1 - p) / 2 for level in Severity if level is not severity}
    scores = Scores(severity={severity: p, **rest}, category={Category.VIOLENT: category})
    return Verdict(severity=severity, scores=scores)


def test_what_differs_is_counted() -> None:
    agreement = Agreement()
    agreement.add(_verdict(Severity.SAFE, 0.9), _verdict(Severity.SAFE, 0.9, category=0.2))
    agreement.add(_verdict(Severity.SAFE, 0.9), _verdict(Severity.UNSAFE, 0.9))
    agreement.add(_verdict(Severity.SAFE, 0.9), EngineTimeout("late"))
    assert (agreement.texts, agreement.same, agreement.errors) == (3, 1, 1)
    assert (agreement.scored, agreement.apart) == (1, 1)
    assert (agreement.severity, agreement.category) == (0, pytest.approx(0.2))
