"""The run of a model, for what was decided in it; LangChain hands it only to some of its calls."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from langchain_core.callbacks import (
    BaseCallbackHandler,
    BaseCallbackManager,
    BaseRunManager,
    CallbackManagerForLLMRun,
)
from typing_extensions import override

from guardrails_qwen import Decision, GuardError, GuardViolation
from langchain_guardrails_qwen.trace import aannotate, annotate

_Results = list[Decision | GuardError]


class Listening(BaseCallbackHandler):
    """Learns which run a manager begins. Add it to those that are not inherited."""

    run_inline = True

    def __init__(self, manager: BaseCallbackManager) -> None:
        self.run: BaseRunManager | None = None
        """The run, once it has begun."""
        self._handlers = manager.handlers

    @override
    def on_chat_model_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        self.run = CallbackManagerForLLMRun(
            run_id=run_id,
            handlers=self._handlers,
            inheritable_handlers=[],
            tags=kwargs.get("tags"),
            metadata=kwargs.get("metadata"),
        )


@contextmanager
def told(run: BaseRunManager | None, results: _Results) -> Generator[None, None, None]:
    """A run is told what was decided inside, before it ends, however it does.

    LangChain ends the run of a stream that is left early before the stream hears of it: then its
    trace has no decisions, but handlers get the events.
    """
    try:
        yield
    except Exception as error:
        _add(error, results)
        raise
    finally:
        if run:
            annotate(run, results)


class atold:  # noqa: N801  a context manager
    """`told`, without blocking the event loop. It is no generator, which a loop may close."""

    def __init__(self, run: BaseRunManager | None, results: _Results) -> None:
        self._run = run
        self._results = results

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            _add(error, self._results)
        if self._run:
            await aannotate(self._run, self._results)


def _add(error: Exception, results: _Results) -> None:
    """An error of a stream is no decision. A violation is one that is there already."""
    known = any(result is error for result in results)
    if isinstance(error, GuardError) and not isinstance(error, GuardViolation) and not known:
        results.append(error)
