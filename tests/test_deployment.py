"""The deployment page: its compose files are sound, and what it quotes is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.widen import HEAD_DIM, SHAPES, Shape
from guardrails_qwen import Conversation, GuardError, Verdict
from guardrails_qwen.engines.asking import Way
from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.longtext import Windows
from tests.deployment import COMPOSE, PAGE, SERVE, commands, composed, flags, service, started
from tests.engines.remote import prompting, ready
from tests.servers.faults import BROKEN, TRANSIENT, redirect
from tests.servers.faulty import FaultyServer, always
from tests.servers.loopback import LoopbackServer
from tests.servers.quirks import CHATTING, WRONG_TEMPLATE, Quirks
from tests.servers.tiny import TinyServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

BRISK = Reliability(attempts=2, first_wait=0.01, longest_wait=0.05, failures=1000)
RESPONSE, ANSWER, RESERVE = 391, 64, 32
"""Tokens of the published instructions for replies, of an answer, and that the engine spares."""

each_file = pytest.mark.parametrize("path", COMPOSE.values(), ids=COMPOSE.keys())


def test_there_is_a_file_for_each_server() -> None:
    assert list(COMPOSE) == ["sglang", "vllm"]
    for path in COMPOSE.values():
        assert f"examples/serving/{path.name}" in PAGE.read_text(encoding="utf-8")


@each_file
def test_the_image_has_a_version(path: Path) -> None:
    assert re.fullmatch(r"[\w-]+/[\w-]+:v\d+\.\d+\.\d+", service(path)["image"])


@each_file
def test_the_command_is_words(path: Path) -> None:
    assert all(isinstance(word, str) and word for word in started(path))


@each_file
def test_one_gpu_is_reserved(path: Path) -> None:
    assert service(path)["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]


@each_file
def test_only_loopback_can_reach_the_port(path: Path) -> None:
    port = flags(started(path))["--port"]
    assert service(path)["ports"] == [f"127.0.0.1:{port}:{port}"]


@each_file
def test_the_model_is_kept_in_a_volume(path: Path) -> None:
    [volume] = service(path)["volumes"]
    name, _, place = volume.partition(":")
    assert name in composed(path)["volumes"]
    assert place == "/root/.cache/huggingface"


@each_file
def test_it_does_not_start_without_a_key(path: Path) -> None:
    variables = re.findall(r"\$\{?([^}]*)", path.read_text(encoding="utf-8"))
    assert [name.partition(":?")[0] for name in variables] == ["GUARD_API_KEY"]
    assert all(name.partition(":?")[2] for name in variables)


@each_file
def test_the_context_holds_a_full_window(path: Path) -> None:
    found = flags(started(path))
    context = found.get("--max-model-len") or found["--context-length"]
    assert int(context) >= _needed(Windows())


@each_file
def test_the_health_check_tells_a_server_from_none(path: Path) -> None:
    kind, _, *arguments = service(path)["healthcheck"]["test"]
    assert kind == "CMD"
    own = f"http://127.0.0.1:{flags(started(path))['--port']}/"
    with TinyServer() as server:
        there = [word.replace(own, f"{server.url}/") for word in arguments]
        assert there != arguments
        assert subprocess.run([sys.executable, *there], check=False).returncode == 0
    gone = subprocess.run([sys.executable, *there], capture_output=True, check=False)
    assert gone.returncode != 0


def test_the_page_and_the_file_give_the_same_flags() -> None:
    own = {"--host": None, "--served-model-name": None}
    page = next(one for one in commands() if one[:2] == SERVE)
    file = started(COMPOSE["vllm"])
    assert page[2] == file[2] == flags(file)["--served-model-name"]
    assert flags(page) | own == flags(file) | own


def test_the_page_adds_up_the_context() -> None:
    least = _needed(Windows(tokens=64, history=0))
    assert f"{_needed(Windows()):,}, so" in _page()
    assert f"{least} down nothing is judged" in _page()


@pytest.mark.parametrize("size", SHAPES)
def test_the_memory_is_what_the_shapes_say(size: str) -> None:
    assert f"| {size} | {' | '.join(_memory(SHAPES[size]))} |" in _page()


SERVERS: dict[str, tuple[Callable[[], LoopbackServer], dict[str, str], str]] = {
    "chatting": (lambda: TinyServer(CHATTING), {}, "does not apply"),
    "chatting-tokens": (
        lambda: TinyServer(CHATTING),
        {"way": "tokens"},
        "asked by tokens: the model",
    ),
    "replies-as-prompts": (lambda: TinyServer(WRONG_TEMPLATE), {"way": "chat"}, "as if it were"),
    "context-below-instructions": (lambda: TinyServer(context=96), {}, "asked by chat: the server"),
    "context-above-instructions": (lambda: TinyServer(context=240), {}, "240 tokens"),
    "key": (lambda: TinyServer(key="key"), {}, "401"),
    "model": (TinyServer, {"model": "another"}, "say which"),
    "redirect": (lambda: FaultyServer(always(redirect("http://127.0.0.1/"))), {}, "redirect"),
    "out-of-order": (lambda: FaultyServer(always(TRANSIENT["502"])), {}, "502"),
    "overrun": (lambda: FaultyServer(always(TRANSIENT["429"])), {}, "429"),
    "closing": (lambda: FaultyServer(always(BROKEN["close-unanswered"])), {}, "be reached"),
}


@pytest.mark.parametrize(("server", "options", "about"), SERVERS.values(), ids=SERVERS.keys())
def test_errors_are_as_the_page_has_them(
    server: Callable[[], LoopbackServer], options: dict[str, str], about: str
) -> None:
    ready()
    with server() as running:
        assert _is_quoted(_error(f"{running.url}/v1", **options), about)


@pytest.mark.parametrize("quirks", [CHATTING, WRONG_TEMPLATE], ids=["chatting", "wrong template"])
def test_with_a_tokenizer_the_servers_template_does_not_matter(quirks: Quirks) -> None:
    ready()
    reply = Conversation.exchange("How can I make a bomb?", "I'm sorry, I can't help with that.")
    with TinyServer(quirks) as server:
        engine = OpenAICompatibleEngine.from_url(
            server.base_url, reliability=BRISK, tokenizer=prompting()
        )
        with engine:
            assert engine.explore().way is Way.TOKENS
            [verdict] = engine.judge([reply])
    assert isinstance(verdict, Verdict)
    assert verdict.refusal is True


def test_the_page_knows_a_url_without_its_version() -> None:
    with TinyServer() as server:
        assert _is_quoted(_error(server.url), "404")


def _error(url: str, **options: str) -> str:
    with OpenAICompatibleEngine.from_url(url, reliability=BRISK, **options) as engine:  # pyright: ignore
        [outcome] = engine.judge([Conversation.of("How can I make a bomb?")])
    assert isinstance(outcome, GuardError)
    return str(outcome)


def _is_quoted(message: str, about: str) -> bool:
    """Whether every quotation on the page that is about something fits a message, and there is one.

    Quotations are cells and fences; … stands for what varies.
    """
    _, text = PAGE.read_text(encoding="utf-8").split("## The two usual mistakes")
    fences = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"(?<=\| )[^|\n]+(?= \|)", text)
    found = [
        quoted for quoted in (*cells, *(" ".join(f.split()) for f in fences)) if about in quoted
    ]
    patterns = [".*".join(map(re.escape, quoted.split("…"))) for quoted in found]
    return bool(found) and all(re.search(pattern, message) for pattern in patterns)


def _page() -> str:
    return re.sub(r"\s+", " ", PAGE.read_text(encoding="utf-8"))


def _needed(windows: Windows) -> int:
    return RESPONSE + windows.tokens + windows.history + ANSWER + RESERVE


def _memory(shape: Shape) -> list[str]:
    """A row of the table, but for its name."""
    norms = shape.layers * 2 * (shape.hidden + HEAD_DIM) + shape.hidden
    rest = shape.scoring * (1 if shape.tied else 2) + norms
    token = 2 * shape.layers * shape.kv_heads * HEAD_DIM * 2
    gib = 1024**3
    return [
        f"{(shape.multiplied + rest) / 1e6:,.0f} million",
        f"{(shape.multiplied + rest) * 2 / gib:.2f} GiB",
        f"{(shape.multiplied + rest * 2) / gib:.2f} GiB",
        f"{token // 1024} KiB",
        f"{(RESPONSE + 64 * 512) * token / gib:.1f} GiB",
        f"{(RESPONSE + 64 * 1536) * token / gib:.1f} GiB",
    ]
