"""Nodes that are judged while they are ingested."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
from collections.abc import Sequence
from typing import Any, Literal
from uuid import uuid4

from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent
from llama_index.core.storage.docstore import BaseDocumentStore
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import Self, override

from guardrails_qwen import EngineError, Guard
from llama_index_guardrails_qwen.gate import Gate
from llama_index_guardrails_qwen.guard_source import (
    GuardSource,
    carried,
    guard_of,
    is_made,
    require_source,
)
from llama_index_guardrails_qwen.node_settings import (
    REMEMBERED,
    Fields,
    Secret,
    Violation,
    reading_of,
    signer_of,
    without,
)
from llama_index_guardrails_qwen.nodes_gate import NodesGate, Settled
from llama_index_guardrails_qwen.quarantine import aput_aside, put_aside
from llama_index_guardrails_qwen.remembered import Remembered
from llama_index_guardrails_qwen.verdict_notes import Judgement

_PROVOKED = ("ConversationError", "TextTooLong", "UnreadableVerdict", "RequestRejected")
"""Errors that a text brings about, whenever it is judged."""

_TOLD = frozenset({"fingerprint", "settings", "key", "quarantine_of", "once"})
"""What `to_dict` tells beside fields."""


class GuardTransform(TransformComponent):
    """Judges nodes in an `IngestionPipeline` by the rules for context, in one batch.

    ```python
    IngestionPipeline(transformations=[SentenceSplitter(), GuardTransform(guard=guard), embedding])
    ```

    What becomes of nodes, and what is judged of them, is as for `GuardPostprocessor`. Put it behind
    whatever makes nodes or writes metadata, and in front of the embedding.

    The pipeline's cache asks `to_dict`, which names policy, model and all settings: another policy
    never meets what an earlier one let pass. A document store that skips unchanged documents asks
    nobody, though: what it skips keeps its old verdict, until a `GuardPostprocessor` judges it.

    That store is given the documents as they came, refused ones too: put a `GuardPostprocessor`
    behind whatever retrieves from it, or run the pipeline with `store_doc_text=False`. Where it
    only looks for duplicates (`DUPLICATES_ONLY`, and always without a vector store) it knows
    documents before they are judged, and skips those of a run that failed: call
    `docstore.delete_document(id, raise_error=False)` for each before the next run.

    Args:
        guard: The engine and the policy, or a function that makes them, which is asked once a
            process, at the first use: `functools.partial(Guard.from_pretrained, "tiny")`. For
            `num_workers` it has to be one, unless the guard can be pickled. Where a cache asks in
            an event loop, making it would block that loop: give a guard there.
        on_violation: What becomes of a node that may not pass: `drop`, `annotate` or `raise`.
        metadata_mode: The metadata that is judged beside the text.
        metadata_fields: Of these fields of metadata, the ones that are judged; None: all.
        secret: Notes are signed with this, so that other processes believe them.
        quarantine: A store into which nodes are put that do not pass, as they came, with their
            verdict. One process keeps it, so it does not go with `num_workers`, and what a cache
            answers would not be put there, so each transform with one judges anew.
        on_outage: What is done while the engine is not available: `raise`, so that nothing is
            dropped or let through for good by mistake, or what the `policy` says in `on_error`;
            then the pipeline's cache is never answered from.
        remember: How many judgements of nodes are remembered in this process.

    Raises:
        ValidationError: A setting is none, or has no such name.
        GuardViolation: A node may not pass, and `on_violation` is `raise`.
        EngineError: The engine is not available, and `on_outage` is `raise`.
        GuardError: One could not be judged, and the policy says to raise; or the quarantine did not
            take one.
    """

    guard: GuardSource = Field(exclude=True, frozen=True)
    on_violation: Violation = "drop"
    metadata_mode: MetadataMode = MetadataMode.ALL
    metadata_fields: Fields = None
    secret: Secret = None
    quarantine: BaseDocumentStore | None = Field(default=None, exclude=True, frozen=True)
    on_outage: Literal["raise", "policy"] = "raise"
    remember: int = Field(default=REMEMBERED, ge=0, frozen=True)
    _remembered: Remembered[Judgement] = PrivateAttr(
        default_factory=lambda data: Remembered(data["remember"])
    )
    _mark: str = PrivateAttr(default_factory=lambda: uuid4().hex)

    model_config = ConfigDict(
        arbitrary_types_allowed=True, hide_input_in_errors=True, extra="forbid"
    )

    @field_validator("guard", mode="before")
    @classmethod
    def _is_source(cls, value: object) -> object:
        require_source(value)
        return value

    @classmethod
    @override
    def class_name(cls) -> str:
        return "GuardTransform"

    @override
    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """What may pass of nodes, in their order. Keyword arguments are ignored."""
        settled = self._gate(guard_of(self.guard)).judge(nodes)
        self._require_judged(settled)
        if self.quarantine:
            put_aside(self.quarantine, self._barred(settled))
        return self._passed(settled)

    @override
    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """The same, without blocking the event loop."""
        settled = await self._gate(await self._guard()).ajudge(nodes)
        self._require_judged(settled)
        if self.quarantine:
            await aput_aside(self.quarantine, self._barred(settled))
        return self._passed(settled)

    @override
    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """All that the outcome depends on, the same in every process; it makes the guard.

        With a quarantine it is another one for each transform, and where `on_outage` is `policy`
        each time, because a cache must not answer then.
        """
        guard = guard_of(self.guard)
        fields, signer = self.metadata_fields, signer_of(self.secret)
        settings: dict[str, Any] = {
            "on_violation": self.on_violation,
            "metadata_mode": self.metadata_mode.value,
            "metadata_fields": None if fields is None else sorted(fields),
            "key": signer.key_id if signer else None,
            "on_outage": self.on_outage,
            "quarantine_of": self._mark if self.quarantine else None,
            "once": uuid4().hex if self.on_outage == "policy" else None,
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        named = {"class_name": self.class_name(), "fingerprint": guard.fingerprint}
        return {**named, **settings, "settings": digest}

    @classmethod
    @override
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """What `to_dict` told of; the guard, and secret and quarantine if any, as keywords."""
        return super().from_dict(without(data, _TOLD), **kwargs)

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Everything, or an error: what cannot be pickled would be left out silently otherwise."""
        if self.quarantine is not None:
            raise pickle.PicklingError(
                "a quarantine is kept by one process, and what others put into it would be lost: "
                "run the pipeline without num_workers, or without a quarantine"
            )
        guard = carried(self.guard)
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "guard": guard}}

    async def _guard(self) -> Guard:
        if is_made(self.guard):
            return guard_of(self.guard)
        return await asyncio.to_thread(guard_of, self.guard)

    def _gate(self, guard: Guard) -> NodesGate:
        return NodesGate(
            gate=Gate(guard=guard, component="transform"),
            reading=reading_of(self.metadata_mode, self.metadata_fields),
            signer=signer_of(self.secret),
            remembered=self._remembered,
        )

    def _require_judged(self, settled: Sequence[Settled]) -> None:
        missed = [item for item in settled if _outage(item)]
        if missed and self.on_outage == "raise":
            raise EngineError(
                f"{len(missed)} of {len(settled)} nodes could not be judged, since the engine is "
                "not available: nothing was passed on; run the pipeline again, and delete "
                "these documents in its docstore before, if that only looks for duplicates"
            )

    def _barred(self, settled: Sequence[Settled]) -> list[BaseNode]:
        """What does not pass, also where the first of it raises."""
        kept = "annotate" if self.on_violation == "annotate" else "drop"
        return [item.node for item in settled if not item.passes(kept)]

    def _passed(self, settled: Sequence[Settled]) -> list[BaseNode]:
        return [item.node for item in settled if item.passes(self.on_violation)]


def _outage(item: Settled) -> bool:
    """Whether something of a node was not judged through no fault of its own."""
    errors = [decision.error for _, decision in item.judgement.decisions if decision.error]
    return any(error.partition(":")[0] not in _PROVOKED for error in errors)
