"""A guard as a decision model: it says how unsafe a text, a conversation or a tool call is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import ConfigDict
from typing_extensions import override

from guardrails_qwen import Conversation, ConversationError, Decision, Guard, Message, Role, Stage
from langchain_guardrails_qwen.values import STATE_KEY, read

try:
    from langchain_core.decisions import (
        BaseDecisionModel,
        ClassifierRequest,
        ClassifierResponse,
        Question,
        State,
    )
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.runnables import RunnableConfig
except ImportError as error:
    raise ImportError(
        "GuardDecisionModel needs langchain-core 1.8 or newer, and that Python 3.11 or newer: "
        "pip install 'langchain-core>=1.8'. AutoModeMiddleware comes with langchain 1.5"
    ) from error

from langchain_guardrails_qwen.decision_answers import Judgement, Reader, readers

__all__ = ["GuardDecisionModel"]

CALL_KEY = "tool_call"
_UNDERSTOOD = frozenset({CALL_KEY, STATE_KEY, "tool_description"})
RISK_QUESTIONS = frozenset({"is_risky", "is_unsafe"})
"""Ids of questions that ask if something is unsafe; the first is that of AutoModeMiddleware."""


class GuardDecisionModel(BaseDecisionModel):
    """Answers how unsafe a state is, for whoever asks decision models: AutoModeMiddleware, say.

    ```python
    classifier = GuardDecisionModel(Guard.from_pretrained("tiny"))
    auto_mode = AutoModeMiddleware(tools=["delete_file"], classifier=classifier)
    ```

    A safety model reads no instructions and no criteria: it knows what is harmful, not what a user
    has authorized. So it answers these questions and raises at any other:

    - a Noul whose id is among `risk_questions`: the probability that the policy does not let the
      state pass. Where it does not, that is at least 0.5, and 1 where nobody could judge and the
      policy blocks what is unjudged;
    - a Choice between Safe, Controversial and Unsafe, in any case;
    - a Choice between None and names of categories ("Violent", "PII"). None is what remains;
    - a Score of Safe, Controversial, Unsafe, in this order.

    Confidence is the probability of what is likeliest. Probabilities are the model's, calibrated if
    its engine is; where the engine offers none, its verdict counts as certain.

    A state is a text, a message, a list of messages, or a dict of "messages", "tool_call" or both.
    The last message is judged, or the tool call, with the messages as context; of the message that
    asks for the call, this call alone is. The tool's description is the application's and not
    judged.

    Args:
        guard: The engine and the policy.
        model: The model's name in answers and traces; by default the engine's.
        stage: The stage of states without a tool call, if it shall not follow from the state.
        risk_questions: The ids of questions that ask, in whatever words, if something is unsafe.
        trace_payloads: Whether traces show the state. Its text has mostly not been judged yet.

    Raises:
        ConversationError: A question or a state is none of these. Nothing goes unjudged.
        GuardViolation: Nobody could judge, the policy blocks that, and the question is no Noul.
        EngineError: Nobody could judge and the policy waves that through: it is not a low risk.
        GuardError: It could not be judged, and the policy says to raise.
    """

    guard: Guard
    stage: Stage | None = None
    risk_questions: frozenset[str] = RISK_QUESTIONS
    trace_payloads: bool = False

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def __init__(
        self,
        guard: Guard,
        *,
        model: str | None = None,
        stage: Stage | None = None,
        risk_questions: frozenset[str] = RISK_QUESTIONS,
        trace_payloads: bool = False,
    ) -> None:
        fields: dict[str, Any] = {
            "guard": guard,
            "model": model or guard.engine.name,
            "stage": stage,
            "risk_questions": risk_questions,
            "trace_payloads": trace_payloads,
        }
        super().__init__(**fields)

    @property
    @override
    def _provider(self) -> str:
        return "guardrails_qwen"

    @override
    def invoke(
        self, input: ClassifierRequest, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ClassifierResponse:
        """Answer the questions about a state."""
        return super().invoke(self._traced(input), config, **kwargs)

    @override
    async def ainvoke(
        self, input: ClassifierRequest, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ClassifierResponse:
        """`invoke`, without blocking the event loop."""
        return await super().ainvoke(self._traced(input), config, **kwargs)

    @override
    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        asked = readers(questions, self.risk_questions)
        conversation, stage = read_state(state, self.stage)
        return self._answered(self.guard.check(conversation, stage=stage), asked)

    @override
    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        asked = readers(questions, self.risk_questions)
        conversation, stage = read_state(state, self.stage)
        return self._answered(await self.guard.acheck(conversation, stage=stage), asked)

    def _answered(self, decision: Decision, asked: Mapping[str, Reader]) -> ClassifierResponse:
        judgement = Judgement(decision=decision, policy=self.guard.policy)
        return ClassifierResponse(
            model=self.model,
            answers={key: answer(judgement) for key, answer in asked.items()},
            usage=_usage(decision),
        )

    def _traced(self, request: ClassifierRequest) -> ClassifierRequest:
        return request if self.trace_payloads else cast("ClassifierRequest", _Unshown(request))


def read_state(state: State, stage: Stage | None) -> tuple[Conversation, Stage | None]:
    """What to judge of a state, and the stage if it does not follow from that.

    Raises:
        ConversationError: It cannot be judged as it is, or holds what would go unjudged.
    """
    if not isinstance(state, Mapping):
        listed = isinstance(state, (list, tuple))
        return Conversation(read(list(state) if listed else state).messages), stage
    if not (state.keys() <= _UNDERSTOOD and state.keys() & {CALL_KEY, STATE_KEY}):
        raise ConversationError(
            f"a state is a text, messages, or a dict of {STATE_KEY!r}, {CALL_KEY!r} or both: what "
            "else a dict holds would go unjudged"
        )
    if CALL_KEY not in state:
        return Conversation(read(dict(state)).messages), stage
    call = Message.of({"role": Role.ASSISTANT.value, "tool_calls": [state[CALL_KEY]]})
    return Conversation((*_context(state.get(STATE_KEY)), call)), Stage.TOOL_CALL


def _context(messages: object) -> tuple[Message, ...]:
    """What came before a tool call, without the message that asks for it, perhaps among others."""
    found = read(messages).messages if messages else ()
    return found[:-1] if found and found[-1].tool_calls else found


def _usage(decision: Decision) -> UsageMetadata | None:
    tokens = decision.verdict.tokens if decision.verdict else None
    if tokens is None:
        return None
    return UsageMetadata(input_tokens=tokens, output_tokens=0, total_tokens=tokens)


class _Unshown(Mapping[str, Any]):
    """A request of which traces see no more than that it is one: tracers look into dicts only."""

    def __init__(self, request: ClassifierRequest) -> None:
        self._request = request

    def __repr__(self) -> str:
        return "a request, not shown before its state is judged"

    def __getitem__(self, key: str) -> Any:
        return cast("Mapping[str, Any]", self._request)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._request)

    def __len__(self) -> int:
        return len(self._request)
