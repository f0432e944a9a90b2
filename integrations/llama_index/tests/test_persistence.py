"""Nodes that were judged when they were ingested are believed by other processes, if signed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, indices
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeWithScore,
    TextNode,
    TransformComponent,
)

from guardrails_qwen import Action, Guard, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import SCRIPT, NGramEmbedding, WritingLLM
from llama_index_guardrails_qwen.postprocessor import GuardPostprocessor
from llama_index_guardrails_qwen.transform import GuardTransform
from llama_index_guardrails_qwen.verdict_notes import guard_note

TEXTS = ["Tea is served at four.", "Take a bomb. Tea is served at five.", "Coffee is out. Tea."]
ASK = "When is tea served?"


def guard_on(engine: ScriptedEngine, action: Action = Action.REDACT) -> Guard:
    return Guard(engine, Policy.strict(action=action))


def ingest(folder: Path, guard: Guard, **settings: Any) -> None:
    """Splits, judges, embeds and indexes, and leaves an index in a folder."""
    documents = [
        Document(text=text, id_=f"doc-{place}", metadata={"title": f"Tea, part {place}"})
        for place, text in enumerate(TEXTS)
    ]
    steps: list[TransformComponent] = [
        SentenceSplitter(),
        GuardTransform(guard=guard, **settings),
        NGramEmbedding(),
    ]
    nodes = IngestionPipeline(transformations=steps).run(documents=documents)
    index: Any = VectorStoreIndex(list(nodes), embed_model=NGramEmbedding())
    index.storage_context.persist(persist_dir=str(folder))


def loaded(folder: Path) -> Any:
    """The index of a folder, as another process sees it."""
    storage = StorageContext.from_defaults(persist_dir=str(folder))
    loading: Any = indices
    return loading.load_index_from_storage(storage, embed_model=NGramEmbedding())


def asked(folder: Path, guard: Guard, **settings: Any) -> list[NodeWithScore]:
    """What a query about a persisted index finds."""
    engine = loaded(folder).as_query_engine(
        llm=WritingLLM(replies=["At four."]),
        similarity_top_k=3,
        node_postprocessors=[GuardPostprocessor(guard=guard, **settings)],
    )
    return engine.query(ASK).source_nodes


def test_what_was_judged_at_ingestion_is_free_at_query_time(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    ingest(tmp_path, guard_on(engine), secret="open sesame")
    fresh = ScriptedEngine(SCRIPT)
    found = asked(tmp_path, guard_on(fresh), secret=b"open sesame")
    assert fresh.batches == []
    texts = [item.node.get_content(metadata_mode=MetadataMode.LLM) for item in found]
    assert len(texts) == 3
    assert "bomb" not in "".join(texts)
    actions = sorted(note["action"] for item in found if (note := guard_note(item.node)))
    assert actions == ["allow", "allow", "redact"]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="no secret"),
        pytest.param({"secret": "another"}, id="another secret"),
        pytest.param({"secret": "s", "metadata_mode": "llm"}, id="other settings"),
        pytest.param({"secret": "s", "with_query": True}, id="beside a query"),
        pytest.param(
            {"secret": "s", "guard": guard_on(ScriptedEngine(SCRIPT), Action.DROP)},
            id="another policy",
        ),
        pytest.param(
            {"secret": "s", "guard": guard_on(ScriptedEngine(SCRIPT, name="other"))},
            id="another model",
        ),
    ],
)
def test_otherwise_it_is_judged_once_more(
    tmp_path: Path, engine: ScriptedEngine, settings: dict[str, Any]
) -> None:
    ingest(tmp_path, guard_on(engine), secret="s")
    given: dict[str, Any] = {"guard": guard_on(ScriptedEngine(SCRIPT)), **settings}
    asked(tmp_path, **given)
    assert given["guard"].engine.batches != []


def test_without_a_secret_notes_are_not_signed_and_every_process_judges(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    ingest(tmp_path, guard_on(engine))
    asked_before = len(engine.batches)
    found = asked(tmp_path, guard_on(engine))
    assert len(engine.batches) == asked_before + 1
    assert all("signature" not in (guard_note(item.node) or {}) for item in found)


def test_an_annotated_node_stays_away_where_it_is_to_be_dropped(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    guard = guard_on(engine, Action.DROP)
    ingest(tmp_path, guard, secret="s", on_violation="annotate")
    fresh = ScriptedEngine(SCRIPT)
    found = asked(tmp_path, guard_on(fresh, Action.DROP), secret="s")
    assert fresh.batches == []
    assert sorted(item.text for item in found) == sorted([TEXTS[0], TEXTS[2]])


def signed(guard: Guard, text: str = "Tea.", **fields: Any) -> BaseNode:
    [node] = GuardTransform(guard=guard, secret="s")([TextNode(text=text, **fields)])
    return node


def altered(**update: Any) -> Callable[[BaseNode], BaseNode]:
    return lambda node: node.model_copy(update=update)


def renoted(old: str, new: str) -> Callable[[BaseNode], BaseNode]:
    """A node whose note says something else."""

    def change(node: BaseNode) -> BaseNode:
        told = node.metadata["guardrails_qwen"]
        assert old in told
        note = told.replace(old, new)
        return node.model_copy(update={"metadata": {**node.metadata, "guardrails_qwen": note}})

    return change


def with_note(note: Any) -> Callable[[BaseNode], BaseNode]:
    return lambda node: node.model_copy(
        update={"metadata": {**node.metadata, "guardrails_qwen": note}}
    )


FORGED: list[Any] = [
    pytest.param(altered(text="Another tea."), id="another text"),
    pytest.param(altered(text_template="{metadata_str} tea {content}"), id="another template"),
    pytest.param(renoted('"degraded":false', '"degraded":true'), id="another note"),
    pytest.param(renoted('"signature":"', '"signature":"0'), id="another signature"),
    pytest.param(renoted('"signature":"', '"signature":"ä'), id="a signature that is none"),
    pytest.param(renoted('"signature":"', '"other":"'), id="no signature"),
    pytest.param(with_note('{"signature": 5}'), id="a number for a signature"),
    pytest.param(with_note("[" * 15_000), id="depth"),
    pytest.param(with_note("{" + " " * 30_000 + "}"), id="length"),
    pytest.param(with_note("[]"), id="a list"),
    pytest.param(with_note({"signature": "x"}), id="data"),
    pytest.param(with_note(None), id="nothing"),
]


@pytest.mark.parametrize("forge", FORGED)
def test_what_a_document_brings_along_is_not_believed(
    engine: ScriptedEngine, forge: Callable[[BaseNode], BaseNode]
) -> None:
    node = forge(signed(guard_on(engine), metadata={"title": "Tea"}))
    fresh = ScriptedEngine(SCRIPT)
    processor = GuardPostprocessor(guard=guard_on(fresh), secret="s")
    [out] = processor.postprocess_nodes([NodeWithScore(node=node)])
    assert fresh.batches != []
    note = guard_note(out.node)
    assert note is not None
    assert (note["action"], note["degraded"]) == ("allow", False)


def test_a_note_of_one_node_is_none_of_another(engine: ScriptedEngine) -> None:
    good = signed(guard_on(engine))
    bad = TextNode(text="A bomb.", metadata=good.metadata)
    guard = guard_on(ScriptedEngine(SCRIPT), Action.DROP)
    for secret in (None, "s"):
        processor = GuardPostprocessor(guard=guard, secret=secret)
        assert processor.postprocess_nodes([NodeWithScore(node=bad)]) == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="allowed"),
        pytest.param({"text": "A bomb. Tea."}, id="redacted"),
        pytest.param({"metadata": {"title": "A bomb"}}, id="metadata replaced"),
        pytest.param({"text": ""}, id="empty"),
    ],
)
def test_a_signed_node_is_free_as_what_it_is_now(
    engine: ScriptedEngine, fields: dict[str, Any]
) -> None:
    node = signed(guard_on(engine), **fields)
    fresh = ScriptedEngine(SCRIPT)
    again: Sequence[BaseNode] = [node]
    for _ in range(2):
        again = GuardTransform(guard=guard_on(fresh), secret="s")(again)
        assert list(again) == [node]
    assert fresh.batches == []


def test_scores_survive_being_written_down(tmp_path: Path) -> None:
    """With a real model, whose probabilities are in the notes."""
    guard = Guard.from_pretrained("tiny", Policy.strict(action=Action.FLAG))
    ingest(tmp_path, guard, secret="s")
    nodes = asked(tmp_path, Guard(ScriptedEngine(), guard.policy), secret="s")
    model = guard.fingerprint
    free = asked(tmp_path, guard, secret="s")
    notes = [guard_note(item.node) for item in free]
    assert all(note and note["verdict"]["scores"] for note in notes)
    assert all(note and note["fingerprint"] == model for note in notes)
    assert all((guard_note(item.node) or {})["fingerprint"] != model for item in nodes)
