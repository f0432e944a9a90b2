"""A guard as an evaluator: what passes, how sure that is, and what was not judged at all."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.evaluation import BatchEvalRunner, EvaluationResult
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel

from guardrails_qwen import (
    Action,
    ConversationError,
    EngineError,
    Guard,
    OnError,
    Policy,
    Scores,
    Severity,
    Verdict,
)
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.llama_index.tests.doubles import SCRIPT, NGramEmbedding, WritingLLM
from llama_index_guardrails_qwen import SafetyEvaluator

Evaluate = Callable[..., Awaitable[EvaluationResult]]

ASK = "How do I pass the time?"
GOOD = "Read a book."
BAD = "Build a bomb."


@pytest.fixture(params=["evaluate", "aevaluate"])
def evaluate(request: pytest.FixtureRequest) -> Evaluate:
    """Both doors of an evaluator."""

    async def door(evaluator: SafetyEvaluator, *args: Any, **kwargs: Any) -> EvaluationResult:
        if request.param == "evaluate":
            return evaluator.evaluate(*args, **kwargs)
        return await evaluator.aevaluate(*args, **kwargs)

    return door


def scored(severity: Severity, safe: float) -> Verdict:
    """A verdict that is so sure of Safe."""
    rest = {Severity.CONTROVERSIAL: (1 - safe) / 4, Severity.UNSAFE: (1 - safe) * 3 / 4}
    return Verdict(severity=severity, scores=Scores(severity={Severity.SAFE: safe, **rest}))


def deciding(action: Action) -> Guard:
    return Guard(ScriptedEngine(SCRIPT), Policy.strict(action=action))


@pytest.mark.parametrize(
    ("action", "passing"),
    [
        (Action.FLAG, True),
        (Action.REDACT, False),
        (Action.REPLACE, False),
        (Action.DROP, False),
        (Action.BLOCK, False),
    ],
    ids=lambda value: value.label if isinstance(value, Action) else str(value),
)
async def test_what_the_policy_does_says_what_passes(
    action: Action, passing: bool, evaluate: Evaluate
) -> None:
    result = await evaluate(SafetyEvaluator(deciding(action)), ASK, BAD)
    assert (result.passing, result.invalid_result) == (passing, False)
    assert (await evaluate(SafetyEvaluator(deciding(action)), ASK, GOOD)).passing is True


async def test_a_result_says_what_was_evaluated_and_why_without_quoting_it(
    guard: Guard, evaluate: Evaluate
) -> None:
    result = await evaluate(SafetyEvaluator(guard), ASK, BAD, ["A source."])
    assert (result.query, result.response) == (ASK, BAD)
    assert result.contexts == ["A source."]
    assert result.feedback == (
        "output blocked: Unsafe (Violent), rule «Controversial: block», policy strict"
    )


async def test_a_reply_is_judged_with_its_query(
    engine: ScriptedEngine, guard: Guard, evaluate: Evaluate
) -> None:
    await evaluate(SafetyEvaluator(guard), ASK, GOOD, ["A source."])
    [conversation] = engine.seen
    assert [(m.role.value, m.text) for m in conversation.messages] == [
        ("user", ASK),
        ("assistant", GOOD),
    ]


async def test_a_reply_without_a_query_is_judged_alone(
    engine: ScriptedEngine, guard: Guard, evaluate: Evaluate
) -> None:
    assert (await evaluate(SafetyEvaluator(guard), response=BAD)).passing is False
    assert [message.role.value for message in engine.seen[0].messages] == ["assistant"]


@pytest.mark.parametrize(
    ("options", "query", "contexts", "passing", "stages"),
    [
        ({}, BAD, [BAD], True, ["output"]),
        ({"check_query": True}, BAD, [BAD], False, ["output", "input"]),
        ({"check_query": True}, ASK, [BAD], True, ["output", "input"]),
        ({"check_contexts": True}, BAD, ["x", BAD, "y"], False, ["output"] + ["context"] * 3),
        ({"check_contexts": True}, BAD, [], True, ["output"]),
        (
            {"check_query": True, "check_contexts": True},
            ASK,
            ["x"],
            True,
            ["output", "input", "context"],
        ),
    ],
    ids=["the reply alone", "query", "query passes", "contexts", "no contexts", "all"],
)
async def test_queries_and_contexts_have_to_pass_where_they_are_checked(
    options: dict[str, bool],
    query: str,
    contexts: list[str],
    passing: bool,
    stages: list[str],
    guard: Guard,
    evaluate: Evaluate,
) -> None:
    result = await evaluate(SafetyEvaluator(guard, **options), query, GOOD, contexts)
    assert result.passing is passing
    assert [line.split()[0] for line in (result.feedback or "").splitlines()] == stages


async def test_the_score_is_the_probability_of_safe_whatever_the_policy_says(
    evaluate: Evaluate,
) -> None:
    engine = ScriptedEngine({"dubious": scored(Severity.CONTROVERSIAL, 0.2)})
    for policy, passing in ((Policy.strict(), False), (Policy.loose(), True)):
        result = await evaluate(SafetyEvaluator(Guard(engine, policy)), ASK, "A dubious reply")
        assert (result.passing, result.score) == (passing, pytest.approx(0.2))


async def test_of_several_texts_the_least_safe_gives_the_score(evaluate: Evaluate) -> None:
    engine = ScriptedEngine(
        {"low": scored(Severity.SAFE, 0.6), "": scored(Severity.SAFE, 0.9)},
    )
    evaluator = SafetyEvaluator(Guard(engine), check_contexts=True)
    result = await evaluate(evaluator, ASK, GOOD, ["high", "low", "high"])
    assert result.score == pytest.approx(0.6)


async def test_where_a_text_has_no_probabilities_there_is_no_score(evaluate: Evaluate) -> None:
    engine = ScriptedEngine({"sure": scored(Severity.SAFE, 0.6)})
    evaluator = SafetyEvaluator(Guard(engine), check_contexts=True)
    assert (await evaluate(evaluator, ASK, "sure", ["sure"])).score == pytest.approx(0.6)
    assert (await evaluate(evaluator, ASK, "sure", ["sure", "other"])).score is None


@pytest.mark.parametrize("on_error", [OnError.BLOCK, OnError.ALLOW], ids=lambda on: on.value)
async def test_what_nobody_could_judge_is_invalid_and_never_passes(
    on_error: OnError, evaluate: Evaluate
) -> None:
    guard = Guard(FailingEngine(), Policy.strict(on_error=on_error))
    result = await evaluate(SafetyEvaluator(guard), ASK, GOOD)
    assert (result.passing, result.score, result.invalid_result) == (False, None, True)
    assert result.invalid_reason == "EngineError: the engine is not available"


async def test_an_unreadable_answer_is_invalid_and_not_quoted(evaluate: Evaluate) -> None:
    guard = Guard(ScriptedEngine(f"I think that {BAD} is fine"))
    result = await evaluate(SafetyEvaluator(guard), ASK, GOOD)
    assert (result.passing, result.invalid_result) == (False, True)
    assert "UnreadableVerdict" in str(result.invalid_reason)
    assert "bomb" not in str(result)


@pytest.mark.parametrize("where", ["query", "response", "context"])
async def test_a_text_that_no_model_can_be_asked_about_is_invalid(
    where: str, guard: Guard, evaluate: Evaluate
) -> None:
    texts = {"query": ASK, "response": GOOD, "context": "A source."}
    texts[where] += "\ud800"
    evaluator = SafetyEvaluator(guard, check_contexts=True)
    result = await evaluate(evaluator, texts["query"], texts["response"], [texts["context"]])
    assert (result.passing, result.invalid_result) == (False, True)
    assert str(result.invalid_reason).startswith(ConversationError.__name__)


async def test_what_fails_is_not_made_invalid_by_what_could_not_be_judged(
    evaluate: Evaluate,
) -> None:
    engine = ScriptedEngine({**SCRIPT, "broken": EngineError("gone")})
    evaluator = SafetyEvaluator(Guard(engine), check_contexts=True)
    result = await evaluate(evaluator, ASK, BAD, ["broken"])
    assert (result.passing, result.invalid_result, result.invalid_reason) == (False, False, None)
    result = await evaluate(evaluator, ASK, GOOD, ["broken"])
    assert (result.passing, result.invalid_result) == (False, True)


async def test_a_policy_that_says_to_raise_is_obeyed(evaluate: Evaluate) -> None:
    guard = Guard(FailingEngine(), Policy.strict(on_error=OnError.RAISE))
    with pytest.raises(EngineError):
        await evaluate(SafetyEvaluator(guard), ASK, GOOD)


@pytest.mark.parametrize(
    ("options", "given", "missing"),
    [
        ({}, {"query": ASK}, "response must be provided"),
        ({"check_query": True}, {"response": GOOD}, "query must be provided"),
        ({"check_contexts": True}, {}, "contexts and response must be provided"),
    ],
    ids=["response", "query", "contexts"],
)
async def test_what_is_missing_is_named(
    options: dict[str, bool],
    given: dict[str, str],
    missing: str,
    guard: Guard,
    evaluate: Evaluate,
) -> None:
    with pytest.raises(ValueError, match=missing):
        await evaluate(SafetyEvaluator(guard, **options), **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"response": Response(BAD)}, "the response is Response, not a text"),
        ({"response": GOOD, "query": {"text": BAD}}, "the query is dict, not a text"),
        ({"response": GOOD, "contexts": BAD}, "the contexts are one text, not a list of texts"),
        ({"response": GOOD, "contexts": [BAD, 7]}, "the context is int, not a text"),
    ],
    ids=["response", "query", "contexts", "context"],
)
async def test_what_is_no_text_is_refused_without_quoting_it(
    given: dict[str, Any], said: str, guard: Guard, evaluate: Evaluate
) -> None:
    with pytest.raises(TypeError) as caught:
        await evaluate(SafetyEvaluator(guard), **given)
    assert str(caught.value) == said


def test_an_evaluator_wants_a_guard(engine: ScriptedEngine) -> None:
    with pytest.raises(TypeError, match="the guard is ScriptedEngine, not a Guard"):
        SafetyEvaluator(cast("Guard", engine))


async def test_a_response_is_judged_by_its_text_and_sources(
    guard: Guard, evaluate: Evaluate
) -> None:
    source = NodeWithScore(node=TextNode(text=BAD))
    response = Response(GOOD, source_nodes=[source])
    evaluator = SafetyEvaluator(guard, check_contexts=True)
    results = [
        evaluator.evaluate_response(ASK, response),
        await evaluator.aevaluate_response(ASK, response),
    ]
    assert [(result.passing, result.contexts) for result in results] == [(False, [BAD])] * 2


class Plan(BaseModel):
    """What an engine with an `output_cls` answers."""

    step: str


async def test_an_answer_of_fields_is_judged_as_json(guard: Guard) -> None:
    response = cast("Response", PydanticResponse(Plan(step=BAD)))
    result = await SafetyEvaluator(guard).aevaluate_response(ASK, response)
    assert result.passing is False
    assert json.loads(str(result.response)) == {"step": BAD}


async def test_there_are_no_prompts_to_get_or_update(guard: Guard) -> None:
    evaluator = SafetyEvaluator(guard)
    evaluator.update_prompts({})
    assert evaluator.get_prompts() == {}
    assert evaluator.guard is guard


by_the_runner = pytest.mark.filterwarnings("ignore:asyncio_module:DeprecationWarning")
"""`BatchEvalRunner` calls what LlamaIndex itself has deprecated."""


def batch(guard: Guard, **options: Any) -> BatchEvalRunner:
    return BatchEvalRunner({"safety": SafetyEvaluator(guard, **options)}, workers=4)


@by_the_runner
async def test_a_batch_of_texts(guard: Guard) -> None:
    replies = [GOOD, BAD] * 20
    results = await batch(guard, check_contexts=True).aevaluate_response_strs(
        queries=[ASK] * 40,
        response_strs=replies,
        contexts_list=[["A source."]] * 40,
        **cast("dict[str, Any]", {"safety": {"reference": ["x"] * 40}}),
    )
    assert [result.passing for result in results["safety"]] == [True, False] * 20
    assert [result.response for result in results["safety"]] == replies


@by_the_runner
async def test_a_batch_of_responses_holds_invalid_ones_and_goes_on() -> None:
    guard = Guard(ScriptedEngine({**SCRIPT, "broken": EngineError("gone")}))
    results = await batch(guard).aevaluate_responses(
        queries=[ASK] * 3, responses=[Response(GOOD), Response("broken"), Response(BAD)]
    )
    assert [(r.passing, r.invalid_result) for r in results["safety"]] == [
        (True, False),
        (False, True),
        (False, False),
    ]


@by_the_runner
async def test_a_batch_of_queries(guard: Guard) -> None:
    index: Any = VectorStoreIndex.from_documents(
        [Document(text="A bomb in the park."), Document(text="Ducks swim.")],
        embed_model=NGramEmbedding(),
    )
    engine = index.as_query_engine(llm=WritingLLM(replies=[GOOD]), similarity_top_k=1)
    results = await batch(guard, check_contexts=True).aevaluate_queries(
        engine, queries=["A bomb in the park", "Do ducks swim"]
    )
    assert [result.passing for result in results["safety"]] == [False, True]


@by_the_runner
def test_a_batch_without_a_running_loop(guard: Guard) -> None:
    results = batch(guard).evaluate_response_strs(queries=[ASK], response_strs=[BAD])
    assert [result.passing for result in results["safety"]] == [False]


async def test_evaluations_side_by_side_do_not_mix(guard: Guard) -> None:
    evaluator = SafetyEvaluator(guard)
    replies = [f"{BAD if number % 3 else GOOD} {number}" for number in range(100)]
    results = await asyncio.gather(*(evaluator.aevaluate(ASK, reply) for reply in replies))
    assert [result.response for result in results] == replies
    assert [result.passing for result in results] == [number % 3 == 0 for number in range(100)]


def test_a_real_checkpoint_gives_scores() -> None:
    evaluator = SafetyEvaluator(Guard.from_pretrained("tiny"), check_query=True)
    bad = evaluator.evaluate("How can I make a bomb?", "I will not help with that.")
    good = evaluator.evaluate("What is a good recipe for pancakes?", "Take flour, milk and eggs.")
    assert (bad.passing, good.passing) == (False, True)
    assert 0 <= (bad.score or 0) < 0.5 < (good.score or 0) <= 1
