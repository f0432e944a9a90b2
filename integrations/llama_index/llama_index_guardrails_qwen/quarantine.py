"""Where nodes are put that do not pass, for somebody to look at."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import BaseDocumentStore

from guardrails_qwen import GuardError


def put_aside(store: BaseDocumentStore, nodes: Sequence[BaseNode]) -> None:
    """Put nodes into a store.

    Raises:
        GuardError: The store did not take them. What it said may quote them, so it is left out.
    """
    if not nodes:
        return
    try:
        store.add_documents(nodes)
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote a node
        refused = _refused(error)
    else:
        return
    raise refused


async def aput_aside(store: BaseDocumentStore, nodes: Sequence[BaseNode]) -> None:
    """`put_aside`, without blocking the event loop, if the store can."""
    if not nodes:
        return
    try:
        await store.async_add_documents(nodes)
    except Exception as error:  # noqa: BLE001 - whatever it is, it may quote a node
        refused = _refused(error)
    else:
        return
    raise refused


def _refused(error: Exception) -> GuardError:
    return GuardError(
        f"the quarantine did not take the nodes that were dropped ({type(error).__name__})"
    )
