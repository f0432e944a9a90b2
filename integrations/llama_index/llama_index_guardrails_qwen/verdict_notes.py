"""The verdict in a node's metadata, without text; signed, where it shall be believed later.

Whoever writes a document writes its metadata as well, so a note proves nothing by being there. A
signature binds it to all that was judged of the node as it is now, to the guard's fingerprint and
to the settings.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from llama_index.core.schema import BaseNode

from guardrails_qwen import Decision
from llama_index_guardrails_qwen.nodes_text import About
from llama_index_guardrails_qwen.note_field import KEY, parsed

_PLACES = 4
_SIGNED = b"llama-index-guardrails-qwen note 1\n"
_NAMED = b"llama-index-guardrails-qwen key 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was decided about a node, part by part."""

    decisions: tuple[tuple[About, Decision], ...] = ()
    """Empty where nobody had anything to judge."""
    done: bool = False
    """Whether the node is already as these decisions have it."""

    @property
    def degraded(self) -> bool:
        """Whether some part was not judged."""
        return any(decision.degraded for _, decision in self.decisions)

    @property
    def strictest(self) -> tuple[About, Decision] | None:
        """The part that was decided about most strictly."""
        return max(
            self.decisions, key=lambda pair: (pair[1].action, pair[1].degraded), default=None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A secret that makes notes believable."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Which secret it is, without telling it."""
        return hmac.new(self.secret, _NAMED, hashlib.sha256).hexdigest()[:16]

    def signature(self, digest: bytes, body: dict[str, Any]) -> str:
        """Of a note about what has this digest."""
        told = _SIGNED + digest + _plain(body).encode()
        return hmac.new(self.secret, told, hashlib.sha256).hexdigest()

    def believed(self, node: BaseNode, digest: bytes) -> Judgement | None:
        """What the node's own note says, if it was signed for what the node is now."""
        body = guard_note(node)
        if body is None:
            return None
        signature = body.pop("signature", None)
        if not isinstance(signature, str) or not signature.isascii():
            return None
        if not hmac.compare_digest(signature, self.signature(digest, body)):
            return None
        try:
            return _read(body)
        except (KeyError, TypeError, ValueError):  # of another version of this library
            return None


def guard_note(node: BaseNode) -> dict[str, Any] | None:
    """The verdict in a node's metadata as plain data; None where there is none.

    It may be anybody's: only components with the secret tell whether a guard wrote it.
    """
    return parsed(node.metadata.get(KEY))


def note_body(judgement: Judgement, *, fingerprint: str, unjudged: Sequence[str]) -> dict[str, Any]:
    """The strictest decision about a node as plain data, the same whenever it is made again.

    Args:
        judgement: What was decided.
        fingerprint: The guard's, for what has nothing to judge.
        unjudged: What a text model cannot judge of the node.
    """
    strictest = judgement.strictest
    if strictest is None:
        told = {"action": "allow", "stage": "context", "verdict": None, "fingerprint": fingerprint}
        return {**told, "about": None, "degraded": False, "unjudged": list(unjudged)}
    about, decision = strictest
    body = _rounded(decision.to_dict(text=False))
    del body["seconds"]
    if body["verdict"]:
        del body["verdict"]["seconds"], body["verdict"]["tokens"]
    beside = {"about": about.value, "degraded": judgement.degraded, "unjudged": list(unjudged)}
    return {**body, **beside}


def noted(node: BaseNode, body: dict[str, Any]) -> BaseNode:
    """A copy of a node with a note, which no model is shown.

    The note is one text, since many vector stores take flat metadata only.
    """
    return node.model_copy(
        update={
            "metadata": {**node.metadata, KEY: _plain(body)},
            "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys),
            "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys),
        }
    )


def _read(body: dict[str, Any]) -> Judgement:
    if body["verdict"] is None:
        return Judgement(done=True)
    return Judgement(decisions=((About(body["about"]), Decision.from_dict(body)),), done=True)


def _with_key(keys: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*keys, KEY]))


def _plain(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    """Probabilities to four places: what runs beside a text may change their last digits."""
    if isinstance(value, float):
        return round(value, _PLACES)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_rounded(item) for item in cast("list[Any]", value)]
    return value
