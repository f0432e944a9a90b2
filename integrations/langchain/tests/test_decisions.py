"""GuardDecisionModel: what it answers, what it refuses to, and as a gate in AutoModeMiddleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import tool

from guardrails_qwen import (
    Action,
    Category,
    ConversationError,
    EngineError,
    EngineUnavailable,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    Rule,
    Scores,
    Severity,
    Stage,
    StagePolicy,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.testing import FailingEngine, Script, ScriptedEngine

if TYPE_CHECKING or find_spec("langchain_core.decisions"):
    from langchain_core.decisions import (
        Box,
        Choice,
        ClassifierRequest,
        ClassifierResponse,
        Noul,
        Question,
        Score,
        State,
    )

    from langchain_guardrails_qwen.decisions import GuardDecisionModel
else:
    pytest.skip("needs langchain-core 1.8, which has decision models", allow_module_level=True)

UNSAFE = "Safety: Unsafe\nCategories: Violent"
RISKY = {"is_risky": Noul(instructions="Would executing `tool_call` be risky?")}
LEVELS = Choice(
    instructions="How bad?", criteria={"safe": None, "Controversial": None, "UNSAFE": None}
)
KINDS = Choice(instructions="What?", criteria={"None": None, "Violent": None, "PII": None})
RUBRIC = Score(instructions="How bad?", criteria=["Safe", "Controversial", "Unsafe"])

OTHER_KIND = Category.JAILBREAK

Classify = Callable[..., Awaitable[ClassifierResponse]]


@pytest.fixture(params=["invoke", "ainvoke"])
def classify(request: pytest.FixtureRequest) -> Classify:
    """Both doors of a decision model."""

    async def answered(
        model: GuardDecisionModel,
        state: State,
        questions: Mapping[str, Question] = RISKY,
        config: RunnableConfig | None = None,
    ) -> ClassifierResponse:
        asked = ClassifierRequest(state=state, questions=questions)
        if request.param == "invoke":
            return model.invoke(asked, config)
        return await model.ainvoke(asked, config)

    return answered


def scored(
    safe: float,
    controversial: float,
    unsafe: float,
    category: Mapping[Category, float] | None = None,
) -> Verdict:
    """A verdict with these probabilities, of the likeliest severity and of no category."""
    severity = dict(zip(Severity, (safe, controversial, unsafe), strict=True))
    return Verdict(
        severity=max(severity, key=severity.__getitem__),
        scores=Scores(severity=severity, category=category or {}),
        tokens=40,
    )


def judging(script: Script, policy: Policy | None = None) -> GuardDecisionModel:
    return GuardDecisionModel(Guard(ScriptedEngine(script), policy))


def at_input(*rules: Rule) -> Policy:
    return Policy(name="own", default=StagePolicy(rules=rules))


PII_PASSES = at_input(Rule(action=Action.BLOCK), Rule(action=Action.FLAG, category=Category.PII))


@pytest.mark.parametrize(
    ("verdict", "policy", "risk"),
    [
        pytest.param(scored(0.9, 0.06, 0.04), Policy.strict(), 0.1, id="strict"),
        pytest.param(scored(0.9, 0.06, 0.04), Policy.loose(), 0.04, id="loose"),
        pytest.param(scored(0.1, 0.2, 0.7), Policy.strict(), 0.9, id="strict, unsafe"),
        pytest.param(scored(0.3, 0.3, 0.4), Policy.loose(), 0.5, id="policy has the last word"),
        pytest.param(
            scored(0.8, 0.1, 0.1), at_input(Rule(action=Action.BLOCK, probability=0.1)), 0.5,
            id="a threshold of the policy's own",
        ),
        pytest.param(
            scored(0.2, 0.1, 0.7), at_input(Rule(action=Action.BLOCK, probability=0.95)), 0.8,
            id="the threshold is the asker's",
        ),
        pytest.param(
            scored(0.6, 0.3, 0.1, {Category.PII: 0.3, Category.VIOLENT: 0.1}), PII_PASSES, 0.0,
            id="what would be named may pass",
        ),
        pytest.param(
            scored(0.6, 0.3, 0.1, {Category.PII: 0.1, Category.VIOLENT: 0.3}), PII_PASSES, 0.4,
            id="what would be named may not",
        ),
        pytest.param(Verdict(severity=Severity.SAFE), Policy.strict(), 0.0, id="safe, certain"),
        pytest.param(
            Verdict(severity=Severity.UNSAFE), Policy.strict(), 1.0, id="unsafe, certain"
        ),
        pytest.param(
            Verdict(severity=Severity.CONTROVERSIAL), Policy.loose(), 0.0, id="flagged, certain"
        ),
    ],
)  # fmt: skip
async def test_a_noul_is_the_probability_that_the_policy_refuses(
    classify: Classify, verdict: Verdict, policy: Policy, risk: float
) -> None:
    response = await classify(judging(verdict, policy), "Hello")
    assert response.nouls["is_risky"].noul == pytest.approx(risk)


async def test_a_choice_of_severities_has_the_probabilities_of_the_model(
    classify: Classify,
) -> None:
    response = await classify(judging(scored(0.1, 0.2, 0.7)), "Hello", {"level": LEVELS})
    answer = response.choices["level"]
    assert answer.probabilities == pytest.approx({"safe": 0.1, "Controversial": 0.2, "UNSAFE": 0.7})
    assert (answer.choice, answer.confidence) == ("UNSAFE", pytest.approx(0.7))


@pytest.mark.parametrize(
    ("verdict", "probabilities"),
    [
        pytest.param(
            scored(0.1, 0.2, 0.7, {Category.VIOLENT: 0.6, Category.PII: 0.1, OTHER_KIND: 0.1}),
            {"None": 0.3, "Violent": 0.6, "PII": 0.1},
            id="what was not asked for is in None",
        ),
        pytest.param(
            Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.PII})),
            {"None": 0.0, "Violent": 0.0, "PII": 1.0},
            id="certain",
        ),
        pytest.param(
            Verdict(severity=Severity.SAFE),
            {"None": 1.0, "Violent": 0.0, "PII": 0.0},
            id="certain, none",
        ),
    ],
)  # fmt: skip
async def test_a_choice_of_categories(
    classify: Classify, verdict: Verdict, probabilities: dict[str, float]
) -> None:
    response = await classify(judging(verdict), "Hello", {"kind": KINDS})
    answer = response.choices["kind"]
    assert answer.probabilities == pytest.approx(probabilities)
    assert answer.probabilities[answer.choice] == max(probabilities.values())


async def test_certain_categories_are_not_made_into_shares(classify: Classify) -> None:
    both = frozenset({Category.PII, Category.VIOLENT})
    model = judging(Verdict(severity=Severity.UNSAFE, categories=both))
    with pytest.raises(ConversationError, match="names several"):
        await classify(model, "Hello", {"kind": KINDS})


async def test_a_score_is_the_expected_severity(classify: Classify) -> None:
    response = await classify(judging(scored(0.1, 0.2, 0.7)), "Hello", {"level": RUBRIC})
    answer = response.scores["level"]
    assert answer.score == pytest.approx(1.6)
    assert answer.legend == {0: "Safe", 1: "Controversial", 2: "Unsafe"}
    assert (answer.probabilities[2], answer.confidence) == (pytest.approx(0.7), pytest.approx(0.7))


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(Noul(instructions="Does it report a bug?"), id="another yes or no"),
        pytest.param(
            Choice(instructions="Who?", criteria={"billing": None, "sales": None}), id="routing"
        ),
        pytest.param(
            Choice(instructions="?", criteria={"Safe": None, "Unsafe": None}), id="two severities"
        ),
        pytest.param(
            Choice(instructions="?", criteria={"PII": None, "Violent": None}), id="without None"
        ),
        pytest.param(
            Choice(instructions="?", criteria={"PII": None, "pii": None, "None": None}), id="twice"
        ),
        pytest.param(Choice(instructions="?", criteria={"None": None}), id="None alone"),
        pytest.param(Score(instructions="?", criteria=["Unsafe", "Safe"]), id="another rubric"),
        pytest.param(
            Score(instructions="?", criteria=["Unsafe", "Controversial", "Safe"]), id="backwards"
        ),
        pytest.param(Box(instructions="Where?"), id="a place"),
    ],
)
async def test_what_it_cannot_know_it_does_not_answer(
    classify: Classify, question: Question
) -> None:
    engine = ScriptedEngine()
    with pytest.raises(ConversationError, match=r"'asked'.*reads no instructions"):
        await classify(GuardDecisionModel(Guard(engine)), "Hello", {**RISKY, "asked": question})
    assert not engine.seen


async def test_no_question_is_an_error(classify: Classify) -> None:
    with pytest.raises(ConversationError, match="no question"):
        await classify(judging({}), "Hello", {})


async def test_an_application_says_which_questions_ask_for_harm(classify: Classify) -> None:
    guard = Guard(ScriptedEngine(UNSAFE))
    model = GuardDecisionModel(guard, risk_questions=frozenset({"harmful"}))
    response = await classify(model, "Hello", {"harmful": Noul(instructions="Is it harmful?")})
    assert response.nouls["harmful"].noul == 1.0
    with pytest.raises(ConversationError, match="is_risky"):
        await classify(model, "Hello")


ASK = HumanMessage("Clean up")
CALL = {"id": "1", "name": "delete", "args": {"path": "a.txt"}}
OTHER = {"id": "2", "name": "other", "args": {"path": "b.txt"}}
CALLS = AIMessage("I will.", tool_calls=[CALL, OTHER])
DONE = ToolMessage("done", tool_call_id="2")
JUDGED_CALL = 'assistant: delete({"path": "a.txt"})'


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        pytest.param("Hello", ["user: Hello"], id="text"),
        pytest.param(AIMessage("Hi"), ["assistant: Hi"], id="message"),
        pytest.param([ASK, AIMessage("Hi")], ["user: Clean up", "assistant: Hi"], id="messages"),
        pytest.param((ASK,), ["user: Clean up"], id="tuple"),
        pytest.param({"messages": [ASK]}, ["user: Clean up"], id="state"),
        pytest.param({"tool_call": CALL}, [JUDGED_CALL], id="call"),
        pytest.param({"tool_call": CALL, "messages": []}, [JUDGED_CALL], id="no message"),
        pytest.param(
            {"tool_call": CALL, "messages": [ASK, CALLS], "tool_description": "Deletes a file"},
            ["user: Clean up", JUDGED_CALL],
            id="the other calls of its message are left out",
        ),
        pytest.param(
            {"tool_call": CALL, "messages": [ASK, AIMessage("Hm."), ASK]},
            ["user: Clean up", "assistant: Hm.", "user: Clean up", JUDGED_CALL],
            id="history",
        ),
        pytest.param(
            {"tool_call": CALL, "messages": [ASK, CALLS, DONE]},
            [
                "user: Clean up",
                'assistant: I will.\ndelete({"path": "a.txt"})\nother({"path": "b.txt"})',
                "tool: done",
                JUDGED_CALL,
            ],
            id="after the result of another",
        ),
    ],
)
async def test_what_is_judged_of_a_state(classify: Classify, state: State, seen: list[str]) -> None:
    engine = ScriptedEngine()
    await classify(GuardDecisionModel(Guard(engine)), state)
    [conversation] = engine.seen
    assert [f"{m.role.value}: {m.judged_text}" for m in conversation.messages] == seen


@pytest.mark.parametrize(
    ("state", "stage", "risk"),
    [
        pytest.param({"tool_call": CALL}, Stage.TOOL_CALL, 1.0, id="tool call"),
        pytest.param({"tool_call": CALL}, Stage.INPUT, 0.0, id="tool call, not input"),
        pytest.param("Hello", Stage.INPUT, 1.0, id="text"),
        pytest.param(AIMessage("Hello"), Stage.OUTPUT, 1.0, id="reply"),
    ],
)
async def test_the_rules_of_the_stage_hold(
    classify: Classify, state: State, stage: Stage, risk: float
) -> None:
    """Only one stage has a rule."""
    rules = {stage: StagePolicy(rules=(Rule(action=Action.BLOCK),))}
    policy = Policy(name="own", default=StagePolicy(), stages=rules)
    response = await classify(judging(UNSAFE, policy), state)
    assert response.nouls["is_risky"].noul == risk


async def test_the_stage_of_other_states_can_be_given(classify: Classify) -> None:
    rules = {Stage.CONTEXT: StagePolicy(rules=(Rule(action=Action.BLOCK),))}
    policy = Policy(name="own", default=StagePolicy(), stages=rules)
    model = GuardDecisionModel(Guard(ScriptedEngine(UNSAFE), policy), stage=Stage.CONTEXT)
    assert (await classify(model, "A chunk")).nouls["is_risky"].noul == 1.0


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"messages": [ASK], "notes": "SECRET"}, id="a field that is not understood"),
        pytest.param({"SECRET": "SECRET"}, id="no message"),
        pytest.param({"messages": []}, id="empty"),
        pytest.param([], id="nothing"),
        pytest.param([["SECRET", 1, 2]], id="no messages"),
        pytest.param(7, id="number"),
        pytest.param({"tool_call": "SECRET"}, id="no call"),
        pytest.param({"tool_call": {"name": "f", "args": {}, "note": "SECRET"}}, id="more"),
        pytest.param({"tool_call": CALL, "messages": [{"role": "SECRET"}]}, id="bad context"),
    ],
)
async def test_a_state_that_would_go_unjudged_is_refused(classify: Classify, state: Any) -> None:
    engine = ScriptedEngine()
    with pytest.raises(ConversationError) as caught:
        await classify(GuardDecisionModel(Guard(engine)), state)
    assert "SECRET" not in str(caught.value)
    assert not engine.seen


GONE = EngineUnavailable("the server is gone")


@pytest.mark.parametrize(
    ("on_error", "failure", "expected"),
    [
        pytest.param(OnError.BLOCK, GONE, None, id="block"),
        pytest.param(OnError.RAISE, GONE, EngineUnavailable, id="raise"),
        pytest.param(OnError.ALLOW, GONE, EngineError, id="allow is no low risk"),
        pytest.param(OnError.BLOCK, UnreadableVerdict("hm"), None, id="unreadable, block"),
        pytest.param(OnError.ALLOW, UnreadableVerdict("hm"), None, id="unreadable, allow"),
    ],
)
async def test_a_failure_is_never_a_low_risk(
    classify: Classify,
    on_error: OnError,
    failure: GuardError,
    expected: type[GuardError] | None,
) -> None:
    model = judging(failure, Policy.strict(on_error=on_error))
    if expected is None:
        assert (await classify(model, "Hello")).nouls["is_risky"].noul == 1.0
        return
    with pytest.raises(expected):
        await classify(model, "Hello")


@pytest.mark.parametrize("question", [LEVELS, KINDS, RUBRIC], ids=["level", "kind", "score"])
@pytest.mark.parametrize(
    ("on_error", "error"),
    [(OnError.BLOCK, GuardViolation), (OnError.ALLOW, EngineError), (OnError.RAISE, EngineError)],
)
async def test_without_a_verdict_nothing_else_has_an_answer(
    classify: Classify, question: Question, on_error: OnError, error: type[GuardError]
) -> None:
    model = judging(GONE, Policy.strict(on_error=on_error))
    with pytest.raises(error, match="the server is gone"):
        await classify(model, "Hello", {"asked": question})


async def test_an_answer_says_who_gave_it_and_what_it_cost(classify: Classify) -> None:
    guard = Guard(ScriptedEngine(scored(0.9, 0.05, 0.05), name="tiny"))
    response = await classify(GuardDecisionModel(guard), "Hello")
    assert response.model == "tiny"
    assert response.usage is not None
    assert response.usage["input_tokens"] == 40
    named = await classify(GuardDecisionModel(guard, model="ours"), "Hello")
    assert named.model == "ours"


class Recorder(BaseCallbackHandler):
    """Keeps what runs begin and end with, as text."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        self.shown.append(repr((args, kwargs)))

    def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
        self.shown.append(repr((args, kwargs)))


@pytest.mark.parametrize("shown", [False, True], ids=["by default", "asked for"])
async def test_traces_show_the_state_only_if_asked_for(classify: Classify, shown: bool) -> None:
    recorder = Recorder()
    model = GuardDecisionModel(Guard(ScriptedEngine()), trace_payloads=shown)
    await classify(model, "SECRET", config={"callbacks": [recorder]})
    assert "guardrails_qwen" in recorder.shown[0]
    assert any("SECRET" in run for run in recorder.shown) is shown


class CallingModel(GenericFakeChatModel):
    """A model that plays its messages back, whatever tools it gets."""

    def bind_tools(self, *args: Any, **kwargs: Any) -> Runnable[Any, Any]:
        return self


Ask = Callable[[GuardDecisionModel], Awaitable[list[AnyMessage]]]


@pytest.fixture
def deleted() -> list[str]:
    """The paths for which the tool of the agent was run."""
    return []


@pytest.fixture(params=["invoke", "ainvoke"])
def ask(request: pytest.FixtureRequest, deleted: list[str]) -> Ask:
    """An agent that wants to delete "notes" and "bomb" at once, behind AutoModeMiddleware."""
    import langchain.agents
    from langchain.agents.middleware import AutoModeMiddleware

    create_agent: Callable[..., Runnable[Any, Any]] = vars(langchain.agents)["create_agent"]

    @tool
    def delete(path: str) -> str:
        """Delete a file."""
        deleted.append(path)
        return "deleted"

    async def answered(classifier: GuardDecisionModel) -> list[AnyMessage]:
        calls = [
            {"id": path, "name": "delete", "args": {"path": path}} for path in ("notes", "bomb")
        ]
        replies = iter([AIMessage("", tool_calls=calls), AIMessage("Done.")])
        gate = AutoModeMiddleware(tools=[delete], classifier=classifier)
        agent = create_agent(CallingModel(messages=replies), [delete], middleware=[gate])
        asked: Any = {"messages": [HumanMessage("Clean up.")]}
        if request.param == "invoke":
            return agent.invoke(asked)["messages"]
        return (await agent.ainvoke(asked))["messages"]

    return answered


async def test_auto_mode_blocks_the_unsafe_call_and_runs_the_other(
    ask: Ask, deleted: list[str]
) -> None:
    engine = ScriptedEngine({"bomb": UNSAFE})
    messages = await ask(GuardDecisionModel(Guard(engine)))
    results = {m.tool_call_id: m.status for m in messages if isinstance(m, ToolMessage)}
    assert results == {"notes": "success", "bomb": "error"}
    assert deleted == ["notes"]
    assert messages[-1].text == "Done."
    assert sorted(len(conversation.messages) for conversation in engine.seen) == [2, 2]


@pytest.mark.parametrize(
    ("on_error", "raised"),
    [
        pytest.param(OnError.BLOCK, False, id="block"),
        pytest.param(OnError.RAISE, True, id="raise"),
        pytest.param(OnError.ALLOW, True, id="allow"),
    ],
)
async def test_auto_mode_runs_nothing_that_could_not_be_judged(
    ask: Ask, deleted: list[str], on_error: OnError, raised: bool
) -> None:
    classifier = GuardDecisionModel(Guard(FailingEngine(), Policy.strict(on_error=on_error)))
    if raised:
        with pytest.raises(EngineError):
            await ask(classifier)
    else:
        messages = await ask(classifier)
        assert [m.status for m in messages if isinstance(m, ToolMessage)] == ["error", "error"]
    assert not deleted
