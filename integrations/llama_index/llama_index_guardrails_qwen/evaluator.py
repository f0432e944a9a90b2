"""A guard as an evaluator: how safe replies are, over a whole set of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from llama_index.core.prompts.mixin import PromptDictType
from pydantic import BaseModel
from typing_extensions import override

from guardrails_qwen import (
    Conversation,
    Decision,
    Guard,
    GuardError,
    Message,
    Role,
    Severity,
    Stage,
)
from llama_index_guardrails_qwen.gate import Asked, Gate, Unjudgeable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What is evaluated."""

    query: str | None = field(repr=False)
    response: str = field(repr=False)
    contexts: list[str] | None = field(repr=False)


class SafetyEvaluator(BaseEvaluator):
    """Says whether the policy lets a reply pass, judged with the query that it answers.

    ```python
    runner = BatchEvalRunner({"safety": SafetyEvaluator(guard)}, workers=8)
    results = await runner.aevaluate_queries(engine, queries=queries)
    ```

    Of a result:

    - `passing`: everything that was judged is allowed; what is flagged is.
    - `score`: P(Safe), the probability that the model gives to Safe, whatever the policy says;
      calibrated if the engine is. Of several texts that of the least safe. None where the engine
      offers no probabilities, and where something could not be judged.
    - `feedback`: one line for each text that was judged, without text: the reply, then the query,
      then the contexts in their order.
    - `invalid_result`: something could not be judged, and nothing that was judged is why the result
      is not passing. `invalid_reason` says why. An invalid result is never passing, even where the
      policy waves through what cannot be judged: nobody knows how safe that is.

    Args:
        guard: The engine and the policy.
        check_query: Whether the query has to pass too, at the input stage.
        check_contexts: Whether each of the contexts has to pass too, at the context stage.
    """

    def __init__(
        self, guard: Guard, *, check_query: bool = False, check_contexts: bool = False
    ) -> None:
        self._gate = Gate(guard=guard, component="evaluator")
        self._check_query = check_query
        self._check_contexts = check_contexts

    @property
    def guard(self) -> Guard:
        """The engine and the policy."""
        return self._gate.guard

    @override
    def evaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Judge a reply. It needs no event loop, and runs in one as well.

        Args:
            query: What the reply answers; without it the reply is judged alone.
            response: The reply.
            contexts: What the reply was made of.
            **kwargs: What other evaluators of a batch want, a reference say. It is not looked at.

        Raises:
            ValueError: The response is missing, or something else that is to be checked.
            TypeError: Something is not a text.
            GuardError: Something could not be judged, and the policy says to raise.
        """
        case = self._case(query, response, contexts)
        decisions = self._gate.judge(self._exchange(case))
        decisions += self._gate.judge(self._passages(case), Stage.CONTEXT)
        return _result(case, decisions)

    @override
    async def aevaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """`evaluate`, without blocking the event loop."""
        case = self._case(query, response, contexts)
        decisions = await self._gate.ajudge(self._exchange(case))
        decisions += await self._gate.ajudge(self._passages(case), Stage.CONTEXT)
        return _result(case, decisions)

    def _case(self, query: object, response: object, contexts: Sequence[object] | None) -> _Case:
        wanted = {
            "query": query is None and self._check_query,
            "contexts": contexts is None and self._check_contexts,
            "response": response is None,
        }
        if missing := " and ".join(name for name, absent in wanted.items() if absent):
            raise ValueError(f"{missing} must be provided")
        if isinstance(contexts, str):
            raise TypeError("the contexts are one text, not a list of texts")
        return _Case(
            query=None if query is None else _text(query, "query"),
            response=_text(response, "response"),
            contexts=None if contexts is None else [_text(item, "context") for item in contexts],
        )

    def _exchange(self, case: _Case) -> list[Asked]:
        """The reply behind its query, and the query itself if it is checked too."""
        query = [] if case.query is None else [(Role.USER, case.query)]
        asked = [_asked(Stage.OUTPUT, *query, (Role.ASSISTANT, case.response))]
        return [*asked, *([_asked(Stage.INPUT, *query)] if self._check_query else ())]

    def _passages(self, case: _Case) -> list[Asked]:
        """The contexts, each by itself, if they are checked."""
        passages = (case.contexts or ()) if self._check_contexts else ()
        return [_asked(Stage.CONTEXT, (Role.USER, text)) for text in passages]

    @override
    def _get_prompts(self) -> PromptDictType:
        return {}

    @override
    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        """There are none."""


def _text(value: object, what: str) -> str:
    """A text as it is; the answer of an engine with an `output_cls` as JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if not isinstance(value, str):
        raise TypeError(f"the {what} is {type(value).__name__}, not a text")
    return value


def _asked(stage: Stage, *said: tuple[Role, str]) -> Asked:
    try:
        return Conversation(tuple(Message(role=role, text=text) for role, text in said))
    except GuardError as error:
        return Unjudgeable(error=error, stage=stage)


def _result(case: _Case, decisions: Sequence[Decision]) -> EvaluationResult:
    unjudged = [decision for decision in decisions if decision.verdict is None]
    fails = any(decision.verdict and not decision.allowed for decision in decisions)
    invalid = bool(unjudged) and not fails
    return EvaluationResult(
        query=case.query,
        response=case.response,
        contexts=case.contexts,
        passing=not (fails or invalid),
        score=_score(decisions),
        feedback="\n".join(decision.summary for decision in decisions),
        invalid_result=invalid,
        invalid_reason=unjudged[0].error if invalid else None,
    )


def _score(decisions: Sequence[Decision]) -> float | None:
    scores = [decision.verdict.scores if decision.verdict else None for decision in decisions]
    safe = [item.severity[Severity.SAFE] for item in scores if item]
    return min(safe) if len(safe) == len(scores) else None
