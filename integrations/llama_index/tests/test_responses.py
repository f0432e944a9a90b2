"""Answers that do not stream: what is judged of them, and what callers get."""

from collections.abc import Callable
from enum import Enum
from typing import Any, cast

import pytest
from llama_index.core.base.base_selector import MultiSelection, SingleSelection
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.query_engine import CustomQueryEngine
from pydantic import BaseModel, Field, RootModel, field_serializer

from guardrails_qwen import Action, Guard, GuardViolation, OnError
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import REPLACED, heard
from integrations.llama_index.tests.query_doubles import Answering, asked, node
from llama_index_guardrails_qwen.events import GuardViolationEvent
from llama_index_guardrails_qwen.query_engine import guard_query_engine

Guarding = Callable[..., Guard]
BAD = "First. Then build a bomb. Last."


@pytest.fixture(params=["query", "aquery"])
def door(request: pytest.FixtureRequest) -> str:
    """Both doors of an engine."""
    return request.param


class Kind(str, Enum):
    """What a step is."""

    BOMB = "bomb"
    BREAD = "bread"


class Step(BaseModel):
    """A part of a recipe."""

    name: str
    kind: Kind = Kind.BREAD


class Recipe(BaseModel):
    """A structured answer."""

    title: str
    type: str = "recipe"
    minutes: int = 30
    steps: list[Step] = []
    hidden: str = Field(default="", exclude=True)


class Spelled(BaseModel):
    """Says something else as JSON than its field does."""

    letters: list[str]

    @field_serializer("letters")
    def spelled(self, letters: list[str]) -> str:
        """The word."""
        return "".join(letters)


class Unwritable(BaseModel):
    """Cannot be written as JSON."""

    secret: str

    @field_serializer("secret")
    def failing(self, secret: str) -> str:
        """Never."""
        raise ValueError(secret)


def _deep(levels: int) -> Any:
    return "bread" if levels == 0 else [_deep(levels - 1)]


def _answering(response: Any) -> Answering:
    return Answering(lambda _: response)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(Response("Fine.", [node("a")], {"id-a": {"file": "a"}}), id="a text"),
        pytest.param(Response(None), id="nothing"),
        pytest.param(Response(""), id="an empty text"),
        pytest.param(
            PydanticResponse(Recipe(title="Bread", steps=[Step(name="mix")]), [node("a")]),
            id="an object",
        ),
        pytest.param(PydanticResponse(None, [node("a")]), id="no object"),
        pytest.param(Response("Fine.", [node("a")], {"sql_query": "SELECT 1"}), id="and more"),
    ],
)
async def test_an_answer_that_passes_is_the_same_object(
    door: str, guard: Guard, response: Any
) -> None:
    guarded = guard_query_engine(_answering(response), guard)
    assert await asked(door, guarded, "How?") is response


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(Response(BAD, [node("a")]), id="a text"),
        pytest.param(Response(cast("Any", {"text": [BAD]})), id="something else with texts"),
        pytest.param(PydanticResponse(Recipe(title="A bomb")), id="a field"),
        pytest.param(PydanticResponse(Recipe(title="", type="bomb")), id="a field that is a mark"),
        pytest.param(PydanticResponse(Recipe(title="", hidden="bomb")), id="an excluded field"),
        pytest.param(
            PydanticResponse(Recipe(title="", steps=[Step(name="a"), Step(name="a bomb")])),
            id="an inner object",
        ),
        pytest.param(
            PydanticResponse(Recipe(title="", steps=[Step(name="a", kind=Kind.BOMB)])), id="an enum"
        ),
        pytest.param(PydanticResponse(RootModel[list[str]](["bread", "bomb"])), id="a root"),
        pytest.param(PydanticResponse(RootModel[dict[str, int]]({"a bomb": 1})), id="a name"),
        pytest.param(PydanticResponse(Spelled(letters=list("bomb"))), id="what JSON shows"),
        pytest.param(PydanticResponse(Unwritable(secret="bread")), id="no JSON"),
        pytest.param(PydanticResponse(RootModel[Any](_deep(40))), id="too deep"),
        pytest.param(Response("half a character \ud800"), id="half a character"),
    ],
)
@pytest.mark.parametrize("on_error", [OnError.BLOCK, OnError.ALLOW])
async def test_an_answer_that_says_or_may_say_something_bad_is_blocked(
    door: str, guarding: Guarding, response: Any, on_error: OnError
) -> None:
    guarded = guard_query_engine(_answering(response), guarding(on_error=on_error))
    with pytest.raises(GuardViolation, match=r"^output blocked") as caught:
        await asked(door, guarded, "How?")
    assert "bomb" not in str(caught.value)
    assert "bread" not in str(caught.value)


class _Custom(CustomQueryEngine):
    """Its answers are of any kind: LlamaIndex looks at those of all other engines."""

    answer: Any

    def custom_query(self, query_str: str) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [AgentChatResponse("Fine."), None, {"response": "Fine."}])
async def test_an_answer_of_an_unknown_kind_is_not_waved_through(
    door: str, guarding: Guarding, answer: Any
) -> None:
    guarded = guard_query_engine(_Custom(answer=answer), guarding(on_error=OnError.ALLOW))
    with pytest.raises(GuardViolation, match="as the answer of a query engine"):
        await asked(door, guarded, "How?")


async def test_what_escapes_would_hide_is_judged_as_it_is(
    door: str, guard: Guard, engine: ScriptedEngine
) -> None:
    response = PydanticResponse(Recipe(title='Say "crème"\nand bake'))
    await asked(door, guard_query_engine(_answering(response), guard), "How?")
    assert 'title: Say "crème"\nand bake' in engine.seen[-1].last.text
    assert [message.text for message in engine.seen[-1].messages[:-1]] == ["How?"]


@pytest.mark.parametrize(
    ("action", "options", "text"),
    [
        pytest.param(Action.BLOCK, {"on_violation": "reply"}, REPLACED, id="blocked"),
        pytest.param(
            Action.BLOCK,
            {"on_violation": "reply", "streaming": Streaming(closing="No more.")},
            "No more.",
            id="blocked, with a closing text",
        ),
        pytest.param(
            Action.BLOCK,
            {"streaming": Streaming(closing="No.")},
            "No.",
            id="the closing text alone",
        ),
        pytest.param(Action.REPLACE, {}, REPLACED, id="replaced"),
        pytest.param(Action.DROP, {}, "", id="dropped"),
        pytest.param(Action.REDACT, {}, "First. [removed: Violent] Last.", id="redacted"),
    ],
)
async def test_what_does_not_pass_comes_without_sources_and_metadata(
    door: str, guarding: Guarding, action: Action, options: dict[str, Any], text: str
) -> None:
    response = Response(BAD, [node("a")], {"id-a": {"file": "a"}})
    guarded = guard_query_engine(_answering(response), guarding(action), **options)
    assert await asked(door, guarded, "How?") == Response(text)
    assert response == Response(BAD, [node("a")], {"id-a": {"file": "a"}})


@pytest.mark.parametrize("action", [Action.REPLACE, Action.REDACT])
async def test_an_object_that_is_changed_is_the_policys_text(
    door: str, guarding: Guarding, action: Action
) -> None:
    response = PydanticResponse(Recipe(title="Bread", steps=[Step(name=BAD)]), [node("a")], {})
    guarded = guard_query_engine(_answering(response), guarding(action))
    assert await asked(door, guarded, "How?") == Response(REPLACED)


_CHOICE = MultiSelection(selections=[SingleSelection(index=0, reason="It is about a bomb.")])


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"selector_result": _CHOICE}, id="why a tool was chosen"),
        pytest.param({"sql_query": "SELECT 'bomb'"}, id="a query"),
        pytest.param({"sub_qa": [("How?", Response("A bomb."))]}, id="answers on the way"),
        pytest.param({"a bomb": None}, id="a name"),
        pytest.param({"id-b": {"file": "a bomb"}}, id="under the id of no source"),
        pytest.param({"id-a": {"file": "a bomb"}}, id="not what the source has"),
    ],
)
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REDACT])
async def test_what_is_told_beside_an_answer_has_to_pass_as_well(
    door: str, guarding: Guarding, told: dict[str, Any], action: Action
) -> None:
    sources = [node("b"), node("a")]
    metadata = {"id-b": {"file": "a"}, **told}
    response = Response("Fine.", sources, metadata)
    with heard() as (events, _):
        guarded = guard_query_engine(_answering(response), guarding(action))
        passed = await asked(door, guarded, "How?")
    kept = {key: item for key, item in metadata.items() if key not in told}
    assert passed == Response("Fine.", sources, kept or None)
    assert len(events.of(GuardViolationEvent)) == 1


async def test_the_metadata_of_sources_is_not_judged_again(
    door: str, guard: Guard, engine: ScriptedEngine
) -> None:
    metadata = {"id-a": {"file": "a"}}
    response = Response("Fine.", [node("a")], metadata)
    await asked(door, guard_query_engine(_answering(response), guard), "How?")
    assert [seen.last.text for seen in engine.seen] == ["How?", "Fine."]


async def test_objects_keep_theirs_too(door: str, guard: Guard) -> None:
    recipe = Recipe(title="Bread")
    response = PydanticResponse(recipe, [node("a")], {"why": "bomb", "id-a": {"file": "a"}})
    passed = await asked(door, guard_query_engine(_answering(response), guard), "How?")
    assert passed == PydanticResponse(recipe, [node("a")], {"id-a": {"file": "a"}})


async def test_what_was_put_on_an_answer_has_to_pass(door: str, guard: Guard) -> None:
    response: Any = Response("Fine.", [node("a")])
    response.thoughts = "About a bomb."
    passed = await asked(door, guard_query_engine(_answering(response), guard), "How?")
    assert passed == Response("Fine.", [node("a")])
    assert not hasattr(passed, "thoughts")
