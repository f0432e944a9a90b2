"""A node as the decisions about its parts have it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from llama_index.core.schema import BaseNode, MediaResource, Node, RelatedNodeInfo, TextNode

from guardrails_qwen import Action, Decision
from guardrails_qwen.fields import is_name, says, written
from llama_index_guardrails_qwen.nodes_text import About, Reading
from llama_index_guardrails_qwen.verdict_notes import Judgement

_CHANGED = (Action.REDACT, Action.REPLACE)
_CHANGEABLE = (About.TEXT, About.METADATA, About.RELATIONSHIPS)


def barring(judgement: Judgement) -> Decision | None:
    """The strictest decision that keeps a node from passing; None: it may pass, changed perhaps.

    A change is asked for that cannot be made, of an id say: then the node does not pass either. It
    holds no text: it may be raised.
    """
    asked = [about for about, _ in judgement.decisions]
    decisions = [
        decision
        for about, decision in judgement.decisions
        if decision.action >= Action.DROP
        or (decision.action in _CHANGED and (about not in _CHANGEABLE or _two_texts(asked, about)))
    ]
    strictest = max(decisions, key=lambda decision: decision.action, default=None)
    return replace(strictest, text=None) if strictest else None


def changed(node: BaseNode, judgement: Judgement, reading: Reading, instead: str) -> BaseNode:
    """The node as the decisions have it: itself where they all let it be.

    Ids, scores, templates and relations stay; an embedding of what was changed does not.

    Args:
        node: The node; it is not changed in place.
        judgement: What was decided about it, and does not bar it.
        reading: What was read of it.
        instead: Stands where metadata said something.
    """
    if judgement.done:
        return node
    for about, decision in judgement.decisions:
        if decision.action not in _CHANGED:
            continue
        if about is About.TEXT:
            node = _with_text(node, decision.text or "")
        elif about is About.METADATA:
            metadata = _without_texts(node, reading, instead)
            node = node.model_copy(update={"metadata": metadata, **_unembedded(node)})
        elif about is About.RELATIONSHIPS:
            node = node.model_copy(update={"relationships": _bare_relations(node)})
    return node


def _two_texts(asked: list[About], about: About) -> bool:
    """Whether its class says another text than it holds: it cannot be told which to change."""
    return about is About.TEXT and asked.count(About.TEXT) > 1


def _with_text(node: BaseNode, text: str) -> BaseNode:
    if isinstance(node, TextNode):
        return node.model_copy(update={"text": text, **_unembedded(node)})
    if isinstance(node, Node):
        old = node.text_resource or MediaResource()
        resource = old.model_copy(update={"text": text, "data": None, "embeddings": None})
        return node.model_copy(update={"text_resource": resource, **_unembedded(node)})
    copy = node.model_copy(update=_unembedded(node), deep=True)
    copy.set_content(text)
    return copy


def _unembedded(node: BaseNode) -> dict[str, None]:
    names = ("embedding", "text_embedding")
    return dict.fromkeys(name for name in names if name in type(node).model_fields)


def _without_texts(node: BaseNode, reading: Reading, instead: str) -> dict[object, object]:
    """Metadata with `instead` wherever a text was read; a name that is more than one goes."""
    metadata = dict[object, object]()
    for key, value in cast("Mapping[object, object]", node.metadata).items():
        if not reading.reads(node, key):
            metadata[key] = value
        elif is_name(written(key)):
            metadata[key] = instead if says(value) else value
    return metadata


def _bare_relations(node: BaseNode) -> dict[object, object]:
    return {
        kind: [_bare(info) for info in infos] if isinstance(infos, list) else _bare(infos)
        for kind, infos in node.relationships.items()
    }


def _bare(info: RelatedNodeInfo) -> RelatedNodeInfo:
    return info.model_copy(update={"metadata": {}})
