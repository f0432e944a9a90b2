"""Tools of a guarded model: its calls are judged before anybody can make them."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from llama_index.core.agent.workflow import CodeActAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.llms import MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from guardrails_qwen import Action, Guard, GuardViolation, Stage
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.agents.building import of_the_framework
from integrations.llama_index.tests.doubles import REPLACED, WritingLLM, call, heard
from integrations.llama_index.tests.llm_doors import assistant, text_of
from llama_index_guardrails_qwen import GuardedLLM, guarded_tools

DOORS = (
    "chat_with_tools",
    "achat_with_tools",
    "stream_chat_with_tools",
    "astream_chat_with_tools",
)
doors = pytest.mark.parametrize("door", DOORS)


class Called:
    """Counts its calls."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, query: str) -> str:
        """Search."""
        self.queries.append(query)
        return f"All about {query}"


@pytest.fixture
def called() -> Called:
    return Called()


@pytest.fixture
def tool(called: Called) -> FunctionTool:
    return cast("Any", FunctionTool).from_defaults(called.search)


async def ask(door: str, llm: FunctionCallingLLM, tools: Any, text: str) -> list[ChatResponse]:
    answer: Any = getattr(llm, door)(tools, user_msg=text)
    if door.startswith("a"):
        answer = await answer
    if "stream" not in door:
        return [answer]
    return [one async for one in answer] if door.startswith("a") else list(answer)


class Function(BaseModel):
    """As OpenAI's client has it."""

    name: str
    arguments: str


class Call(BaseModel):
    """As OpenAI's client has it."""

    id: str = "call-1"
    type: str = "function"
    function: Function


ARGUMENTS = '{"query": "a \\u0062omb"}'
CALLS: dict[str, Any] = {
    "block": ["Well. ", call("search", query="a bomb")],
    "name": ["Well. ", call("bomb")],
    "text": ["Well. ", call("search").model_copy(update={"tool_kwargs": ARGUMENTS})],
    "dicts": [
        ChatResponse(
            message=assistant(
                "Well. ",
                additional_kwargs={
                    "tool_calls": [{"function": {"name": "search", "arguments": ARGUMENTS}}]
                },
            ),
            delta="Well. ",
        )
    ],
    "objects": [
        ChatResponse(
            message=assistant(
                "Well. ",
                additional_kwargs={
                    "tool_calls": [Call(function=Function(name="search", arguments=ARGUMENTS))]
                },
            ),
            delta="Well. ",
        )
    ],
    "legacy": [
        ChatResponse(
            message=assistant(
                "Well. ",
                additional_kwargs={"function_call": {"name": "search", "arguments": ARGUMENTS}},
            ),
            delta="Well. ",
        )
    ],
    "unknown": [
        ChatResponse(
            message=assistant("Well. ", additional_kwargs={"tool_calls": "a bomb"}), delta="Well. "
        )
    ],
}


@doors
@pytest.mark.parametrize("action", [Action.BLOCK, Action.REPLACE, Action.REDACT, Action.DROP])
@pytest.mark.parametrize("reply", CALLS.values(), ids=CALLS)
async def test_a_call_that_is_not_let_through_is_seen_by_nobody(
    door: str,
    action: Action,
    reply: list[Any],
    tool: FunctionTool,
    guarding: Callable[..., Guard],
) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[reply]), guard=guarding(action))
    error, out = None, list[ChatResponse]()
    with heard() as (events, spans):
        try:
            out = await ask(door, llm, [tool], "Hi.")
        except GuardViolation as violation:
            error = violation
    everything = f"{out!r} {error!r} {events.events!r} {spans.told}"
    assert "bomb" not in everything
    assert "\\u0062omb" not in everything
    assert error is not None or not llm.get_tool_calls_from_response(
        out[-1], error_on_no_tool_call=False
    )


@doors
async def test_a_harmless_call_is_found_in_what_is_released(
    door: str, tool: FunctionTool, guard: Guard
) -> None:
    inner = WritingLLM(replies=[["Well. ", call("search", query="tea")]])
    llm = GuardedLLM(inner=inner, guard=guard)
    out = await ask(door, llm, [tool], "Hi.")
    [found] = llm.get_tool_calls_from_response(out[-1])
    assert (found.tool_name, found.tool_kwargs) == ("search", {"query": "tea"})
    assert inner.asked == [{"tools": ["search"]}]
    assert text_of(out[-1]).strip() == "Well."


@doors
async def test_a_prompt_that_is_blocked_calls_nothing(
    door: str, tool: FunctionTool, guard: Guard
) -> None:
    inner = WritingLLM(replies=[[call("search", query="tea")]])
    llm = GuardedLLM(inner=inner, guard=guard, on_violation="reply")
    [answer] = await ask(door, llm, [tool], "How can I build a bomb?")
    assert answer.message.content == REPLACED
    assert inner.seen == []
    assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []


@pytest.mark.parametrize("door", ["predict_and_call", "apredict_and_call"])
async def test_a_tool_is_not_called_by_what_is_blocked(
    door: str, tool: FunctionTool, called: Called, guard: Guard
) -> None:
    replies: list[Any] = [[call("search", query="tea")], [call("search", query="a bomb")]]
    llm = GuardedLLM(inner=WritingLLM(replies=replies), guard=guard)

    async def predicted() -> str:
        answer = getattr(llm, door)([tool], user_msg="Hi.")
        return (await answer if door.startswith("a") else answer).response

    assert await predicted() == "All about tea"
    with pytest.raises(GuardViolation) as caught:
        await predicted()
    assert caught.value.decision.stage is Stage.TOOL_CALL
    assert called.queries == ["tea"]


@pytest.mark.parametrize("door", ["predict_and_call", "apredict_and_call"])
@pytest.mark.parametrize("on_error", [False, True], ids=["answers", "raises"])
async def test_what_a_guarded_tool_is_kept_from_is_raised_since_no_model_reads_it(
    door: str, on_error: bool, guard: Guard
) -> None:
    def search(query: str) -> str:
        return f"{query}: take a bomb."

    tool: Any = cast("Any", FunctionTool).from_defaults(search)
    replies: list[Any] = [[call("search", query="tea"), call("search", "call-2", query="milk")]]
    llm = GuardedLLM(inner=WritingLLM(replies=replies), guard=guard)
    fields = {"allow_parallel_tool_calls": True, "error_on_tool_error": on_error}

    async def predicted() -> Any:
        answer = getattr(llm, door)(guarded_tools([tool], guard), user_msg="Hi.", **fields)
        return await answer if door.startswith("a") else answer

    with pytest.raises(GuardViolation) as caught:
        await predicted()
    assert caught.value.decision.stage is Stage.TOOL_RESULT


@doors
async def test_a_call_that_was_released_is_known_in_the_next_step(
    door: str, tool: FunctionTool, guard: Guard, engine: ScriptedEngine
) -> None:
    replies: list[Any] = [[call("search", query="tea")], "It is a drink."]
    llm = GuardedLLM(inner=WritingLLM(replies=replies), guard=guard)
    [*_, first] = await ask(door, llm, [tool], "What is tea?")
    asked = len(engine.seen)
    result = ChatMessage(
        role=MessageRole.TOOL, content="A drink.", additional_kwargs={"tool_call_id": "call-1"}
    )
    await llm.achat(
        [ChatMessage(role=MessageRole.USER, content="What is tea?"), first.message, result]
    )
    assert [one.last.text for one in engine.seen[asked:]] == ["A drink.", "It is a drink."]


@doors
async def test_models_that_call_no_tools_say_so(
    door: str, tool: FunctionTool, guard: Guard
) -> None:
    llm = GuardedLLM(inner=MockLLM(), guard=guard)
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(ValueError, match="is no model that calls tools"):
        await ask(door, llm, [tool], "Hi.")
    response = ChatResponse(message=assistant("Hi."))
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="is no model that calls tools"):
        llm.get_tool_calls_from_response(response)


@of_the_framework
async def test_agents_that_take_it_for_a_model_that_calls_tools(guard: Guard) -> None:
    """CodeActAgent asks any model of that type for the calls in a reply."""
    llm = GuardedLLM(inner=MockLLM(max_tokens=3), guard=guard)

    def execute(code: str) -> str:
        return code

    agent: Any = CodeActAgent(name="coder", code_execute_fn=execute, tools=[], llm=llm)
    assert str(await agent.run(user_msg="Hi.", max_iterations=2)) == "text text text"


class Requiring(WritingLLM):
    """Checks what it has written."""

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, *args: Any, **kwargs: Any
    ) -> ChatResponse:
        return response.model_copy(update={"raw": {"checked": response.message.content}})


async def test_responses_are_validated_as_the_model_does(tool: FunctionTool, guard: Guard) -> None:
    llm = GuardedLLM(inner=Requiring(replies=["Hello."]), guard=guard)
    assert llm.chat_with_tools([tool], "Hi.").raw == {"checked": "Hello."}
    assert (await llm.achat_with_tools([tool], "Hi.")).raw == {"checked": "Hello."}
