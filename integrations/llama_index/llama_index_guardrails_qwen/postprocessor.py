"""Retrieved nodes that are judged before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from typing_extensions import Self, override

from guardrails_qwen import Guard
from llama_index_guardrails_qwen.gate import Gate, require_guard
from llama_index_guardrails_qwen.guard_source import carried
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
from llama_index_guardrails_qwen.remembered import Remembered
from llama_index_guardrails_qwen.verdict_notes import Judgement


class GuardPostprocessor(BaseNodePostprocessor):
    """Judges retrieved nodes by the rules for context, and passes on those that may stay.

    ```python
    engine = index.as_query_engine(node_postprocessors=[GuardPostprocessor(guard=guard)])
    ```

    The policy's actions hold for each node: allowed, redacted or replaced, dropped. All nodes are
    judged in one batch. Those that pass are new ones, with their scores, ids and relations, and
    with the decision in `metadata["guardrails_qwen"]`, without text; `guard_note` reads it. Put it
    last: what another postprocessor fetches behind it is not judged.

    Pictures, sound and films pass unjudged, and the note says so under `unjudged`.

    Args:
        guard: The engine and the policy.
        on_violation: What becomes of a node that the policy drops or blocks: `drop` leaves it out,
            `annotate` keeps it with the verdict in its metadata, `raise` raises. What could not be
            judged is never kept, unless the policy's `on_error` says allow. A node with a part that
            cannot be redacted or replaced, its id or its templates say, is treated as one that is
            dropped.
        metadata_mode: The metadata that is judged beside the text: by default all of it, since
            other postprocessors move metadata into the text, and all else that a node says, what it
            carries of its relations included; `LLM` or `EMBED`, what the node shows to these;
            `NONE`, none of it.
        metadata_fields: Of these fields of metadata, the ones that are judged; None: all.
        with_query: Judge each node in one turn with the query, for texts that are harmful only as
            an answer to it. A harmful query then makes all nodes harmful, and a long one dilutes
            them.
        secret: Notes are signed with this, and those with a valid signature are believed: nodes
            that a `GuardTransform` with the same guard, settings and secret has judged are not
            judged again. Without it every process judges each node once.
        remember: How many judgements of nodes are remembered in this process.

    Raises:
        ValidationError: A setting is none, or has no such name.
        GuardViolation: A node may not pass, and `on_violation` is `raise`.
        GuardError: One could not be judged, and the policy says to raise.
    """

    guard: Guard = Field(exclude=True, frozen=True)
    on_violation: Violation = "drop"
    metadata_mode: MetadataMode = MetadataMode.ALL
    metadata_fields: Fields = None
    with_query: bool = False
    secret: Secret = None
    remember: int = Field(default=REMEMBERED, ge=0, frozen=True)
    _remembered: Remembered[Judgement] = PrivateAttr(
        default_factory=lambda data: Remembered(data["remember"])
    )

    model_config = ConfigDict(
        arbitrary_types_allowed=True, hide_input_in_errors=True, extra="forbid"
    )

    @field_validator("guard", mode="before")
    @classmethod
    def _is_guard(cls, value: object) -> object:
        require_guard(value)
        return value

    @classmethod
    @override
    def class_name(cls) -> str:
        return "GuardPostprocessor"

    @override
    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings, and the fingerprint in place of the guard."""
        fields = None if self.metadata_fields is None else sorted(self.metadata_fields)
        settings = {**super().to_dict(**kwargs), "metadata_fields": fields}
        return {**settings, "fingerprint": self.guard.fingerprint}

    @classmethod
    @override
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """What `to_dict` told of, with the guard, and the secret if there was one, as keywords."""
        return super().from_dict(without(data, {"fingerprint"}), **kwargs)

    @override
    def __getstate__(self) -> dict[str, Any]:
        carried(self.guard)  # what cannot be pickled would be left out otherwise
        return super().__getstate__()

    @override
    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        inner = [found.node for found in nodes]
        return self._passed(nodes, self._gate.judge(inner, self._query(query_bundle)))

    @override
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        inner = [found.node for found in nodes]
        return self._passed(nodes, await self._gate.ajudge(inner, self._query(query_bundle)))

    @property
    def _gate(self) -> NodesGate:
        return NodesGate(
            gate=Gate(guard=self.guard, component="postprocessor"),
            reading=reading_of(self.metadata_mode, self.metadata_fields),
            signer=signer_of(self.secret),
            remembered=self._remembered,
        )

    def _query(self, bundle: QueryBundle | None) -> str | None:
        return bundle.query_str if bundle and self.with_query else None

    def _passed(
        self, nodes: Sequence[NodeWithScore], settled: Sequence[Settled]
    ) -> list[NodeWithScore]:
        return [
            found.model_copy(update={"node": item.node})
            for found, item in zip(nodes, settled, strict=True)
            if item.passes(self.on_violation)
        ]
