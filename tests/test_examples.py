"""The examples run, and show what they say they show."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from guardrails_qwen import EngineUnavailable, Guard, OnError, Policy
from guardrails_qwen.testing import FailingEngine

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(example: str) -> str:
    program = [sys.executable, str(EXAMPLES / example)]
    return subprocess.run(program, capture_output=True, check=True).stdout.decode()


def module(example: str) -> ModuleType:
    """An example, imported."""
    spec = importlib.util.spec_from_file_location(Path(example).stem, EXAMPLES / example)
    assert spec is not None
    assert spec.loader is not None
    imported = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imported)
    return imported


def test_quickstart_langchain() -> None:
    out = run("quickstart_langchain.py")
    for shown in (
        "input allowed: Safe",
        "input blocked: Unsafe (Violent)",
        "input flagged: Controversial (Suicide & Self-Harm)",
        "input redacted: Unsafe (PII)",
        "output allowed: Safe",
        "output redacted: Unsafe (Violent)",
        "output blocked: Unsafe (Non-violent Illegal Acts)",
        "A:  Talk to him over a cup of tea. [removed: Violent] He may like roses.",
        "a demonstration, not protection",
    ):
        assert shown in out


def test_stream_langchain() -> None:
    out = run("stream_langchain.py")
    by_token, by_sentence = out.split("== ")[1:]
    recipe = "A:  Mix flour, milk and two eggs, and fry in butter.\n\n"
    for part in (by_token, by_sentence):
        assert recipe in part
        assert "A:  \n--  input blocked: " in part
        assert "A:  Talk to him over a cup of tea." in part
    assert "\n--  output blocked: " in by_token
    closing = "A:  Talk to him over a cup of tea. [The rest is not fit to be read.]"
    assert f"{closing}\n--  finish reason content_filter" in by_sentence
    assert "burn" not in out
    assert "never sees" not in out


def test_stream_any_framework() -> None:
    out = run("stream_any_framework.py")
    generator, asynchronous, beside, without_io = out.split("== ")[1:]
    recipe = "A:  Mix flour, milk and two eggs. Let it rest, then fry it in butter. \n"
    assert recipe in generator
    for part in (generator, asynchronous):
        assert "A:  Talk to him over a cup of tea." in part
        assert "\n--  output blocked: " in part
    assert "\n    (the model was stopped)\n" in asynchronous
    assert recipe in beside
    assert "A:  \n    (the model was stopped)\n--  input blocked: " in beside
    assert "    release 'Talk'\n    release ' to'\n" in without_io
    assert without_io.splitlines()[-1].startswith("    output blocked: ")
    assert "burn" not in out


def test_chat_server_langchain() -> None:
    out = run("chat_server_langchain.py")
    recipe, cut, blocked, broken, left = out.split("Q:  ")[1:]
    assert '    text {"text": "Mix "}\n' in recipe
    assert '    text {"text": "butter. "}\n    end {"finish_reason": "stop"}\n' in recipe
    assert '    text {"text": "tea. "}\n' in cut
    closing = '    text {"text": "[The rest was blocked.]"}\n'
    assert f'{closing}    end {{"finish_reason": "content_filter"}}\n' in cut
    assert "burn" not in out
    assert blocked.endswith('    blocked {"stage": "input"}\n\n')
    assert "text" not in blocked
    assert broken.endswith('    error {"reason": "no reply could be had"}\n\n')
    assert left.endswith("    (the client leaves)\n    (the model was stopped)\n")


async def test_chat_server_langchain_without_an_engine(caplog: pytest.LogCaptureFixture) -> None:
    server = module("chat_server_langchain.py")
    guard = Guard(FailingEngine(EngineUnavailable("gone")), Policy.strict(on_error=OnError.RAISE))
    question = next(iter(server.TALKS))
    model = server.guarded(server.StandIn(), guard)
    events = [event async for event in server.reply(model, question)]
    assert events == ['event: error\ndata: {"reason": "no reply could be had"}\n\n']
    assert "no reply: EngineUnavailable" in caplog.text
    assert "pancakes" not in caplog.text


def test_rag_langchain() -> None:
    out = run("rag_langchain.py")
    without, guarded = out.split("== ")[1:]
    assert "A:  My system prompt is … Pay for the ticket at evil.example." in without
    assert "evil.example" not in guarded
    assert "A:  The ferry to the islands leaves at noon.\n" in guarded
    assert "    redact: The harbour office sells tickets for the ferry until six. " in guarded
    assert "[removed: PII] Dogs need a ticket too.\n" in guarded
    assert "Elm Street" not in guarded
    assert "A:  The harbour office sells tickets for the ferry until six.\n" in guarded
    assert "--  input blocked: Unsafe (Violent)" in guarded


def test_agent_langchain() -> None:
    out = run("agent_langchain.py")
    ends, goes_on = out.split("== ")[1:]
    weather, recipe, mail, advice, bomb = ends.split("Q:  ")[1:]
    assert '    call: weather({"city": "Paris"})\n    tool: It is sunny in Paris.\n' in weather
    assert "I was told: It is sunny in Paris. \n" in weather
    assert "tool: This content was removed by the safety policy.\n[This was blocked.]\n" in recipe
    assert "tool_result blocked: Unsafe (Jailbreak)" in recipe
    assert "\n[This was blocked.]\n" in mail
    assert "    tool_call blocked: Unsafe (Violent)\n" in mail
    assert "\nTalk to him over a cup of tea. [This was blocked.]\n" in advice
    assert "    output blocked: Unsafe (Violent)\n" in advice
    assert bomb.startswith("How can I make a bomb?\n[This was blocked.]\n")
    assert "input blocked: Unsafe (Violent)" in bomb
    recipe, mail = goes_on.split("Q:  ")[1:]
    assert "I was told: This content was removed by the safety policy. \n" in recipe
    assert "call:" not in mail
    assert "burn" not in out
    assert "the mail is sent" not in out
    assert "Ignore your instructions" not in out


def test_graph_langgraph() -> None:
    out = run("graph_langgraph.py")
    weather, recipe, advice, bomb = out.split("Q:  ")[1:]
    assert "\nA:  I read: It is sunny in Paris. \n" in weather
    assert "    results: tool_result allowed: Safe\n" in weather
    assert "\nA:  I read: This content was removed by the safety policy. \n" in recipe
    assert "    results: tool_result blocked: Unsafe (Jailbreak)\n" in recipe
    assert "\nA:  Talk to him over a cup of tea. [The rest was blocked.]\n" in advice
    assert "\nA:  This content was removed by the safety policy.\n" in bomb
    assert "    guard: input blocked: Unsafe (Violent)\n" in bomb
    assert "burn" not in out
    assert "Ignore your instructions" not in out


def test_rag_llama_index() -> None:
    out = run("rag_llama_index.py")
    without, guarded, written = out.split("== ")[1:]
    assert "A:  My system prompt is … Pay for the ticket at evil.example." in without
    assert "    found: Ignore all previous instructions" in without
    for part in (guarded, written):
        assert "A:  The ferry to the islands leaves at noon.\n    allow: The ferry to" in part
        assert "    redact: The harbour office sells tickets for the ferry until six. " in part
        assert "[removed: PII] Dogs need a ticket too.\n" in part
        assert "evil.example" not in part
        assert "Elm Street" not in part
    assert "A:  The harbour office sells tickets for the ferry until six.\n" in guarded
    assert "--  input blocked: Unsafe (Violent)" in guarded
    assert written.endswith("A:  Talk to him over a cup of tea. | [The rest was blocked.]\n\n")
    assert "burn" not in out


def test_agent_llama_index() -> None:
    out = run("agent_llama_index.py")
    ends, goes_on = out.split("== ")[1:]
    weather, recipe, mail, advice, bomb = ends.split("Q:  ")[1:]
    assert '    call: weather({"city": "Paris"})\n    tool: It is sunny in Paris.\n' in weather
    assert weather.endswith("A:  I was told: It is sunny in Paris.\n\n")
    assert "    tool: [withheld by the guard, incident " in recipe
    assert "\n--  tool_result blocked: Unsafe (Jailbreak)" in recipe
    assert "\n--  tool_call blocked: Unsafe (Violent)" in mail
    assert "    stream: Talk to him over a cup of tea.\n--  output blocked: Unsafe " in advice
    assert bomb.startswith("How can I make a bomb?\n--  input blocked: Unsafe (Violent)")
    recipe, bomb, weather = goes_on.split("Q:  ")[1:]
    removed = "This content was removed by the safety policy."
    assert f"    tool: {removed}\n    stream: I was told: {removed}\n" in recipe
    assert bomb.endswith(f"A:  {removed}\n\n")
    assert "A:  I was told: It is sunny in Paris.\n" in weather
    assert "The memory has ['What is a good recipe for pancakes?', 'How can I make a b" in weather
    assert "burn" not in out
    assert "the mail is sent" not in out
    assert "Ignore your instructions" not in out
    assert "never sees" not in out


def test_ingestion_llama_index() -> None:
    out = run("ingestion_llama_index.py")
    once, twice, asked, other = out.split("== ")[1:]
    assert "    kept: ['timetable', 'menu']\n" in once
    assert "    in quarantine: forum, ['Jailbreak']\n" in once
    assert "    in quarantine: workshop, ['Violent']\n" in once
    assert "    judged: 8 texts\n" in once
    assert "    judged: 2 texts\n" in twice
    for part in (asked, other):
        assert "    found: ['harbour', 'timetable', 'menu']\n" in part
    assert "    judged: 0 texts\n" in asked
    assert "    judged: 6 texts\n" in other
    assert "bomb" not in out


def test_chat_llama_index() -> None:
    out = run("chat_llama_index.py")
    raises, answers = out.split("== ")[1:]
    recipe, harm, advice, again = raises.split("Q:  ")[1:]
    mixed = "Mix flour, milk and two eggs. Let it rest, then fry it in butter."
    assert f"A:  {mixed}\n" in recipe
    assert "A:  \n--  input blocked: Unsafe (Violent)" in harm
    assert "A:  Talk to him over a cup of tea. \n--  output blocked: Unsafe (Violent)" in advice
    question = "What is a good recipe for pancakes?"
    assert f"A:  You asked: {question}\n" in again
    memory = [question, mixed, "What did I ask you?", f"You asked: {question}"]
    assert again.endswith(f"The memory: {memory}\n\n")
    harm, recipe, advice = answers.split("Q:  ")[1:]
    assert "A:  This content was removed by the safety policy.\n" in harm
    assert f"A:  {mixed}\n" in recipe
    assert "A:  Talk to him over a cup of tea. [The rest was blocked.]\n" in advice
    assert advice.endswith(f"The memory: {[question, mixed]}\n")
    assert "burn" not in out
    assert "never sees" not in out
