"""A retriever of which nobody hears what its guard does not let through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import (
    BaseRetriever,
    LangSmithRetrieverParams,
    RetrieverOutputLike,
)
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import ConfigDict
from typing_extensions import override

from guardrails_qwen import (
    Action,
    ConversationError,
    Decision,
    Guard,
    GuardError,
    GuardViolation,
    Stage,
)
from langchain_guardrails_qwen.documents_gate import DocumentGate, OnViolation, Sheet, unread
from langchain_guardrails_qwen.runs import atold, told
from langchain_guardrails_qwen.unheard import unheard

_OWN = ("callbacks", "run_id", "run_name")
"""What a config says about the run itself, and not to what runs inside."""

_GRAPHS = ("__", "checkpoint_")
"""How settings begin by which LangGraph ties what runs inside to the streams and checkpoints of the
graph around it, where nothing may be that was not judged."""


class GuardedRetriever(BaseRetriever):
    """A retriever whose callbacks, traces and events hear only the documents that may pass.

    ```python
    retriever = GuardedRetriever(inner=store.as_retriever(), guard=Guard.from_pretrained("tiny"))
    ```

    The documents are judged by the rules for context, all of a query in one batch. It replaces the
    inner retriever wherever one is wanted; fewer documents may come back than that one was asked
    for. The inner one runs without callbacks, and so does what it calls itself. Keyword arguments
    go to it, and so does the config, without callbacks. See `GuardDocumentTransformer` for what
    becomes of documents.

    Args:
        inner: The retriever to guard, or any runnable from a query to documents.
        guard: The engine and the policy.
        on_violation: As for `GuardDocumentTransformer`.
        metadata_fields: As for `GuardDocumentTransformer`.
        with_query: As for `GuardDocumentCompressor`.
        check_query: Judge the query first, by the rules for input. One that is dropped finds
            nothing; one that is redacted or replaced is asked as it passes.

    Raises:
        GuardViolation: The query is blocked, or a document may not pass and `on_violation` is
            `raise`.
        ConversationError: The inner retriever returns something else than documents.
        GuardError: Something could not be judged, and the policy says to raise.
    """

    inner: RetrieverOutputLike
    guard: Guard
    on_violation: OnViolation = "drop"
    metadata_fields: tuple[str, ...] | None = None
    with_query: bool = False
    check_query: bool = False

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def __init__(self, *, inner: RetrieverOutputLike, guard: Guard, **fields: Any) -> None:
        """Args: fields: those above, and those of retrievers; by default those of `inner`."""
        own: dict[str, Any] = {**fields, "inner": inner, "guard": guard}
        if isinstance(inner, BaseRetriever):
            own = {"tags": inner.tags, "metadata": inner.metadata, **own}
        super().__init__(**own)

    @override
    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        return super().invoke(input, config, inner_config=_inherited(config), **kwargs)

    @override
    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        return await super().ainvoke(input, config, inner_config=_inherited(config), **kwargs)

    @override
    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        inner_config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        decided = list[Decision | GuardError]()
        with told(run_manager, decided):
            admitted: str | None = query
            if self.check_query:
                decided.append(decision := self.guard.check(query, stage=Stage.INPUT))
                admitted = _admitted(decision)
            if admitted is None:
                return []
            with unheard():
                found = self.inner.invoke(admitted, inner_config, **kwargs)
            sheets = self._read(found, admitted)
            results = self._gate.check(sheets)
            decided += [*results, *unread(sheets)]
            return self._gate.settle(sheets, results)

    @override
    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        inner_config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        decided = list[Decision | GuardError]()
        async with atold(run_manager, decided):
            admitted: str | None = query
            if self.check_query:
                decided.append(decision := await self.guard.acheck(query, stage=Stage.INPUT))
                admitted = _admitted(decision)
            if admitted is None:
                return []
            with unheard():
                found = await self.inner.ainvoke(admitted, inner_config, **kwargs)
            sheets = self._read(found, admitted)
            results = await self._gate.acheck(sheets)
            decided += [*results, *unread(sheets)]
            return self._gate.settle(sheets, results)

    @property
    def _gate(self) -> DocumentGate:
        return DocumentGate(
            guard=self.guard,
            on_violation=self.on_violation,
            metadata_fields=self.metadata_fields,
        )

    def _read(self, found: object, query: str) -> list[Sheet]:
        if not isinstance(found, list):
            raise ConversationError(
                f"the inner retriever returned {type(found).__name__}, not a list of documents"
            )
        documents = cast("list[Document]", found)
        return self._gate.read(documents, query if self.with_query else None)

    @override
    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """Those of the inner retriever, whose store and embeddings are meant."""
        if not isinstance(self.inner, BaseRetriever):
            return super()._get_ls_params(**kwargs)
        kwargs.pop("inner_config", None)
        return self.inner._get_ls_params(**kwargs)


def _inherited(config: RunnableConfig | None) -> RunnableConfig:
    """What the inner retriever is told of a config: what fields are set to, for one."""
    inherited = {key: value for key, value in ensure_config(config).items() if key not in _OWN}
    settings = cast("Mapping[str, Any]", inherited.get("configurable") or {})
    inherited["configurable"] = {
        key: value for key, value in settings.items() if not key.startswith(_GRAPHS)
    }
    return cast("RunnableConfig", inherited)


def _admitted(decision: Decision) -> str | None:
    """The query to ask; None where it was dropped, and finds nothing.

    Raises:
        GuardViolation: It was blocked.
    """
    if decision.action is Action.BLOCK:
        raise GuardViolation(decision)
    return decision.text
