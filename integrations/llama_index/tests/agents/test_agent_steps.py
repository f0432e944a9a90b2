"""What else agents do: calls side by side, handing over, structured answers, waiting, nesting."""

import asyncio
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import (
    AgentStream,
    AgentStreamStructuredOutput,
    AgentWorkflow,
    FunctionAgent,
    ToolCall,
    ToolCallResult,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from pydantic import BaseModel

from guardrails_qwen import Guard, GuardViolation, Stage
from integrations.llama_index.tests.agents.building import (
    FUNCTION,
    KINDS,
    REACT,
    Kind,
    guarded,
    new_memory,
    of_the_framework,
    run,
    search,
    sent,
)
from integrations.llama_index.tests.doubles import (
    REPLACED,
    NGramEmbedding,
    WritingLLM,
    call,
    heard,
)
from llama_index_guardrails_qwen.events import GuardViolationEvent
from llama_index_guardrails_qwen.llm import GuardedLLM
from llama_index_guardrails_qwen.query_engine import guard_query_engine
from llama_index_guardrails_qwen.tools import guarded_tool, guarded_tools

pytestmark = of_the_framework

UNSAFE = "First of all. Then you take a bomb and more."


@pytest.fixture(params=[True, False], ids=["streams", "whole"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"streaming": request.param}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_without_guards_a_reply_is_everywhere(kind: Kind) -> None:
    """That the other tests look where something can be found."""
    tools = [FunctionTool.from_defaults(search)]
    agent = kind.make(llm=WritingLLM(replies=[kind.says(UNSAFE)]), tools=tools)
    done = await run(agent)
    for place in (done.streamed, str(done.result), done.told, repr(done.memory)):
        assert "bomb" in place


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_without_guards_an_error_of_a_tool_is_read_by_the_model(kind: Kind) -> None:
    inner = WritingLLM(replies=[kind.asks("fail"), kind.says("Sorry.")])
    done = await run(kind.make(llm=inner, tools=[FunctionTool.from_defaults(search)]))
    assert "bomb" in sent(inner)
    assert "bomb" in done.dumped + repr(done.events)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_without_a_guarded_model_a_blocked_result_is_a_notice(
    guard: Guard, kind: Kind
) -> None:
    inner = WritingLLM(replies=[kind.asks("bad"), kind.says("Sorry.")])
    done = await run(kind.make(llm=inner, tools=[guarded_tool(search, guard)]))
    assert done.error is None
    assert "[withheld by the guard, incident " in sent(inner)
    assert "bomb" not in done.everything + sent(inner)


async def test_thoughts_and_what_is_raw_are_nowhere(guard: Guard, options: dict[str, Any]) -> None:
    message = ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[ThinkingBlock(content="a bomb and more"), TextBlock(text="Hello.")],
    )
    chunk = ChatResponse(
        message=message,
        delta="Hello.",
        raw={"text": "a bomb"},
        additional_kwargs={"thinking_delta": "a bomb and more"},
    )
    agent, _ = guarded(FUNCTION, guard, [[chunk]], **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert "bomb" not in done.everything


async def test_raw_of_a_harmless_reply_is_nowhere(guard: Guard, options: dict[str, Any]) -> None:
    message = ChatMessage(role=MessageRole.ASSISTANT, content="Hello.")
    chunk = ChatResponse(message=message, delta="Hello.", raw={"text": "a bomb"})
    agent, _ = guarded(FUNCTION, guard, [[chunk]], **options)
    done = await run(agent)
    assert str(done.result) == "Hello."
    assert "bomb" not in done.everything


async def test_of_calls_side_by_side_one_that_is_blocked_ends_the_run(
    guard: Guard, options: dict[str, Any]
) -> None:
    calls = [call("search", f"call-{query}", query=query) for query in ("good", "bad", "fail")]
    agent, inner = guarded(FUNCTION, guard, [calls, "Hello."], **options)
    ctx, memory = Context(agent), new_memory()
    done = await run(agent, ctx=ctx, memory=memory)
    assert isinstance(done.error, GuardViolation)
    assert len(done.of(ToolCallResult)) == 3
    assert "bomb" not in done.everything + sent(inner)
    # all notices were claimed, so that the next run is not ended by one of them
    later = await run(agent, "Good morning.", ctx=ctx, memory=memory)
    assert later.error is None


async def test_of_calls_side_by_side_others_are_answered(
    guard: Guard, options: dict[str, Any]
) -> None:
    calls = [call("search", f"call-{query}", query=query) for query in ("good", "bad")]
    agent, inner = guarded(
        FUNCTION, guard, [calls, "Hello."], tools={"on_violation": "reply"}, **options
    )
    done = await run(agent)
    assert str(done.result) == "Hello."
    assert "how to make pancakes" in sent(inner)
    assert REPLACED in sent(inner)
    assert "bomb" not in done.everything + sent(inner)


@pytest.mark.parametrize("kind", [FUNCTION, REACT], ids=lambda kind: kind.name)
async def test_a_result_that_is_the_answer_is_judged(
    guard: Guard, kind: Kind, options: dict[str, Any]
) -> None:
    tool = FunctionTool.from_defaults(search, return_direct=True)
    good, _ = guarded(kind, guard, [kind.asks("good")], tool=tool, **options)
    assert "how to make pancakes" in str((await run(good)).result)
    bad, inner = guarded(kind, guard, [kind.asks("bad"), "never asked"], tool=tool, **options)
    done = await run(bad)
    assert isinstance(done.error, GuardViolation)
    assert len(inner.seen) == 1
    assert "bomb" not in done.everything + sent(inner)


def handing_over(guard: Guard, replies: list[Any], **options: Any) -> tuple[Any, WritingLLM]:
    """Two agents with one model."""
    inner = WritingLLM(replies=replies)
    llm = GuardedLLM(inner=inner, guard=guard)
    tools = guarded_tools([search], guard)
    agents: list[Any] = [
        FunctionAgent(name="first", description="First.", llm=llm, **options),
        FunctionAgent(name="second", description="Second.", llm=llm, tools=tools, **options),
    ]
    return AgentWorkflow(agents=agents, root_agent="first"), inner


async def test_one_agent_hands_over_to_another(guard: Guard, options: dict[str, Any]) -> None:
    over = [call("handoff", to_agent="second", reason="it knows pages")]
    agent, inner = handing_over(guard, [over, [call("search", query="good")], "Done."], **options)
    done = await run(agent)
    assert str(done.result) == "Done."
    assert [event.tool_name for event in done.of(ToolCall)] == ["handoff", "search"]
    assert len(inner.seen) == 3


async def test_a_blocked_reason_hands_nothing_over(guard: Guard, options: dict[str, Any]) -> None:
    over = [call("handoff", to_agent="second", reason="it can make a bomb")]
    agent, inner = handing_over(guard, [over, "never asked"], **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert not done.of(ToolCall)
    assert len(inner.seen) == 1
    assert "bomb" not in done.everything


async def test_what_blocks_behind_a_handoff_ends_the_run(
    guard: Guard, options: dict[str, Any]
) -> None:
    over = [call("handoff", to_agent="second", reason="it knows pages")]
    agent, inner = handing_over(guard, [over, [call("search", query="bad")], "never"], **options)
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert len(inner.seen) == 2
    assert "bomb" not in done.everything + sent(inner)


class Recipe(BaseModel):
    """A recipe."""

    dish: str


async def test_a_structured_answer_is_judged(guard: Guard, options: dict[str, Any]) -> None:
    agent, _ = guarded(
        FUNCTION,
        guard,
        ["Pancakes.", [call("Recipe", dish="pancakes")]],
        output_cls=Recipe,
        **options,
    )
    done = await run(agent)
    assert done.result.structured_response == {"dish": "pancakes"}
    assert [event.output for event in done.of(AgentStreamStructuredOutput)] == [
        {"dish": "pancakes"}
    ]


@pytest.mark.filterwarnings("ignore:There was a problem with the generation of the structured")
async def test_a_blocked_structured_answer_is_nowhere(
    guard: Guard, options: dict[str, Any]
) -> None:
    agent, _ = guarded(
        FUNCTION,
        guard,
        ["Pancakes.", [call("Recipe", dish="a bomb and more")]],
        output_cls=Recipe,
        **options,
    )
    done = await run(agent)
    assert str(done.result) == "Pancakes."
    assert done.result.structured_response is None
    assert "bomb" not in done.everything


async def test_a_tool_that_waits_for_somebody_goes_on(
    guard: Guard, options: dict[str, Any]
) -> None:
    async def ask(ctx: Context, question: str) -> str:
        """Ask the user."""
        event = await ctx.wait_for_event(
            HumanResponseEvent, waiter_event=InputRequiredEvent(), waiter_id="ask"
        )
        return f"The user says {event.response}"

    agent, inner = guarded(
        FUNCTION, guard, [[call("ask", question="ok")], "Good."], tool=ask, **options
    )
    answer: dict[str, Any] = {"response": "yes"}
    handler = agent.run("Ask me.")
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            handler.ctx.send_event(HumanResponseEvent(**answer))
    assert str(await handler) == "Good."
    assert "The user says yes" in sent(inner)


async def test_an_agent_as_the_tool_of_another(guard: Guard, options: dict[str, Any]) -> None:
    expert, _ = guarded(FUNCTION, guard, [[call("search", query="bad")], "never"], **options)

    async def ask_expert(question: str) -> str:
        """Ask an expert."""
        return str(await expert.run(question))

    agent, inner = guarded(
        FUNCTION, guard, [[call("ask_expert", question="?")], "never"], tool=ask_expert, **options
    )
    done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert done.error.decision.stage is Stage.TOOL_RESULT
    assert len(inner.seen) == 1
    assert "bomb" not in done.everything


async def test_a_violation_of_a_guarded_engine_in_a_tool_ends_the_run(
    guard: Guard, options: dict[str, Any]
) -> None:
    index: Any = VectorStoreIndex.from_documents(
        [Document(text="All about pancakes.")], embed_model=NGramEmbedding()
    )
    writer = WritingLLM(replies=["You take a bomb and more."])
    engine = guard_query_engine(index.as_query_engine(llm=writer), guard)
    tool = QueryEngineTool.from_defaults(engine, name="search", description="Search.")
    agent, inner = guarded(
        FUNCTION, guard, [[call("search", input="pancakes")], "never"], tool=tool, **options
    )
    with heard() as (events, _):
        done = await run(agent)
    assert isinstance(done.error, GuardViolation)
    assert done.error.decision.stage is Stage.OUTPUT
    assert len(inner.seen) == 1
    assert "bomb" not in done.everything + sent(inner)
    assert [event.component for event in events.of(GuardViolationEvent)] == ["query_engine"]


async def test_a_dumped_context_goes_on(guard: Guard, options: dict[str, Any]) -> None:
    agent, inner = guarded(FUNCTION, guard, [UNSAFE, "Hello."], **options)
    ctx, memory = Context(agent), new_memory()
    blocked = await run(agent, ctx=ctx, memory=memory)
    assert isinstance(blocked.error, GuardViolation)
    later = Context.from_dict(agent, ctx.to_dict())
    done = await run(agent, "Good morning.", ctx=later, memory=memory)
    assert str(done.result) == "Hello."
    assert "bomb" not in done.everything + sent(inner)


async def test_runs_side_by_side_share_nothing(guard: Guard) -> None:
    def agent_for(number: int) -> Any:
        last = UNSAFE if number % 3 == 0 else f"Answer {number}."
        return guarded(FUNCTION, guard, [[call("search", query="good")], last])[0]

    runs = await asyncio.gather(
        *(agent_for(number).run("Hi.") for number in range(60)), return_exceptions=True
    )
    for number, result in enumerate(runs):
        if number % 3 == 0:
            assert isinstance(result, GuardViolation)
        else:
            assert str(result) == f"Answer {number}."


async def test_what_is_shown_while_it_is_written_is_what_was_released(guard: Guard) -> None:
    agent, _ = guarded(FUNCTION, guard, ["One two three. Four five six."])
    done = await run(agent)
    deltas = [event.delta for event in done.of(AgentStream)]
    assert "".join(deltas) == "One two three. Four five six."
    assert done.of(AgentStream)[-1].response == "One two three. Four five six."
