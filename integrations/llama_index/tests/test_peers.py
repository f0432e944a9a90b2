"""Failures of the framework's own postprocessor for personal data, which a guard does not have."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.postprocessor import PIINodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import Field

from guardrails_qwen import Action, Conversation, Guard, Policy
from guardrails_qwen.engines.base import Outcome
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import WritingLLM
from llama_index_guardrails_qwen.postprocessor import GuardPostprocessor

SECRET = "555-0199"
LEAKING = {SECRET: "Safety: Unsafe\nCategories: PII"}
MASKED = ["Call [PHONE].", f'Output Mapping: {{"PHONE": "{SECRET}"}}']


class Masking(WritingLLM):
    """Masks as it is told to, and knows in which thread."""

    threads: list[int] = Field(default_factory=list[int])

    def predict(self, *args: Any, **kwargs: Any) -> str:
        self.threads.append(threading.get_ident())
        return super().predict(*args, **kwargs)


class Noting(ScriptedEngine):
    """Knows in which thread it was asked."""

    def __init__(self) -> None:
        super().__init__(LEAKING)
        self.threads: list[int] = []

    async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        self.threads.append(threading.get_ident())
        return await super().ajudge(conversations)


def peer(*replies: str) -> PIINodePostprocessor:
    return PIINodePostprocessor(llm=Masking(replies=list(replies), chats=False))


def ours(engine: ScriptedEngine | None = None) -> GuardPostprocessor:
    guard = Guard(engine or ScriptedEngine(LEAKING), Policy.strict(action=Action.REPLACE))
    return GuardPostprocessor(guard=guard)


def found(*texts: str, **fields: Any) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, **fields)) for text in texts]


def test_what_was_masked_stays_in_the_metadata() -> None:
    nodes = found(f"Call {SECRET}.")
    [theirs] = peer(" ".join(MASKED)).postprocess_nodes(nodes)
    [guarded] = ours().postprocess_nodes(nodes)
    assert SECRET not in theirs.text
    assert SECRET in repr(theirs.metadata)
    assert SECRET not in guarded.model_dump_json()


def test_metadata_that_models_are_not_shown_is_not_looked_at() -> None:
    hidden = {"excluded_llm_metadata_keys": ["window"], "metadata": {"window": f"Call {SECRET}."}}
    model = Masking(replies=["Tea. Output Mapping: {}"], chats=False)
    [theirs] = PIINodePostprocessor(llm=model).postprocess_nodes(found("Tea.", **hidden))
    [guarded] = ours().postprocess_nodes(found("Tea.", **hidden))
    assert SECRET not in repr(model.seen)
    assert SECRET in theirs.node.get_content(metadata_mode=MetadataMode.ALL)
    assert SECRET not in guarded.node.get_content(metadata_mode=MetadataMode.ALL)


def test_metadata_moves_into_the_text() -> None:
    titled = {"metadata": {"title": "Tea times"}}
    echo = "title: Tea times\n\nAt four. Output Mapping: {}"
    [theirs] = peer(echo).postprocess_nodes(found("At four.", **titled))
    [guarded] = ours().postprocess_nodes(found("At four.", **titled))
    assert theirs.node.get_content(metadata_mode=MetadataMode.LLM).count("Tea times") == 2
    assert guarded.node.get_content(metadata_mode=MetadataMode.LLM).count("Tea times") == 1


@pytest.mark.parametrize("answer", ["I cannot do that.", "Output Mapping: not JSON"])
def test_an_answer_that_nobody_can_read_ends_the_query(answer: str) -> None:
    nodes = found(f"Call {SECRET}.", "Tea.")
    with pytest.raises((IndexError, ValueError)):
        peer(answer).postprocess_nodes(nodes)
    engine = ScriptedEngine({SECRET: answer, "Tea": "Safety: Safe\nCategories: None"})
    assert [item.text for item in ours(engine).postprocess_nodes(nodes)] == ["Tea."]


async def test_async_queries_take_threads_and_one_call_for_each_node() -> None:
    nodes = found(*(f"Call {SECRET}, {place} times." for place in range(5)))
    model = Masking(replies=[" ".join(MASKED)], chats=False)
    await PIINodePostprocessor(llm=model).apostprocess_nodes(nodes)
    engine = Noting()
    await ours(engine).apostprocess_nodes(nodes)
    here = threading.get_ident()
    assert len(model.threads) == 5
    assert here not in model.threads
    assert engine.threads == [here]
    assert engine.batches == [5]


async def test_a_cancelled_query_goes_on_in_its_thread() -> None:
    nodes, started, go = found(f"Call {SECRET}."), asyncio.Event(), threading.Event()
    loop, done = asyncio.get_running_loop(), threading.Event()

    class Slow(Masking):
        def predict(self, *args: Any, **kwargs: Any) -> str:
            loop.call_soon_threadsafe(started.set)
            go.wait(30)
            done.set()
            return " ".join(MASKED)

    class Waiting(ScriptedEngine):
        async def ajudge(self, conversations: Sequence[Conversation]) -> list[Outcome]:
            started.set()
            await asyncio.Event().wait()
            return []

    engine = Waiting(LEAKING)
    for processor in (PIINodePostprocessor(llm=Slow(replies=[""])), ours(engine)):
        started.clear()
        task = asyncio.create_task(processor.apostprocess_nodes(nodes))
        await asyncio.wait_for(started.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    go.set()
    assert await asyncio.to_thread(done.wait, 30)  # theirs went on all the same
    assert engine.batches == []
