"""A guard where documents pass: what it judges of them, and which ones are left.

Every document is asked about by itself, its content and its metadata apart; all of them in one
batch of the engine, and each distinct text once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.documents import Document

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Message,
    Role,
    Stage,
)
from langchain_guardrails_qwen.documents_text import KEY, metadata_text, without_texts
from langchain_guardrails_qwen.trace import Results

OnViolation = Literal["drop", "annotate", "raise"]
"""What becomes of a document that its policy drops or blocks.

`drop` leaves it out. `annotate` keeps it as it is, with the verdict in its metadata, unless it
could not be judged: then it is left out. `raise` raises `GuardViolation`.
"""


_CHANGED = (Action.REDACT, Action.REPLACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A document, and what is asked about it; or why that cannot be asked."""

    document: Document = field(repr=False)
    content: Conversation | ConversationError
    metadata: Conversation | ConversationError | None
    """None where the metadata says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentGate:
    """A guard, and what it shall judge of documents.

    Raises:
        TypeError: `metadata_fields` is a text, not a collection of them.
        ValueError: `on_violation` is none of its values.
    """

    guard: Guard
    on_violation: OnViolation = "drop"
    metadata_fields: Collection[str] | None = None
    """The fields of the metadata that are judged; None: all of them."""

    def __post_init__(self) -> None:
        if isinstance(self.metadata_fields, str):
            raise TypeError("metadata_fields is a text: give a list of names")
        if self.on_violation not in ("drop", "annotate", "raise"):
            raise ValueError("on_violation is drop, annotate or raise")

    def judge(self, documents: Iterable[Document], query: str | None = None) -> list[Document]:
        """What may pass of documents. None of them is changed in place.

        Args:
            documents: The documents.
            query: What they were found for, if they shall be judged in one turn with it.

        Raises:
            ConversationError: One of them is no document.
            GuardViolation: One may not pass, and the guard shall raise.
            GuardError: One could not be judged, and the policy says to raise.
        """
        sheets = self.read(documents, query)
        return self.settle(sheets, self.check(sheets))

    async def ajudge(
        self, documents: Iterable[Document], query: str | None = None
    ) -> list[Document]:
        """`judge`, without blocking the event loop."""
        sheets = self.read(documents, query)
        return self.settle(sheets, await self.acheck(sheets))

    def read(self, documents: Iterable[Document], query: str | None = None) -> list[Sheet]:
        """What there is to ask about documents; see `judge`."""
        before = () if query is None else (Message(role=Role.USER, text=query),)
        return [self._sheet(document, before) for document in documents]

    def check(self, sheets: Iterable[Sheet]) -> Results:
        """The results for all that is asked about documents, in the order of `asked`."""
        return self.guard.check_many(asked(sheets), stage=Stage.CONTEXT, return_exceptions=True)

    async def acheck(self, sheets: Iterable[Sheet]) -> Results:
        """`check`, without blocking the event loop."""
        return await self.guard.acheck_many(
            asked(sheets), stage=Stage.CONTEXT, return_exceptions=True
        )

    def settle(self, sheets: Sequence[Sheet], results: Results) -> list[Document]:
        """What passes, in its order, by what `check` gave. Raises as `judge` does."""
        answers = dict(zip(asked(sheets), results, strict=True))
        passed = [self._passed(sheet, self._decided(sheet, answers)) for sheet in sheets]
        return [document for document in passed if document is not None]

    def _sheet(self, document: Document, before: tuple[Message, ...]) -> Sheet:
        if not isinstance(document, Document):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConversationError(
                f"a guard cannot judge {type(document).__name__} as a document: load it first, and "
                "judge what is not text by other means"
            )
        content = _conversation(document.page_content, before)
        try:
            said = metadata_text(document, self.metadata_fields)
        except ConversationError as error:
            return Sheet(document=document, content=content, metadata=error)
        metadata = _conversation(said, before) if said else None
        return Sheet(document=document, content=content, metadata=metadata)

    def _decided(
        self, sheet: Sheet, answers: Mapping[Conversation, Decision | GuardError]
    ) -> dict[str, Decision]:
        """The decisions about a document, by what they are about."""
        parts = {"page_content": sheet.content, "metadata": sheet.metadata}
        return {
            about: self._decision(answers[part] if isinstance(part, Conversation) else part)
            for about, part in parts.items()
            if part is not None
        }

    def _decision(self, result: Decision | GuardError) -> Decision:
        if isinstance(result, Decision):
            return result
        return self.guard.policy.decide_unjudged(Stage.CONTEXT, result)

    def _passed(self, sheet: Sheet, decisions: Mapping[str, Decision]) -> Document | None:
        barring = [item for item in decisions.values() if item.action >= Action.DROP]
        if barring and self.on_violation == "raise":
            raise GuardViolation(max(barring, key=lambda decision: decision.action))
        if barring and (self.on_violation == "drop" or any(item.degraded for item in barring)):
            return None
        document = self._changed(sheet.document, decisions)
        noted = {**document.metadata, KEY: _note(decisions)}
        return document.model_copy(update={"metadata": noted})

    def _changed(self, document: Document, decisions: Mapping[str, Decision]) -> Document:
        """The document as the decisions have it: itself where both let it be."""
        content, metadata = decisions["page_content"], decisions.get("metadata")
        if metadata and metadata.action in _CHANGED:
            instead = self.guard.policy.at(Stage.CONTEXT).replacement
            document = without_texts(document, self.metadata_fields, instead)
        if content.action in _CHANGED:
            return Document(
                id=document.id, page_content=content.text or "", metadata=document.metadata
            )
        return document


def asked(sheets: Iterable[Sheet]) -> list[Conversation]:
    """All that a guard has to judge, each conversation once."""
    parts = [part for sheet in sheets for part in (sheet.content, sheet.metadata)]
    return list(dict.fromkeys(part for part in parts if isinstance(part, Conversation)))


def unread(sheets: Iterable[Sheet]) -> list[ConversationError]:
    """Why something cannot be asked about, for all of which that is so."""
    parts = [part for sheet in sheets for part in (sheet.content, sheet.metadata)]
    return [part for part in parts if isinstance(part, ConversationError)]


def _conversation(text: str, before: tuple[Message, ...]) -> Conversation | ConversationError:
    try:
        return Conversation((*before, Message(role=Role.USER, text=text)))
    except ConversationError as error:
        return error


def _note(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """The strictest decision as plain data without text, the same whenever it is made again."""
    about = max(decisions, key=lambda part: (decisions[part].action, decisions[part].degraded))
    data = decisions[about].to_dict(text=False)
    del data["seconds"]
    degraded = any(decision.degraded for decision in decisions.values())
    return {**data, "about": about, "degraded": degraded}
