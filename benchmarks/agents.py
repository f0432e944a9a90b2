"""What guarding an agent costs beside the judging: the same agent with and without a guard.

The engines and OpenAI's client answer at once, so that only the software is measured. The agents
stream, call a tool once and then answer; their runs take turns. Milliseconds are medians.

    python -m benchmarks.agents
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.tools import tool

from guardrails_qwen import Guard
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.agents.frameworks import create_agent
from integrations.langchain.tests.leaks.models import Reply, StreamingModel
from integrations.langchain.tests.leaks.subjects import PEERS
from langchain_guardrails_qwen.agents import GuardrailMiddleware

WORDS = 100
"""Of the answer, one a chunk."""

Middlewares = Callable[[], Sequence[Any]]


@tool
def search(query: str) -> str:
    """Search."""
    return f"about {query}"


def reply(messages: list[Any]) -> Reply:
    """A call of the tool first, then an answer."""
    if isinstance(messages[-1], HumanMessage):
        call = {"name": "search", "args": '{"query": "cats"}', "id": "call", "index": 0}
        return [AIMessageChunk(content="", tool_call_chunks=[call])]  # pyright: ignore[reportArgumentType]
    return [AIMessageChunk(content="word ") for _ in range(WORDS)]


def contenders() -> dict[str, Middlewares]:
    """The agents that are compared, by name."""
    tokens, texts = Guard(ScriptedStreamEngine()), Guard(ScriptedEngine())
    [theirs] = [s for s in PEERS if s.column == "OpenAIModerationMiddleware"]
    return {
        "no guard": list[Any],
        "GuardrailMiddleware, an engine that judges tokens": lambda: [GuardrailMiddleware(tokens)],
        "GuardrailMiddleware, an engine that judges texts": lambda: [GuardrailMiddleware(texts)],
        "OpenAIModerationMiddleware": theirs.middleware,
    }


def seconds(middleware: Sequence[Any], history: int) -> float:
    """How long one streamed run takes."""
    thread: list[AnyMessage] = []
    for turn in range(history // 2):
        thread += [HumanMessage("how?", id=f"h{turn}"), AIMessage("so.", id=f"a{turn}")]
    agent = create_agent(StreamingModel(script=reply), [search], middleware=middleware)
    given = {"messages": [*thread, HumanMessage("hi")]}
    gc.collect()
    started = time.perf_counter()
    for _ in agent.stream(given, stream_mode="messages"):
        pass
    return time.perf_counter() - started


def main() -> None:
    """Print a table for each length of the thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--history", type=int, nargs="+", default=[0, 100, 1000])
    options = parser.parse_args()
    made = contenders()
    for history in options.history:
        taken: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(options.rounds):
            for name, middleware in made.items():
                taken[name].append(seconds(middleware(), history))
        base = statistics.median(taken["no guard"])
        print(f"\n{history} messages before, {WORDS} chunks, {options.rounds} rounds\n")
        print("| agent | ms | over no guard, ms | ratio |\n|---|---|---|---|")
        for name, times in taken.items():
            median = statistics.median(times)
            over = (median - base) * 1e3
            print(f"| {name} | {median * 1e3:.1f} | {over:.1f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
