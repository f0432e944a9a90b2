"""Documents that are judged: before they are indexed, or when they were retrieved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from pydantic import ConfigDict
from typing_extensions import override

from guardrails_qwen import Guard
from langchain_guardrails_qwen.documents_gate import DocumentGate, OnViolation
from langchain_guardrails_qwen.gate import require_guard


class GuardDocumentTransformer(BaseDocumentTransformer):
    """Judges documents by the rules for context, and passes on those that may stay.

    ```python
    documents = GuardDocumentTransformer(Guard.from_pretrained("tiny")).transform_documents(chunks)
    ```

    The policy's actions hold for each document: allowed, redacted or replaced, dropped. All
    documents are judged in one batch. Those that pass are new ones, with the decision in
    `metadata["guardrails_qwen"]`, without text.

    Args:
        guard: The engine and the policy.
        on_violation: What becomes of a document that the policy drops or blocks: `drop` leaves it
            out, `annotate` keeps it with the verdict in its metadata, `raise` raises. What could
            not be judged is never kept, unless the policy's `on_error` says allow.
        metadata_fields: The fields of the metadata that are judged beside the content, `()` for
            none. By default all texts in it, and the id, since any of them may reach a prompt.

    Raises:
        ConversationError: Something is no document.
        GuardViolation: A document may not pass, and `on_violation` is `raise`.
        GuardError: One could not be judged, and the policy says to raise.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        on_violation: OnViolation = "drop",
        metadata_fields: Sequence[str] | None = None,
    ) -> None:
        require_guard(guard)
        self._gate = DocumentGate(
            guard=guard, on_violation=on_violation, metadata_fields=metadata_fields
        )

    @override
    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """What may pass of documents, in their order. Keyword arguments are ignored."""
        return self._gate.judge(documents)

    @override
    async def atransform_documents(
        self, documents: Sequence[Document], **kwargs: Any
    ) -> list[Document]:
        """The same, without blocking the event loop."""
        return await self._gate.ajudge(documents)


class GuardDocumentCompressor(BaseDocumentCompressor):
    """The same for documents that were retrieved, wherever a compressor is wanted.

    What retrieves the documents tells callbacks and traces about them before they are judged;
    `GuardedRetriever` is for that.

    Args:
        guard: The engine and the policy.
        on_violation: As for `GuardDocumentTransformer`.
        metadata_fields: As for `GuardDocumentTransformer`.
        with_query: Judge each document in one turn with the query, for texts that are harmful only
            as an answer to it. A harmful query then makes all documents harmful, and a long one
            dilutes them.
    """

    guard: Guard
    on_violation: OnViolation = "drop"
    metadata_fields: tuple[str, ...] | None = None
    with_query: bool = False

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @override
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """What may pass of documents, in their order. Callbacks are told nothing."""
        return self._gate.judge(documents, query if self.with_query else None)

    @override
    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same, without blocking the event loop."""
        return await self._gate.ajudge(documents, query if self.with_query else None)

    @property
    def _gate(self) -> DocumentGate:
        return DocumentGate(
            guard=self.guard,
            on_violation=self.on_violation,
            metadata_fields=self.metadata_fields,
        )
