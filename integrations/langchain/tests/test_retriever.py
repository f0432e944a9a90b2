"""Of what a guarded retriever finds nobody hears more than may pass."""

import asyncio
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableConfig,
    RunnableLambda,
    RunnablePassthrough,
    ensure_config,
)
from langchain_core.tools import create_retriever_tool
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.context import collect_runs
from langchain_core.tracers.schemas import Run
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph  # pyright: ignore[reportMissingTypeStubs]
from pydantic import Field
from typing_extensions import TypedDict

from guardrails_qwen import Action, ConversationError, Guard, GuardViolation, Policy, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import REPLACED, UNSAFE, Door
from langchain_guardrails_qwen.documents import GuardDocumentCompressor, GuardDocumentTransformer
from langchain_guardrails_qwen.retriever import GuardedRetriever

NOTES = ["Tea is served at four.", "Take a bomb and light it. Tea is served at five.", "It rains."]


class Asking(BaseRetriever):
    """Asks another retriever, as those do that rewrite queries, and notes what it is told."""

    other: Runnable[str, list[Document]]
    queries: list[str] = Field(default_factory=list[str])
    told: list[object] = Field(default_factory=list[object])

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.queries.append(query)
        self.told.extend(run_manager.handlers)
        return self.other.invoke(query, {"callbacks": run_manager.get_child()})

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.queries.append(query)
        self.told.extend(run_manager.handlers)
        return await self.other.ainvoke(query)


class Spy(BaseTracer):
    """Keeps all that a tracer is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def _on_retriever_end(self, run: Run) -> None:
        self.told.append(run.model_dump_json(exclude={"parent_run", "serialized"}))

    def _on_retriever_error(self, run: Run) -> None:
        self.told.append(run.model_dump_json(exclude={"parent_run", "serialized"}))

    def _persist_run(self, run: Run) -> None:
        self.told.append(run.model_dump_json(exclude={"parent_run", "serialized"}))


@pytest.fixture
def store() -> InMemoryVectorStore:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(note, id=str(i)) for i, note in enumerate(NOTES)])
    return store


@pytest.fixture
def inner(store: InMemoryVectorStore) -> Asking:
    return Asking(other=store.as_retriever())


def guard(action: Action = Action.DROP, script: Any = None) -> Guard:
    return Guard(ScriptedEngine(script or {"bomb": UNSAFE}), Policy.strict(action=action))


def found(documents: list[Document]) -> set[str]:
    return {document.page_content for document in documents}


def metadata_of(run: Run) -> Any:
    return run.model_dump()["extra"]["metadata"]


@pytest.mark.parametrize(
    ("action", "left"),
    [
        pytest.param(Action.DROP, {NOTES[0], NOTES[2]}, id="drop"),
        pytest.param(Action.REPLACE, {NOTES[0], NOTES[2], REPLACED}, id="replace"),
        pytest.param(
            Action.REDACT,
            {NOTES[0], NOTES[2], "[removed: Violent] Tea is served at five."},
            id="redact",
        ),
    ],
)
async def test_nobody_hears_more_than_passes(
    door: Door, inner: Asking, action: Action, left: set[str]
) -> None:
    spy = Spy()
    [out] = await door(
        GuardedRetriever(inner=inner, guard=guard(action)), "tea?", {"callbacks": [spy]}
    )
    assert found(out) == left
    assert len(spy.told) == 2  # the end of the retriever's run, which is the whole trace
    assert all(text in told for told in spy.told for text in left)
    assert "bomb" not in str(spy.told)
    assert not any(isinstance(handler, Spy) for handler in inner.told)


async def test_in_a_chain_as_well(door: Door, inner: Asking) -> None:
    spy = Spy()
    retriever = GuardedRetriever(inner=inner, guard=guard())
    chain: Runnable[Any, Any] = RunnablePassthrough[Any]() | retriever | RunnableLambda(str)
    out = await door(chain, "tea?", {"callbacks": [spy]})
    assert NOTES[0] in str(out)
    assert NOTES[0] in str(spy.told)
    assert "bomb" not in f"{out} {spy.told}"


async def test_events_have_what_passes(inner: Asking) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard())
    chain: Runnable[Any, Any] = RunnablePassthrough[Any]() | retriever
    events = [event async for event in chain.astream_events("tea?", version="v2")]
    assert [e["name"] for e in events if e["event"] == "on_retriever_end"] == ["GuardedRetriever"]
    assert NOTES[0] in str(events)
    assert "bomb" not in str(events)


def test_the_inner_retriever_has_no_run(inner: Asking) -> None:
    with collect_runs() as collected:
        GuardedRetriever(inner=inner, guard=guard()).invoke("tea?")
    assert [run.name for run in collected.traced_runs] == ["GuardedRetriever"]


async def test_an_error_that_is_raised_says_nothing(door: Door, inner: Asking) -> None:
    spy = Spy()
    retriever = GuardedRetriever(inner=inner, guard=guard(), on_violation="raise")
    with pytest.raises(GuardViolation) as caught:
        await door(retriever, "tea?", {"callbacks": [spy]})
    assert "context dropped" in str(spy.told)
    assert "bomb" not in f"{caught.value} {spy.told}"


@pytest.mark.parametrize(
    ("action", "query", "decided", "tag"),
    [
        pytest.param(
            Action.FLAG,
            "tea?",
            {("input", "allow"), ("context", "allow"), ("context", "flag")},
            "flagged",
            id="documents",
        ),
        pytest.param(Action.DROP, "A bomb?", {("input", "drop")}, "dropped", id="a query"),
        pytest.param(
            Action.BLOCK, "A bomb?", {("input", "block")}, "blocked", id="a blocked query"
        ),
    ],
)
async def test_the_run_says_what_was_decided(
    door: Door, inner: Asking, action: Action, query: str, decided: Any, tag: str
) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard(action), check_query=True)
    with collect_runs() as collected:
        try:
            await door(retriever, query)
        except GuardViolation:
            assert action is Action.BLOCK
    [run] = collected.traced_runs
    notes = metadata_of(run)["guardrails_qwen"]
    assert {(note["stage"], note["action"]) for note in notes} == decided
    assert f"guardrails_qwen:{tag}" in (run.tags or [])
    assert not any("text" in note for note in notes)


async def test_a_run_that_raises_says_why(door: Door, inner: Asking) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard(), on_violation="raise")
    with collect_runs() as collected, pytest.raises(GuardViolation):
        await door(retriever, "tea?")
    assert "guardrails_qwen:dropped" in (collected.traced_runs[0].tags or [])


async def test_a_run_says_of_what_could_not_be_read(door: Door) -> None:
    def search(_: str) -> list[Document]:
        return [Document("bomb \ud800")]

    retriever = GuardedRetriever(inner=RunnableLambda(search), guard=guard())
    with collect_runs() as collected:
        assert await door(retriever, "tea?") == [[]]
    assert "guardrails_qwen:unjudged" in (collected.traced_runs[0].tags or [])


async def test_a_run_says_what_was_decided_before_something_failed(door: Door) -> None:
    def search(_: str) -> list[Document]:
        raise OSError("the store is down")

    judging = guard()
    retriever = GuardedRetriever(inner=RunnableLambda(search), guard=judging, check_query=True)
    with collect_runs() as collected, pytest.raises(OSError, match="down"):
        await door(retriever, "tea?")
    [note] = metadata_of(collected.traced_runs[0])["guardrails_qwen"]
    assert (note["stage"], note["action"]) == ("input", "allow")


async def test_what_a_store_holds_is_not_changed(
    door: Door, store: InMemoryVectorStore, inner: Asking
) -> None:
    await door(GuardedRetriever(inner=inner, guard=guard(Action.REDACT)), "tea?")
    assert all(entry["metadata"] == {} for entry in store.store.values())
    assert {entry["text"] for entry in store.store.values()} == set(NOTES)


@pytest.mark.parametrize(
    ("action", "asked"),
    [
        pytest.param(Action.FLAG, ["A bomb. Tea?"], id="flag"),
        pytest.param(Action.REDACT, ["[removed: Violent] Tea?"], id="redact"),
        pytest.param(Action.REPLACE, [REPLACED], id="replace"),
        pytest.param(Action.DROP, [], id="drop"),
    ],
)
async def test_a_query_is_asked_as_it_passes(
    door: Door, inner: Asking, action: Action, asked: list[str]
) -> None:
    judging = guard(action)
    retriever = GuardedRetriever(inner=inner, guard=judging, check_query=True)
    [out] = await door(retriever, "A bomb. Tea?")
    assert inner.queries == asked
    assert bool(out) is bool(asked)


async def test_a_blocked_query_asks_nobody(door: Door, inner: Asking) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard(Action.BLOCK), check_query=True)
    with pytest.raises(GuardViolation) as caught:
        await door(retriever, "A bomb?")
    assert caught.value.decision.stage is Stage.INPUT
    assert inner.queries == []


async def test_the_query_is_judged_only_if_that_is_asked_for(door: Door, inner: Asking) -> None:
    [out] = await door(GuardedRetriever(inner=inner, guard=guard(Action.BLOCK)), "A bomb?")
    assert found(out) == {NOTES[0], NOTES[2]}


async def test_documents_are_judged_with_the_query_that_was_admitted(
    door: Door, inner: Asking
) -> None:
    judging = guard(Action.REDACT)
    retriever = GuardedRetriever(inner=inner, guard=judging, check_query=True, with_query=True)
    [out] = await door(retriever, "A bomb. Tea?")
    engine: Any = judging.engine
    contexts = [c.messages[0].text for c in engine.seen if len(c.messages) == 2]
    assert set(contexts) == {"[removed: Violent] Tea?"}
    assert len(out) == 3


async def test_the_config_reaches_the_inner_retriever(
    door: Door, store: InMemoryVectorStore
) -> None:
    searched = ConfigurableField(id="search")
    inner = store.as_retriever().configurable_fields(search_kwargs=searched)
    retriever = GuardedRetriever(inner=inner, guard=guard())
    spy = Spy()
    config: RunnableConfig = {"configurable": {"search": {"k": 1}}, "callbacks": [spy]}
    [out] = await door(RunnablePassthrough[Any]() | retriever, "tea?", config)
    [alone] = await door(retriever, "tea?", config)
    assert len(out) <= 1
    assert out == alone
    assert "bomb" not in str(spy.told)


def test_callbacks_run_ids_and_names_do_not() -> None:
    seen = list[RunnableConfig]()

    def search(query: str, config: RunnableConfig) -> list[Document]:
        seen.append(config)
        return []

    retriever = GuardedRetriever(inner=RunnableLambda(search), guard=guard())
    handler = BaseCallbackHandler()
    config = {"callbacks": [handler], "run_name": "outer", "tags": ["a"], "metadata": {"b": 1}}
    retriever.invoke("tea?", config)  # pyright: ignore[reportArgumentType]
    [inner] = seen
    assert handler not in getattr(inner.get("callbacks"), "handlers", [])
    assert "run_name" not in inner
    assert (inner.get("tags"), (inner.get("metadata") or {})["b"]) == (["a"], 1)
    assert not ensure_config().get("callbacks")


def test_tags_metadata_and_names_are_those_of_the_inner_retriever(
    store: InMemoryVectorStore,
) -> None:
    inner = store.as_retriever(tags=["notes"], metadata={"owner": "us"})
    retriever = GuardedRetriever(inner=inner, guard=guard())
    with collect_runs() as collected:
        retriever.invoke("tea?")
    [run] = collected.traced_runs
    assert "notes" in (run.tags or [])
    told = metadata_of(run)
    assert told["owner"] == "us"
    assert told["ls_vector_store_provider"] == "InMemoryVectorStore"
    own = GuardedRetriever(inner=inner, guard=guard(), tags=["mine"], metadata={"x": 1})
    assert (own.tags, own.metadata) == (["mine"], {"x": 1})


async def test_what_returns_no_list_is_an_error(door: Door) -> None:
    def search(_: str) -> Any:
        return {"context": [Document("bomb")]}

    retriever = GuardedRetriever(inner=RunnableLambda(search), guard=guard())
    with pytest.raises(ConversationError, match="returned dict, not a list") as caught:
        await door(retriever, "tea?")
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize("colour", ["batch", "abatch"])
async def test_batches_keep_their_order_and_spare_their_neighbours(
    inner: Asking, colour: str
) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard(Action.BLOCK), check_query=True)
    queries = ["tea?", "A bomb?", "rain?"]
    config: RunnableConfig = {"max_concurrency": 2}
    if colour == "batch":
        out = retriever.batch(queries, config, return_exceptions=True)
    else:
        out = await retriever.abatch(queries, config, return_exceptions=True)
    assert [type(result) for result in out] == [list, GuardViolation, list]


async def test_many_at_once(inner: Asking) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard())
    spies = [Spy() for _ in range(50)]
    outs = await asyncio.gather(
        *(retriever.ainvoke(f"tea {i}?", {"callbacks": [spy]}) for i, spy in enumerate(spies))
    )
    assert all(found(out) == {NOTES[0], NOTES[2]} for out in outs)
    assert [f"tea {i}?" in spy.told[0] for i, spy in enumerate(spies)] == [True] * 50
    assert "bomb" not in str([spy.told for spy in spies])


async def test_inside_an_ensemble(door: Door, inner: Asking, store: InMemoryVectorStore) -> None:
    spy = Spy()
    retriever = GuardedRetriever(inner=inner, guard=guard(Action.REDACT))
    other = GuardedRetriever(inner=store.as_retriever(), guard=guard(Action.REDACT))
    ensemble = EnsembleRetriever(retrievers=[retriever, other], weights=[0.5, 0.5])
    [out] = await door(ensemble, "tea?", {"callbacks": [spy]})
    assert found(out) == {NOTES[0], NOTES[2], "[removed: Violent] Tea is served at five."}
    assert len(out) == 3
    assert "bomb" not in str(spy.told)


async def test_around_an_ensemble(door: Door, inner: Asking, store: InMemoryVectorStore) -> None:
    spy = Spy()
    ensemble = EnsembleRetriever(retrievers=[inner, store.as_retriever()], weights=[0.5, 0.5])
    retriever = GuardedRetriever(inner=ensemble, guard=guard())
    [out] = await door(retriever, "tea?", {"callbacks": [spy]})
    assert found(out) == {NOTES[0], NOTES[2]}
    assert "bomb" not in str(spy.told)


async def test_as_a_compressor(door: Door, inner: Asking) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=GuardDocumentCompressor(guard=guard()), base_retriever=inner
    )
    [out] = await door(retriever, "tea?")
    assert found(out) == {NOTES[0], NOTES[2]}


async def test_in_a_pipeline_of_compressors(door: Door, inner: Asking) -> None:
    script = {"rains": UNSAFE, "bomb": UNSAFE}
    pipeline = DocumentCompressorPipeline(
        transformers=[
            GuardDocumentTransformer(guard()),
            GuardDocumentCompressor(guard=guard(script=script)),
        ]
    )
    retriever = ContextualCompressionRetriever(base_compressor=pipeline, base_retriever=inner)
    [out] = await door(retriever, "tea?")
    assert found(out) == {NOTES[0]}


def test_a_compressor_leaves_the_first_retriever_overheard(inner: Asking) -> None:
    """Why there is `GuardedRetriever`: the documentation says so."""
    spy = Spy()
    retriever = ContextualCompressionRetriever(
        base_compressor=GuardDocumentCompressor(guard=guard()), base_retriever=inner
    )
    retriever.invoke("tea?", {"callbacks": [spy]})
    assert "bomb" in str(spy.told)


async def test_as_a_tool(inner: Asking) -> None:
    retriever = GuardedRetriever(inner=inner, guard=guard())
    tool = create_retriever_tool(retriever, "notes", "Searches the notes.")
    for out in (tool.invoke({"query": "tea?"}), await tool.ainvoke({"query": "tea?"})):
        assert NOTES[0] in out
        assert "bomb" not in out


class Search(TypedDict, total=False):
    """The state of a graph that searches."""

    query: str
    documents: list[Document]


def graph(search: Any, **settings: Any) -> Any:
    """A graph of one node."""
    builder: Any = StateGraph(Search)
    builder.add_node("search", search)
    builder.add_edge(START, "search")
    return builder.compile(**settings)


MODES = ["values", "updates", "messages", "custom", "debug"]


@pytest.mark.parametrize("colour", ["stream", "astream", "events"])
async def test_a_graph_that_searches_is_no_part_of_the_graph_around_it(colour: str) -> None:
    """LangGraph ties graphs together by their configs: streams, checkpoints and all."""

    def search(_: Search) -> Search:
        get_stream_writer()("a bomb is found")
        return {"documents": [Document(note) for note in NOTES]}

    inner: Runnable[Any, Any] = (
        RunnableLambda[str, Search](lambda query: {"query": query})
        | graph(search)
        | RunnableLambda[Search, Any](lambda state: state.get("documents"))
    )
    retriever = GuardedRetriever(inner=inner, guard=guard())

    def ask(state: Search) -> Search:
        return {"documents": retriever.invoke(state.get("query", ""))}

    async def aask(state: Search) -> Search:
        return {"documents": await retriever.ainvoke(state.get("query", ""))}

    saver = InMemorySaver()
    outer = graph(RunnableLambda(ask, aask), checkpointer=saver)
    config, query = {"configurable": {"thread_id": "1"}}, {"query": "tea?"}
    if colour == "stream":
        out = list(outer.stream(query, config, stream_mode=MODES, subgraphs=True))
    elif colour == "astream":
        chunks = outer.astream(query, config, stream_mode=MODES, subgraphs=True)
        out = [chunk async for chunk in chunks]
    else:
        out = [event async for event in outer.astream_events(query, config, version="v2")]
    assert NOTES[0] in str(out)
    assert "bomb" not in str(out)
    kept = f"{saver.storage} {saver.blobs} {saver.writes}"
    assert NOTES[0] in kept
    assert "bomb" not in kept
