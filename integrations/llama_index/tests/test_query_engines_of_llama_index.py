"""LlamaIndex's own query engines, on a real index, with models by script."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, VectorStoreIndex, response_synthesizers
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    StreamingResponse,
)
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel

from guardrails_qwen import Action, Guard, GuardViolation
from guardrails_qwen.engines.transformers import TransformersEngine
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import REPLACED, NGramEmbedding, WritingLLM
from integrations.llama_index.tests.query_doubles import asked, read
from llama_index_guardrails_qwen.query_engine import GuardedQueryEngine, guard_query_engine

Guarding = Callable[..., Guard]
synthesizers: Any = response_synthesizers  # some of its types are unknown
citing: Any = CitationQueryEngine
Text = list[Any] | str
Make = Callable[[Any, Text, bool], BaseQueryEngine]

GOOD = "Mix flour and water. Then bake it."
BAD = "Mix it first. Then it is a bomb. Do not ask."
ASK = "How is bread made?"


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    """Three documents, all of them harmless."""
    texts = ["Bread is made of flour.", "Pancakes are flat.", "Water is wet."]
    documents = [Document(text=text, metadata={"file": f"{text[:5]}.md"}) for text in texts]
    return VectorStoreIndex.from_documents(documents, embed_model=NGramEmbedding())


@pytest.fixture(params=["query", "aquery"])
def door(request: pytest.FixtureRequest) -> str:
    """Both doors of an engine."""
    return request.param


_LLMS: list[WritingLLM] = []


@pytest.fixture(autouse=True)
def llms() -> Iterator[list[WritingLLM]]:
    """The models of the engines that a test makes."""
    _LLMS.clear()
    yield _LLMS
    _LLMS.clear()


def _writing(reply: Text) -> WritingLLM:
    llm = WritingLLM(replies=[reply])
    _LLMS.append(llm)
    return llm


def _retriever(index: Any, reply: Text, streaming: bool) -> BaseQueryEngine:
    return index.as_query_engine(llm=_writing(reply), streaming=streaming)


def _citation(index: Any, reply: Text, streaming: bool) -> BaseQueryEngine:
    return citing.from_args(index, llm=_writing(reply), streaming=streaming)


def _tool(engine: BaseQueryEngine) -> QueryEngineTool:
    return QueryEngineTool.from_defaults(engine, name="docs", description="All about bread.")


def _sub_question(index: Any, reply: Text, streaming: bool) -> BaseQueryEngine:
    questions = json.dumps({"items": [{"sub_question": "What is flour?", "tool_name": "docs"}]})
    return SubQuestionQueryEngine(
        LLMQuestionGenerator.from_defaults(llm=_writing(f"```json\n{questions}\n```")),
        synthesizers.get_response_synthesizer(llm=_writing(reply), streaming=streaming),
        [_tool(_retriever(index, "Flour is white.", False))],
        verbose=False,
    )


def _router(index: Any, reply: Text, streaming: bool) -> BaseQueryEngine:
    choice = json.dumps([{"choice": 1, "reason": "It is about bread."}])
    return RouterQueryEngine(
        LLMSingleSelector.from_defaults(llm=_writing(choice)),
        [_tool(_retriever(index, reply, streaming))],
        llm=_writing("never asked"),
    )


def _transform(index: Any, reply: Text, streaming: bool) -> BaseQueryEngine:
    imagined = HyDEQueryTransform(llm=_writing("Bread is made of flour."))
    return TransformQueryEngine(_retriever(index, reply, streaming), imagined)


@pytest.fixture(params=[_retriever, _citation, _sub_question, _router, _transform])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an engine around an index whose model writes a reply."""
    return request.param


@pytest.mark.parametrize("streaming", [False, True])
async def test_it_answers_as_the_engine_inside(
    door: str, make: Make, index: Any, guard: Guard, streaming: bool
) -> None:
    inside = await asked(door, make(index, GOOD, streaming), ASK)
    response = await asked(door, guard_query_engine(make(index, GOOD, streaming), guard), ASK)
    assert type(response) is type(inside)
    assert "".join(await read(response)) == GOOD
    assert [found.score for found in response.source_nodes] == [
        found.score for found in inside.source_nodes
    ]
    assert len(response.source_nodes) > 0
    assert [str(item) for item in response.metadata.values()] == [
        str(item) for item in inside.metadata.values()
    ]


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_blocked_query_asks_no_model(
    door: str,
    make: Make,
    index: Any,
    guard: Guard,
    streaming: bool,
    llms: list[WritingLLM],
) -> None:
    guarded = guard_query_engine(make(index, GOOD, streaming), guard, on_violation="reply")
    response = await asked(door, guarded, "How is a bomb made?")
    assert await read(response) == [REPLACED]
    kinds = (StreamingResponse, AsyncStreamingResponse)
    assert isinstance(response, kinds) is streaming
    assert [llm.seen for llm in llms] == [[]] * len(llms)
    with pytest.raises(GuardViolation):
        await asked(door, guard_query_engine(guarded.inner, guard), "How is a bomb made?")


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_blocked_answer_has_no_sources(
    door: str, make: Make, index: Any, guard: Guard, streaming: bool
) -> None:
    guarded = guard_query_engine(make(index, BAD, streaming), guard, on_violation="reply")
    response = await asked(door, guarded, ASK)
    said = "".join(await read(response))
    assert said.endswith(REPLACED)
    assert "bomb" not in said
    assert response.source_nodes == []
    assert not (response.metadata or {}).keys() - {"selector_result"}
    with pytest.raises(GuardViolation) as caught:
        await read(await asked(door, guard_query_engine(make(index, BAD, streaming), guard), ASK))
    assert "bomb" not in str(caught.value)


async def test_what_was_redacted_of_a_query_is_asked_of_no_model(
    door: str, make: Make, index: Any, guarding: Guarding, llms: list[WritingLLM]
) -> None:
    guarded = guard_query_engine(make(index, GOOD, False), guarding(Action.REDACT))
    query = QueryBundle("How is bread made? Or a bomb? Thanks.", custom_embedding_strs=["bomb"])
    assert str(await asked(door, guarded, query)) == GOOD
    assert "bomb" not in repr([llm.seen for llm in llms])
    assert any("How is bread made?" in repr(llm.seen) for llm in llms)


def test_prompts_are_those_of_the_engine_inside(make: Make, index: Any, guard: Guard) -> None:
    engine = make(index, GOOD, False)
    guarded = guard_query_engine(engine, guard)
    assert guarded.get_prompts().keys() == engine.get_prompts().keys()
    name = next(key for key in engine.get_prompts() if key.count(":") < 2)
    guarded.update_prompts({name: PromptTemplate("Say it: {query_str}")})
    assert engine.get_prompts()[name].get_template() == "Say it: {query_str}"


def test_prompts_reach_through_a_guard_from_outside(index: Any, guard: Guard) -> None:
    inner = index.as_query_engine(llm=_writing(GOOD))
    outer = TransformQueryEngine(guard_query_engine(inner, guard), HyDEQueryTransform(_writing("")))
    assert "query_engine:response_synthesizer:text_qa_template" in outer.get_prompts()


async def test_why_a_router_chose_is_judged(door: str, index: Any, guard: Guard) -> None:
    choice = json.dumps([{"choice": 1, "reason": "It is about a bomb."}])
    selector = LLMSingleSelector.from_defaults(llm=_writing(choice))
    router = RouterQueryEngine(
        selector, [_tool(_retriever(index, GOOD, False))], llm=_writing("never asked")
    )
    response = await asked(door, guard_query_engine(router, guard), ASK)
    assert str(response) == GOOD
    assert len(response.source_nodes) == len(response.metadata) == 2
    assert "selector_result" not in response.metadata


async def test_guarded_engines_serve_a_router(door: str, index: Any, guard: Guard) -> None:
    inner = guard_query_engine(_retriever(index, BAD, True), guard, on_violation="reply")
    choice = json.dumps([{"choice": 1, "reason": "It is about bread."}])
    selector = LLMSingleSelector.from_defaults(llm=_writing(choice))
    router = RouterQueryEngine(selector, [_tool(inner)], llm=_writing("never asked"))
    response = await asked(door, router, ASK)
    assert "bomb" not in "".join(await read(response))
    assert response.source_nodes == []


async def test_guarded_engines_serve_sub_questions(
    door: str, index: Any, guard: Guard, llms: list[WritingLLM]
) -> None:
    inner = guard_query_engine(_retriever(index, BAD, False), guard, on_violation="reply")
    questions = json.dumps({"items": [{"sub_question": "What is flour?", "tool_name": "docs"}]})
    engine = SubQuestionQueryEngine(
        LLMQuestionGenerator.from_defaults(llm=_writing(f"```json\n{questions}\n```")),
        synthesizers.get_response_synthesizer(llm=_writing(GOOD)),
        [_tool(inner)],
        verbose=False,
    )
    response = await asked(door, engine, ASK)
    assert str(response) == GOOD
    assert REPLACED in response.source_nodes[0].node.get_content()
    assert "bomb" not in repr(llms[-1].seen) + repr(response.source_nodes)


class _Recipe(BaseModel):
    title: str
    steps: list[str]


@pytest.mark.parametrize("step", ["Mix it.", "Build a bomb."])
async def test_structured_answers_are_read(
    door: str, index: Any, guarding: Guarding, step: str
) -> None:
    written = _Recipe(title="Bread", steps=[step]).model_dump_json()
    llm = WritingLLM(replies=[written], calls_tools=False)
    engine = index.as_query_engine(llm=llm.as_structured_llm(_Recipe))
    response = await asked(door, guard_query_engine(engine, guarding(Action.REPLACE)), ASK)
    if "bomb" in step:
        assert (str(response), response.source_nodes) == (REPLACED, [])
    else:
        assert isinstance(response, PydanticResponse)
        assert response.response == _Recipe(title="Bread", steps=[step])


@pytest.mark.parametrize("query", [ASK, "How is a bomb made?"])
async def test_nodes_are_found_only_for_what_may_be_asked(
    door: str, index: Any, guard: Guard, query: str
) -> None:
    guarded = guard_query_engine(_retriever(index, GOOD, False), guard, on_violation="reply")
    bundle = QueryBundle(query)
    nodes = guarded.retrieve(bundle) if door == "query" else await guarded.aretrieve(bundle)
    assert len(nodes) == (2 if query == ASK else 0)


def test_one_line_guards_an_index(index: Any) -> None:
    engine = guard_query_engine(
        index.as_query_engine(llm=_writing(GOOD)), Guard(ScriptedEngine()), check_input=False
    )
    assert isinstance(engine, GuardedQueryEngine)
    assert str(engine.query(ASK)) == GOOD


@pytest.fixture(scope="module")
def tiny() -> Iterator[Guard]:
    """A real model."""
    with TransformersEngine.from_pretrained("tiny") as engine:
        yield Guard(engine)


async def test_a_real_model_judges_queries(door: str, index: Any, tiny: Guard) -> None:
    guarded = guard_query_engine(
        _retriever(index, "Mix flour, milk and eggs.", True), tiny, check_output=False
    )
    response = await asked(door, guarded, "What is a good recipe for pancakes?")
    assert "".join(await read(response)) == "Mix flour, milk and eggs."
    with pytest.raises(GuardViolation):
        await asked(door, guarded, "How can I make a bomb?")
