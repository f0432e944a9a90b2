"""A guard where nodes pass: what it asks about them, and which ones are left.

A node's parts are asked about one by one, those of all nodes in one batch of the engine, and each
distinct text once. What was judged already is not asked about again: this process remembers it, and
others are told by signed notes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from llama_index.core.schema import BaseNode

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    GuardViolation,
    Message,
    Role,
    Stage,
)
from llama_index_guardrails_qwen.gate import Asked, Gate, Unjudgeable
from llama_index_guardrails_qwen.nodes_changed import barring, changed
from llama_index_guardrails_qwen.nodes_text import About, Part, Reading
from llama_index_guardrails_qwen.remembered import Remembered
from llama_index_guardrails_qwen.verdict_notes import Judgement, Signer, note_body, noted

OnNodeViolation = Literal["drop", "annotate", "raise"]
"""What becomes of a node that the policy drops or blocks.

`drop` leaves it out. `annotate` keeps it as it is, with the verdict in its metadata, unless it
could not be judged: then it is left out. `raise` raises `GuardViolation`.
"""

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A node, and what there is to ask about it."""

    node: BaseNode = field(repr=False)
    questions: tuple[tuple[About, Asked], ...] = field(repr=False)
    digest: bytes
    """Of all that is judged, by whom, and by which settings."""
    known: Judgement | None
    """What was decided about it before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a node."""

    node: BaseNode = field(repr=False)
    """The node with its note: as it may go on, or as it came where it does not."""
    judgement: Judgement
    barring: Decision | None
    """Why it does not pass as the policy has it; None: it does."""

    def passes(self, on_violation: OnNodeViolation) -> bool:
        """Whether it goes on.

        Raises:
            GuardViolation: It may not, and `on_violation` is `raise`.
        """
        if self.barring and on_violation == "raise":
            raise GuardViolation(self.barring)
        annotated = on_violation == "annotate" and not self.judgement.degraded
        return self.barring is None or annotated


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesGate:
    """A guard, and what it shall judge of nodes."""

    gate: Gate
    reading: Reading
    signer: Signer | None
    remembered: Remembered[Judgement]

    def judge(self, nodes: Sequence[BaseNode], query: str | None = None) -> list[Settled]:
        """What becomes of each node, in order. None of them is changed in place.

        Args:
            nodes: The nodes.
            query: What they were found for, if they shall be judged in one turn with it.

        Raises:
            ConversationError: One of them is no node.
            GuardError: One could not be judged, and the policy says to raise.
        """
        sheets = self._read(nodes, query)
        asked = _asked(sheets)
        return self._settle(sheets, asked, self.gate.judge(asked, Stage.CONTEXT), query)

    async def ajudge(self, nodes: Sequence[BaseNode], query: str | None = None) -> list[Settled]:
        """`judge`, without blocking the event loop."""
        sheets = self._read(nodes, query)
        asked = _asked(sheets)
        return self._settle(sheets, asked, await self.gate.ajudge(asked, Stage.CONTEXT), query)

    def _read(self, nodes: Iterable[BaseNode], query: str | None) -> list[Sheet]:
        before = () if query is None else (Message(role=Role.USER, text=query),)
        fingerprint = self.gate.guard.fingerprint
        return [self._sheet(node, before, fingerprint) for node in nodes]

    def _sheet(self, node: BaseNode, before: tuple[Message, ...], fingerprint: str) -> Sheet:
        if not isinstance(node, BaseNode):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConversationError(f"a guard cannot judge {type(node).__name__} as a node")
        parts = self.reading.parts(node)
        digest = self._digest(node, parts, before, fingerprint)
        questions = tuple((part.about, _question(part, before)) for part in parts)
        return Sheet(node=node, questions=questions, digest=digest, known=self._known(node, digest))

    def _known(self, node: BaseNode, digest: bytes) -> Judgement | None:
        if known := self.remembered.get(digest):
            return known
        return self.signer.believed(node, digest) if self.signer else None

    def _digest(
        self,
        node: BaseNode,
        parts: Sequence[Part],
        before: tuple[Message, ...],
        fingerprint: str,
    ) -> bytes:
        fields = self.reading.metadata_fields
        told = [
            [_VERSION, fingerprint, self.reading.metadata_mode.value],
            sorted(fields) if fields is not None else None,
            [message.text for message in before],
            self.reading.unjudged(node),
            [[part.about.value, part.text if isinstance(part.text, str) else 0] for part in parts],
        ]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=32).digest()

    def _settle(
        self,
        sheets: Sequence[Sheet],
        asked: Sequence[Asked],
        decisions: Sequence[Decision],
        query: str | None,
    ) -> list[Settled]:
        answers = dict(zip(asked, decisions, strict=True))
        return [self._settled(sheet, answers, query) for sheet in sheets]

    def _settled(self, sheet: Sheet, answers: dict[Asked, Decision], query: str | None) -> Settled:
        judgement = sheet.known or Judgement(
            decisions=tuple((about, answers[asked]) for about, asked in sheet.questions)
        )
        self._remember(sheet.digest, judgement)
        bars = barring(judgement)
        if bars:
            return self._noted(sheet.node, sheet.digest, judgement, bars)
        instead = self.gate.guard.policy.at(Stage.CONTEXT).replacement
        node = changed(sheet.node, judgement, self.reading, instead)
        digest = sheet.digest
        if node is not sheet.node:
            [now] = self._read([node], query)
            digest = now.digest
            self._remember(digest, replace(judgement, done=True))
        return self._noted(node, digest, judgement, None)

    def _noted(
        self, node: BaseNode, digest: bytes, judgement: Judgement, bars: Decision | None
    ) -> Settled:
        body = note_body(
            judgement,
            fingerprint=self.gate.guard.fingerprint,
            unjudged=self.reading.unjudged(node),
        )
        if self.signer and not judgement.degraded:
            body = {**body, "signature": self.signer.signature(digest, body)}
        return Settled(node=noted(node, body), judgement=judgement, barring=bars)

    def _remember(self, digest: bytes, judgement: Judgement) -> None:
        """Texts are kept only where they are to be put in again."""
        if judgement.degraded:
            return
        kept = tuple(
            (about, decision if _puts_in(decision, judgement) else replace(decision, text=None))
            for about, decision in judgement.decisions
        )
        self.remembered.put(digest, replace(judgement, decisions=kept))


def _asked(sheets: Iterable[Sheet]) -> list[Asked]:
    """All that a guard has to judge, each conversation once."""
    unknown = (sheet for sheet in sheets if sheet.known is None)
    return list(dict.fromkeys(asked for sheet in unknown for _, asked in sheet.questions))


def _question(part: Part, before: tuple[Message, ...]) -> Asked:
    if isinstance(part.text, ConversationError):
        return Unjudgeable(error=part.text, stage=Stage.CONTEXT)
    try:
        return Conversation((*before, Message(role=Role.USER, text=part.text)))
    except ConversationError as error:
        return Unjudgeable(error=error, stage=Stage.CONTEXT)


def _puts_in(decision: Decision, judgement: Judgement) -> bool:
    return decision.action in (Action.REDACT, Action.REPLACE) and not judgement.done
