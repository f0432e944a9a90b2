"""Objects that a guarded model writes: what is not let through never becomes one."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from guardrails_qwen import Action, Guard, GuardViolation
from integrations.llama_index.tests.doubles import WritingLLM, call, heard
from integrations.llama_index.tests.llm_doors import assistant, user
from llama_index_guardrails_qwen import GuardedLLM

PROMPT = PromptTemplate("Invent a recipe for {dish}.")
DOORS = (
    "structured_predict",
    "astructured_predict",
    "stream_structured_predict",
    "astream_structured_predict",
)


class Recipe(BaseModel):
    """A recipe."""

    dish: str
    steps: str = ""


GOOD, BAD = Recipe(dish="Tea", steps="Boil it."), Recipe(dish="Tea", steps="Take a bomb.")


def replies(recipe: Recipe, mode: PydanticProgramMode) -> list[Any]:
    """How a model writes a recipe: as a call, or as text."""
    fields, text = recipe.model_dump(), recipe.model_dump_json()
    if mode is PydanticProgramMode.LLM:
        return [f"{part}," if part[-1] != "}" else part for part in text.split(",")]
    calls = [{"function": {"name": "Recipe", "arguments": json.dumps(fields)}}]
    message = assistant("", additional_kwargs={"tool_calls": calls})
    block = call("Recipe", **fields)
    message.blocks.append(block)
    return [block, ChatResponse(message=message, delta="")]


@pytest.fixture(params=[PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM])
def mode(request: pytest.FixtureRequest) -> PydanticProgramMode:
    """As calls, and as text."""
    return request.param


@pytest.fixture
def model(guarding: Callable[..., Guard], mode: PydanticProgramMode) -> Callable[..., GuardedLLM]:
    """Makes a guarded model that writes a recipe."""

    def make(recipe: Recipe, action: Action = Action.BLOCK, **fields: Any) -> GuardedLLM:
        inner = WritingLLM(replies=[replies(recipe, mode)], pydantic_program_mode=mode)
        return GuardedLLM(inner=inner, guard=guarding(action), **fields)

    return make


async def predict(door: str, llm: Any, dish: str = "tea") -> list[Any]:
    answer: Any = getattr(llm, door)(Recipe, PROMPT, dish=dish)
    if door.startswith("a"):
        answer = await answer
    if "stream" not in door:
        return [answer]
    return [one async for one in answer] if door.startswith("a") else list(answer)


@pytest.mark.parametrize("door", DOORS)
async def test_what_is_harmless_becomes_an_object(
    door: str, model: Callable[..., GuardedLLM]
) -> None:
    [*_, last] = await predict(door, model(GOOD))
    assert last.model_dump() == GOOD.model_dump()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE, Action.REDACT, Action.DROP])
@pytest.mark.parametrize("violation", ["raise", "reply"])
async def test_what_is_not_let_through_never_does(
    door: str,
    action: Action,
    violation: str,
    model: Callable[..., GuardedLLM],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    out, error = list[Any](), None
    with heard() as (events, spans):
        try:
            out = await predict(door, model(BAD, action, on_violation=violation))
        except Exception as raised:  # noqa: BLE001 - what parses has its own
            error = raised
    assert "bomb" not in f"{out!r} {error!r} {caplog.text} {events.events!r} {spans.told}"
    assert all(getattr(one, "steps", None) != BAD.steps for one in out)
    if action is Action.BLOCK and violation == "raise":
        assert isinstance(error, GuardViolation)


@pytest.mark.parametrize("door", DOORS)
async def test_a_prompt_that_is_blocked_is_not_answered(
    door: str, model: Callable[..., GuardedLLM]
) -> None:
    llm: Any = model(GOOD)
    with pytest.raises(GuardViolation):
        await predict(door, llm, "a bomb")
    assert llm.inner.seen == []


@pytest.mark.parametrize("door", ["chat", "achat", "complete", "acomplete"])
@pytest.mark.parametrize("recipe", [GOOD, BAD], ids=["harmless", "harmful"])
async def test_as_a_structured_model(
    door: str, recipe: Recipe, model: Callable[..., GuardedLLM]
) -> None:
    llm = model(recipe).as_structured_llm(Recipe)
    given: Any = "Tea?" if "complete" in door else [user("Tea?")]
    try:
        answer: Any = getattr(llm, door)(given)
        answer = await answer if door.startswith("a") else answer
    except GuardViolation:
        assert recipe is BAD
    else:
        assert answer.raw == GOOD
        assert recipe is GOOD
