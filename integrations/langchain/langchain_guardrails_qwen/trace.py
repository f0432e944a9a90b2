"""Decisions where tracers and operators see them: as events, metadata and tags of runs.

Nothing here holds moderated text, unless that is asked for. A handler that fails is logged by its
type, and neither lets a text through nor breaks a run, whatever its `raise_error` says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManagerForChainRun,
    BaseCallbackHandler,
    BaseCallbackManager,
    BaseRunManager,
    CallbackManagerForChainRun,
)
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.runnables.config import ensure_config
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer

from guardrails_qwen import Action, Decision, GuardError

EVENT = "guardrails_qwen.decision"
"""The name of the custom event; its data is a note. See `noted`."""

METADATA = "guardrails_qwen"
"""The key of a run's metadata in traces; its value is a list of notes."""

TAGS: dict[Action, str] = {
    Action.ALLOW: "guardrails_qwen:allowed",
    Action.FLAG: "guardrails_qwen:flagged",
    Action.REDACT: "guardrails_qwen:redacted",
    Action.REPLACE: "guardrails_qwen:replaced",
    Action.DROP: "guardrails_qwen:dropped",
    Action.BLOCK: "guardrails_qwen:blocked",
}
"""Tags of runs in traces, in rising order: the strictest that was done."""

UNJUDGED = "guardrails_qwen:unjudged"
"""… and this one, where something could not be judged."""

Results = Sequence[Decision | GuardError]
"""What was decided about each of several texts."""

logger = logging.getLogger("guardrails_qwen")

_DEAF = (BaseCallbackHandler.on_custom_event, AsyncCallbackHandler.on_custom_event)
"""What handlers do with custom events that do nothing with them."""


def noted(result: Decision | GuardError, *, text: bool = False) -> dict[str, Any]:
    """A decision as plain data; of what could not be judged at all, only "error"."""
    if isinstance(result, Decision):
        return result.to_dict(text=text)
    return {"error": f"{type(result).__name__}: {result}"}


def annotate(run_manager: BaseRunManager, results: Results, *, text: bool = False) -> None:
    """Tell the handlers of a run what was decided in it; nothing is done where there is none.

    Each decision is a custom event; in traces the run has them as metadata and as tags. Call it
    before the run ends, also where that ends with an error.

    Args:
        run_manager: That of the run, of either colour.
        results: What was decided, in order.
        text: Whether the notes have the text that a decision passes on.
    """
    if not results or not run_manager.handlers:
        return
    _mark(run_manager, results, text)
    for handler in _listening(run_manager):
        for result in results:
            try:
                handle_event([handler], *_event(result, text), **_about(run_manager))
            except Exception as error:  # noqa: BLE001  whatever it is, the run goes on
                _failed(handler, error)


async def aannotate(run_manager: BaseRunManager, results: Results, *, text: bool = False) -> None:
    """`annotate`, without blocking the event loop."""
    if not results or not run_manager.handlers:
        return
    _mark(run_manager, results, text)
    for handler in _listening(run_manager):
        for result in results:
            try:
                await ahandle_event([handler], *_event(result, text), **_about(run_manager))
            except Exception as error:  # noqa: BLE001  whatever it is, the run goes on
                _failed(handler, error)


def tell(results: Results) -> None:
    """`annotate` the run that goes on around the caller, if LangChain knows of one."""
    if results and (around := _around()):
        annotate(CallbackManagerForChainRun(**around), results)


async def atell(results: Results) -> None:
    """`tell`, without blocking the event loop."""
    if results and (around := _around()):
        await aannotate(AsyncCallbackManagerForChainRun(**around), results)


def _around() -> dict[str, Any] | None:
    """The run whose children would begin here, as a manager of its callbacks takes it."""
    callbacks = ensure_config().get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return None
    return {
        "run_id": callbacks.parent_run_id,
        "handlers": callbacks.handlers,
        "inheritable_handlers": callbacks.inheritable_handlers,
        "tags": callbacks.tags,
        "inheritable_tags": callbacks.inheritable_tags,
        "metadata": callbacks.metadata,
        "inheritable_metadata": callbacks.inheritable_metadata,
    }


def _listening(run_manager: BaseRunManager) -> Iterator[BaseCallbackHandler]:
    """The handlers that do something with custom events: others would only cost a thread."""
    for handler in run_manager.handlers:
        if getattr(type(handler), "on_custom_event", None) not in _DEAF:
            yield handler


def _event(result: Decision | GuardError, text: bool) -> tuple[str, str, str, dict[str, Any]]:
    return ("on_custom_event", "ignore_custom_event", EVENT, noted(result, text=text))


def _about(run_manager: BaseRunManager) -> dict[str, Any]:
    return {
        "run_id": run_manager.run_id,
        "tags": run_manager.tags,
        "metadata": run_manager.metadata,
    }


def _mark(run_manager: BaseRunManager, results: Results, text: bool) -> None:
    """Mark the run in every trace. Several tracers may share its record, and its lists."""
    runs = dict[int, Any]()
    for handler in run_manager.handlers:
        if isinstance(handler, (BaseTracer, AsyncBaseTracer)):
            run = handler.run_map.get(str(run_manager.run_id))
            runs[id(run)] = run
    for run in runs.values():
        if run is None:
            continue
        try:
            _mark_run(run, [noted(result, text=text) for result in results], _tags(results))
        except Exception as error:  # noqa: BLE001  whatever it is, the run goes on
            _failed(run, error)


def _mark_run(run: Any, notes: list[dict[str, Any]], tags: list[str]) -> None:
    extra = cast("dict[str, Any]", run.extra or {})
    metadata: dict[str, Any] = extra.get("metadata") or {}
    before: list[Any] = metadata.get(METADATA, [])
    run.extra = {**extra, "metadata": {**metadata, METADATA: [*before, *notes]}}
    told = dict.fromkeys([*(run.tags or []), *tags])
    done = [tag for tag in TAGS.values() if tag in told]
    run.tags = [*(tag for tag in told if tag not in done), *done[-1:]]


def _tags(results: Results) -> list[str]:
    decisions = [result for result in results if isinstance(result, Decision)]
    tags = [TAGS[max(decision.action for decision in decisions)]] if decisions else []
    unjudged = len(decisions) < len(results) or any(d.degraded for d in decisions)
    return [*tags, UNJUDGED] if unjudged else tags


def _failed(handler: object, error: Exception) -> None:
    logger.warning(
        "%s was not told of a decision: %s", type(handler).__name__, type(error).__name__
    )
