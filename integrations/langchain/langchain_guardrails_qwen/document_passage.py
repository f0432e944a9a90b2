"""Documents on their way through a guard: all of a list, each by itself, in one batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.documents import Document
from typing_extensions import Self

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Stage,
)
from langchain_guardrails_qwen.documents_gate import DocumentGate, Sheet, asked, unread


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DocumentPassage:
    """A document or a list of them, read."""

    value: Any
    gate: DocumentGate
    sheets: Sequence[Sheet]

    @classmethod
    def of(cls, value: Any, guard: Guard, stage: Stage | None) -> Self | None:
        """Read a value; None where it is something else.

        An empty list is one of documents where the stage is that of documents.

        Raises:
            ConversationError: The stage is another one, or a document cannot be judged.
        """
        documents = _documents(value)
        if documents is None or not (documents or stage is Stage.CONTEXT):
            return None
        if stage is not Stage.CONTEXT:
            raise ConversationError(
                f"a guard cannot judge {type(documents[0]).__name__} at this stage: "
                "GuardRunnable(guard, stage=Stage.CONTEXT) is for documents"
            )
        gate = DocumentGate(guard=guard)
        sheets = gate.read(documents)
        for error in unread(sheets):
            raise error
        return cls(value=value, gate=gate, sheets=sheets)

    @property
    def conversations(self) -> list[Conversation]:
        """Each distinct text of the documents and of their metadata by itself."""
        return asked(self.sheets)

    def settle(self, results: Sequence[Decision | GuardError]) -> Any:
        """The documents that pass, with the verdict in their metadata.

        A single one that is dropped passes empty.

        Raises:
            GuardViolation: One was blocked.
            GuardError: One could not be judged, and the policy says to raise.
        """
        for result in results:
            if isinstance(result, GuardError):
                raise result
            if result.action is Action.BLOCK:
                raise GuardViolation(result)
        passed = self.gate.settle(self.sheets, results)
        if isinstance(self.value, list):
            return passed
        return passed[0] if passed else Document(page_content="")


def _documents(value: object) -> list[Document] | None:
    if isinstance(value, Document):
        return [value]
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    documents = [item for item in items if isinstance(item, Document)]
    return documents if len(documents) == len(items) else None
