"""What guarding parts of LlamaIndex costs beside the judging: the same with and without a guard.

The safety engine and the language model answer at once, so that only the software is measured. The
contenders of a case take turns. Milliseconds are medians.

    python -m benchmarks.llama_index
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import NodeWithScore, TextNode

from guardrails_qwen import Guard
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import NGramEmbedding, WritingLLM, call
from llama_index_guardrails_qwen import (
    GuardedLLM,
    GuardPostprocessor,
    guard_chat_engine,
    guard_query_engine,
    guarded_tools,
)

Run = Callable[[], object]
Case = Mapping[str, Callable[[], Run]]
"""What is compared, by name: each makes a fresh contender, whose run is timed."""

WORDS = 100
"""Of an answer, one a chunk."""

ANSWER = "word " * WORDS
TEXTS, TOKENS = Guard(ScriptedEngine()), Guard(ScriptedStreamEngine())


def search(query: str) -> str:
    """Search."""
    return f"about {query}"


def query(guard: Guard | None, *, streaming: bool) -> Run:
    """A question to an index of ten documents."""
    documents = [Document(text=f"Document {number} is about cats.") for number in range(10)]
    index: Any = VectorStoreIndex.from_documents(documents, embed_model=NGramEmbedding())
    llm = WritingLLM(replies=[ANSWER])
    engine = index.as_query_engine(llm=llm, streaming=streaming)
    guarded = guard_query_engine(engine, guard) if guard else engine
    return lambda: str(guarded.query("What are cats?"))


def chat(guard: Guard | None) -> Run:
    """One more turn of a chat that streams, behind twenty others."""
    memory = ChatMemoryBuffer(token_limit=100_000)
    llm = WritingLLM(replies=[ANSWER])
    engine: Any = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    guarded = guard_chat_engine(engine, guard) if guard else engine
    for number in range(20):
        guarded.chat(f"Question {number}")
    return lambda: "".join(guarded.stream_chat("What are cats?").response_gen)


def agent(guard: Guard | None, history: int) -> Run:
    """An agent that calls a tool once, then answers."""
    said = [
        ChatMessage(role=role, content=f"Message {number}")
        for number in range(history // 2)
        for role in (MessageRole.USER, MessageRole.ASSISTANT)
    ]
    known: GuardedLLM | None = None

    async def run() -> str:
        nonlocal known
        llm = WritingLLM(replies=[[call("search", query="cats")], ANSWER])
        tools: list[Any] = [search]
        model: Any = llm
        if guard:
            known = GuardedLLM(inner=llm, guard=guard) if known is None else known
            known.inner = llm
            model, tools = known, list(guarded_tools(tools, guard))
        agent: Any = FunctionAgent(llm=model, tools=tools)
        return str(await agent.run(user_msg="What are cats?", chat_history=said))

    return lambda: asyncio.run(run())


def nodes(**options: Any) -> Run:
    """Ten nodes of a retriever, no two runs the same ones unless they shall be."""
    again = options.pop("again", False)
    judge = GuardPostprocessor(guard=TEXTS, **options)
    rounds = iter(range(1_000_000))

    def run() -> object:
        mark = 0 if again else next(rounds)
        found = [
            NodeWithScore(node=TextNode(text=f"Chunk {mark} {number}", metadata={"file": "a.txt"}))
            for number in range(10)
        ]
        return judge.postprocess_nodes(found)

    return run


CASES: dict[str, Case] = {
    "query engine": {
        "no guard": lambda: query(None, streaming=False),
        "texts": lambda: query(TEXTS, streaming=False),
        "tokens": lambda: query(TOKENS, streaming=False),
    },
    "query engine, streaming": {
        "no guard": lambda: query(None, streaming=True),
        "texts": lambda: query(TEXTS, streaming=True),
        "tokens": lambda: query(TOKENS, streaming=True),
    },
    "chat engine, streaming": {
        "no guard": lambda: chat(None),
        "texts": lambda: chat(TEXTS),
        "tokens": lambda: chat(TOKENS),
    },
    "agent": {
        "no guard": lambda: agent(None, 0),
        "texts": lambda: agent(TEXTS, 0),
        "tokens": lambda: agent(TOKENS, 0),
    },
    "agent, 200 messages before": {
        "no guard": lambda: agent(None, 200),
        "texts": lambda: agent(TEXTS, 200),
        "tokens": lambda: agent(TOKENS, 200),
    },
    "ten nodes": {
        "new": nodes,
        "known": lambda: nodes(again=True),
        "known, signed": lambda: nodes(again=True, secret="secret"),
    },
}


def milliseconds(case: Case, rounds: int) -> dict[str, float]:
    """The median of each contender's rounds, which take turns."""
    runs = {name: make() for name, make in case.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            started = time.perf_counter()
            run()
            if number:  # the first warms up
                times[name].append((time.perf_counter() - started) * 1_000)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds: int = parser.parse_args().rounds
    for name, case in CASES.items():
        found = milliseconds(case, rounds)
        base = next(iter(found.values()))
        told = ", ".join(f"{one} {ms:.1f} ms ({ms / base:.1f}×)" for one, ms in found.items())
        print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main()
