"""A guard in ingestion pipelines: caches, document stores and several processes."""

import os
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

from guardrails_qwen import Action, Conversation, EngineError, Guard, OnError, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import SCRIPT, UNSAFE, NGramEmbedding
from llama_index_guardrails_qwen.transform import GuardTransform
from llama_index_guardrails_qwen.verdict_notes import guard_note

Run = Callable[..., Awaitable[Sequence[BaseNode]]]

TEA, BOMB = "Tea is served at four.", "A bomb is in the tea."


@pytest.fixture(params=["run", "arun"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both doors of a pipeline."""

    async def door(pipeline: IngestionPipeline, **given: Any) -> Sequence[BaseNode]:
        if request.param == "run":
            return pipeline.run(**given)
        return await pipeline.arun(**given)

    return door


def documents(*texts: str) -> list[Document]:
    return [Document(text=text, id_=f"doc-{place}") for place, text in enumerate(texts)]


def pipeline(guard: Any, *, cache: IngestionCache | None = None, **given: Any) -> IngestionPipeline:
    """Splits, judges, embeds."""
    stores = {name: given.pop(name) for name in list(given) if "store" in name}
    steps: list[TransformComponent] = [
        SentenceSplitter(),
        GuardTransform(guard=guard, **given),
        NGramEmbedding(),
    ]
    return IngestionPipeline(transformations=steps, cache=cache, **stores)


def kept(nodes: Sequence[BaseNode]) -> list[str]:
    return [node.get_content() for node in nodes]


def strict(engine: ScriptedEngine, **fields: Any) -> Guard:
    return Guard(engine, Policy.strict(**fields))


async def test_what_is_harmful_is_not_embedded(run: Run, engine: ScriptedEngine) -> None:
    nodes = await run(pipeline(strict(engine)), documents=documents(TEA, BOMB))
    assert kept(nodes) == [TEA]
    assert nodes[0].embedding == NGramEmbedding().get_text_embedding(TEA)  # without the note
    assert engine.batches == [2]


async def test_nothing_may_be_left(run: Run, engine: ScriptedEngine) -> None:
    guarded = pipeline(strict(engine), vector_store=SimpleVectorStore())
    assert await run(guarded, documents=documents(BOMB)) == []
    assert await run(guarded, documents=documents(BOMB)) == []


async def test_a_cache_answers_for_the_same_guard_only(run: Run, engine: ScriptedEngine) -> None:
    cache, texts = IngestionCache(), documents(TEA, BOMB)

    async def ingested(guard: Guard, **settings: Any) -> list[str]:
        return kept(await run(pipeline(guard, cache=cache, **settings), documents=texts))

    assert await ingested(strict(engine)) == [TEA]
    asked = len(engine.batches)
    assert await ingested(strict(engine)) == [TEA]
    assert len(engine.batches) == asked
    assert await ingested(strict(engine, action=Action.FLAG)) == [TEA, BOMB]
    assert await ingested(strict(engine), on_violation="annotate") == [TEA, BOMB]
    other = ScriptedEngine({"Tea": UNSAFE}, name="another")
    assert await ingested(strict(other)) == [BOMB]
    assert await ingested(strict(engine)) == [TEA]


async def test_a_cache_on_disk_answers_for_the_same_guard_only(
    run: Run, engine: ScriptedEngine, tmp_path: Path
) -> None:
    first = pipeline(strict(engine), secret="s")
    before = await run(first, documents=documents(TEA, BOMB))
    first.persist(str(tmp_path))
    asked = len(engine.batches)
    again = pipeline(strict(engine), secret="s")
    again.load(str(tmp_path))
    assert await run(again, documents=documents(TEA, BOMB)) == before
    assert len(engine.batches) == asked
    stricter = pipeline(strict(ScriptedEngine({"Tea": UNSAFE}, name="another")), secret="s")
    stricter.load(str(tmp_path))
    assert kept(await run(stricter, documents=documents(TEA, BOMB))) == [BOMB]


@pytest.mark.parametrize("on_error", [OnError.BLOCK, OnError.ALLOW])
@pytest.mark.parametrize("on_outage", ["raise", "policy"])
async def test_a_cache_keeps_nothing_of_an_outage(
    run: Run, on_error: OnError, on_outage: str
) -> None:
    broken = True

    def script(conversation: Conversation) -> Any:
        if broken:
            return EngineError("gone")
        return UNSAFE if "bomb" in conversation.last.text else "Safety: Safe\nCategories: None"

    cache, guard = IngestionCache(), strict(ScriptedEngine(script), on_error=on_error)
    texts = documents(TEA, BOMB)
    if on_outage == "raise":
        with pytest.raises(EngineError, match="2 of 2"):
            await run(pipeline(guard, cache=cache), documents=texts)
    else:
        during = await run(pipeline(guard, cache=cache, on_outage="policy"), documents=texts)
        assert kept(during) == ([TEA, BOMB] if on_error is OnError.ALLOW else [])
    broken = False
    for settings in ({}, {"on_outage": on_outage}):
        after = await run(pipeline(guard, cache=cache, **settings), documents=texts)
        assert kept(after) == [TEA]


async def test_a_store_of_documents_may_forget_those_of_a_run_that_failed(
    run: Run, engine: ScriptedEngine
) -> None:
    store, texts = SimpleDocumentStore(), documents(TEA, BOMB)
    stores: dict[str, Any] = {
        "docstore": store,
        "vector_store": SimpleVectorStore(),
        "docstore_strategy": DocstoreStrategy.DUPLICATES_ONLY,
    }
    broken = pipeline(strict(ScriptedEngine(EngineError("gone"))), **stores)
    with pytest.raises(EngineError, match="only looks for duplicates"):
        await run(broken, documents=texts)
    mended = pipeline(strict(engine), **stores)
    assert await run(mended, documents=texts) == []
    for document in texts:
        store.delete_document(document.node_id, raise_error=False)
    assert kept(await run(mended, documents=texts, store_doc_text=False)) == [TEA]
    assert store.docs == {}


async def test_a_quarantine_is_filled_whatever_a_cache_knows(
    run: Run, engine: ScriptedEngine
) -> None:
    cache = IngestionCache()
    for _ in range(2):
        aside = SimpleDocumentStore()
        guarded = pipeline(strict(engine), cache=cache, quarantine=aside)
        assert kept(await run(guarded, documents=documents(TEA, BOMB))) == [TEA]
        assert kept(list(aside.docs.values())) == [BOMB]
        assert kept(await run(guarded, documents=documents(TEA, BOMB))) == [TEA]
        assert len(aside.docs) == 1


@pytest.mark.parametrize("strategy", DocstoreStrategy)
async def test_document_stores(
    run: Run, engine: ScriptedEngine, strategy: DocstoreStrategy
) -> None:
    vectors = SimpleVectorStore()
    guarded = pipeline(
        strict(engine),
        docstore=SimpleDocumentStore(),
        docstore_strategy=strategy,
        vector_store=vectors,
    )
    assert kept(await run(guarded, documents=documents(TEA, BOMB))) == [TEA]
    asked = len(engine.batches)
    assert await run(guarded, documents=documents(TEA, BOMB)) == []
    assert len(engine.batches) == asked
    assert kept(await run(guarded, documents=documents("A bomb, now.", "No more."))) == ["No more."]
    stored = set(vectors.data.text_id_to_ref_doc_id.values())
    upserted = strategy is not DocstoreStrategy.DUPLICATES_ONLY
    assert stored == ({"doc-1"} if upserted else {"doc-0", "doc-1"})


def here() -> Guard:
    """A guard of this process, which names it."""
    return Guard(ScriptedEngine(SCRIPT, name=f"process-{os.getpid()}"))


def workers(several: int = 2) -> dict[str, int]:
    """LlamaIndex warns where there are fewer processors."""
    warnings.filterwarnings("ignore", message="Specified num_workers")
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    return {"num_workers": several}


several = pytest.mark.skipif(
    os.cpu_count() == 1, reason="one processor: LlamaIndex takes one process"
)


def unpacked_elsewhere(process: int) -> "Nowhere":
    if os.getpid() != process:
        raise ImportError("nowhere to be found")
    return Nowhere()


class Nowhere:
    """A function that can be imported in this process only."""

    def __reduce__(self) -> Any:
        return unpacked_elsewhere, (os.getpid(),)

    def __call__(self) -> Guard:
        return here()


@several
async def test_several_processes_make_their_guards_themselves(run: Run) -> None:
    steps: list[TransformComponent] = [GuardTransform(guard=here), NGramEmbedding()]
    guarded = IngestionPipeline(transformations=steps, disable_cache=True)
    texts = documents(TEA, BOMB, f"{TEA} Yes.", f"{BOMB} Yes.", f"{TEA} No.")
    nodes = await run(guarded, documents=texts, **workers())
    assert sorted(kept(nodes)) == [TEA, f"{TEA} No.", f"{TEA} Yes."]
    notes = [guard_note(node) for node in nodes]
    judges = {note["verdict"]["model"] for note in notes if note}
    assert f"process-{os.getpid()}" not in judges


@several
async def test_a_guard_that_cannot_be_made_there_is_an_error(run: Run) -> None:
    guarded = IngestionPipeline(transformations=[GuardTransform(guard=Nowhere())])
    with pytest.raises(ImportError, match="nowhere"):
        await run(guarded, documents=documents(TEA, BOMB), **workers())


class Locked(ScriptedEngine):
    """An engine that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle this engine")


@several
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"guard": Guard(Locked(SCRIPT))}, id="a live guard"),
        pytest.param({"guard": here, "quarantine": SimpleDocumentStore()}, id="a quarantine"),
    ],
)
async def test_what_cannot_get_there_is_an_error_and_nothing_is_ingested(
    run: Run, given: dict[str, Any]
) -> None:
    vectors = SimpleVectorStore()
    steps: list[TransformComponent] = [GuardTransform(**given), NGramEmbedding()]
    guarded = IngestionPipeline(transformations=steps, vector_store=vectors)
    with pytest.raises(Exception, match=r"give a function|without num_workers"):
        await run(guarded, documents=documents(TEA, BOMB), **workers())
    assert vectors.data.embedding_dict == {}
