"""Other middleware around the guard's, and inside it."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents.middleware import (
    AgentMiddleware,
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.middleware.types import ModelResponse
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.cache.memory import (  # pyright: ignore[reportMissingTypeStubs]
    InMemoryCache as GraphCache,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from guardrails_qwen import Guard, GuardViolation, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.agents.building import (
    THREAD,
    Run,
    agent,
    calls,
    finding,
    model,
    said,
    says,
    user,
)
from integrations.langchain.tests.agents.frameworks import (
    START,
    MessagesState,
    create_agent,
    graph_of,
    tool,
)
from integrations.langchain.tests.doubles import REPLACED, SCRIPT
from integrations.langchain.tests.leaks.models import ScriptedModel
from langchain_guardrails_qwen.agents import GuardrailMiddleware

Anything = AgentMiddleware[Any, Any, Any]
QUICK: dict[str, Any] = {"initial_delay": 0.0, "jitter": False}


def down(_messages: Any) -> Any:
    raise ConnectionError


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
@pytest.mark.parametrize("reply", ["fine", "a bomb"])
async def test_a_model_that_takes_over_is_guarded(inside: bool, reply: str, run: Run) -> None:
    fallback: list[Any] = [ModelFallbackMiddleware(model(says(reply)))]
    around: dict[str, Any] = {"after" if inside else "before": fallback}
    made = agent(**around)
    made.model.script = down
    result = await run(made.graph, user("hi"))
    expected = reply if reply == "fine" else REPLACED
    assert said(result["messages"]) == ["human: hi", f"ai: {expected}"]
    assert made.judged == ["user: hi", f"assistant: {reply}"]


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
async def test_a_model_that_is_asked_again_is_guarded(inside: bool, run: Run) -> None:
    retry: list[Any] = [ModelRetryMiddleware(max_retries=2, **QUICK)]
    around: dict[str, Any] = {"after" if inside else "before": retry}
    made = agent(**around)
    replies = iter([None, says("a bomb")])

    def script(messages: Any) -> Any:
        reply = next(replies)
        return reply if reply else down(messages)

    made.model.script = script
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]
    assert "user: hi" in made.judged
    assert made.judged.count("user: hi") == 1


async def test_a_tool_that_is_tried_again_is_guarded(run: Run) -> None:
    left = iter([ConnectionError("x"), "a bomb"])

    @tool("search")
    def search(query: str) -> str:
        """Search."""
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    retry: list[Any] = [ToolRetryMiddleware(max_retries=2, **QUICK)]
    made = agent(calls("x"), says("fine"), tools=[search], before=retry, exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", "ai: fine"]


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
async def test_what_is_told_of_a_tool_that_failed_is_judged(inside: bool, run: Run) -> None:
    @tool("search")
    def search(query: str) -> str:
        """Search."""
        raise ValueError("a bomb")

    retry: list[Any] = [ToolRetryMiddleware(max_retries=0, on_failure="continue", **QUICK)]
    around: dict[str, Any] = {"after" if inside else "before": retry}
    made = agent(calls("x"), tools=[search], **around)
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", f"ai: {REPLACED}"]
    assert len(made.model.sent) == 1


async def test_a_violation_inside_other_middleware_stays_one(run: Run) -> None:
    retry: list[Any] = [ToolRetryMiddleware(max_retries=2, on_failure="continue", **QUICK)]
    made = agent(calls("worse"), says("fine"), after=retry, exit_behavior="error")
    with pytest.raises(GuardViolation):
        await run(made.graph, user("hi"))
    assert "bomb" not in str(made.state)


@pytest.mark.parametrize("leaving", ["end", "replace"])
async def test_a_summary_is_judged_once(leaving: str, run: Run) -> None:
    for text, kept in (("All was well.", True), ("All about a bomb.", False)):
        summary = SummarizationMiddleware(
            model(says(text), says(text), says(text)),
            trigger=("messages", 4),
            keep=("messages", 1),
        )
        made = agent(*map(says, "abcdef"), before=[summary], exit_behavior=leaving)
        for turn in ("1", "2", "3"):
            result = await run(made.graph, user(turn))
        assert len([line for line in made.judged if text in line]) == 1
        assert ("well" in str(result["messages"])) is kept  # pyright: ignore[reportPossiblyUnbound]
        assert "bomb" not in str(made.state["messages"])
        assert "bomb" not in str(made.model.sent)


async def test_a_context_that_is_edited_is_not_judged_again(run: Run) -> None:
    editing = ContextEditingMiddleware(
        edits=[ClearToolUsesEdit(trigger=1, keep=0)], token_count_method="approximate"
    )
    made = agent(calls("cats"), calls("dogs"), says("fine"), says("bye"), before=[editing])
    await run(made.graph, user("hi"))
    await run(made.graph, user("and now?"))
    assert "[cleared]" in str(made.model.sent[-1])
    told = [line for line in made.judged if "about" in line]
    assert told == ["tool: about cats", "tool: about dogs"]
    assert len([line for line in made.judged if line.startswith("user")]) == 2


DECISIONS: dict[str, tuple[Any, str, str]] = {
    "approve": ({"type": "approve"}, "about cats", "fine"),
    "edit": (
        {"type": "edit", "edited_action": {"name": "search", "args": {"query": "dogs"}}},
        "about dogs",
        "fine",
    ),
    "an unsafe edit": (
        {"type": "edit", "edited_action": {"name": "search", "args": {"query": "a bomb"}}},
        REPLACED,
        REPLACED,
    ),
    "reject": ({"type": "reject", "message": "No."}, "No.", "fine"),
    "an unsafe word": ({"type": "reject", "message": "a bomb"}, REPLACED, REPLACED),
}


@pytest.mark.parametrize(("decision", "told", "last"), DECISIONS.values(), ids=DECISIONS)
async def test_a_human_in_the_loop_is_judged(decision: Any, told: str, last: str, run: Run) -> None:
    human = HumanInTheLoopMiddleware(interrupt_on={"search": True})
    made = agent(calls("cats"), says("fine"), before=[human])
    result = await run(made.graph, user("hi"))
    assert "__interrupt__" in result
    result = await run(made.graph, Command(resume={"decisions": [decision]}))
    texts = [message.text.strip() for message in result["messages"]]
    assert any(told in text for text in texts)
    assert texts[-1] == last
    assert "bomb" not in f"{made.ran} {result['messages']}"


async def test_limits_of_tools_hold(run: Run) -> None:
    limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior="continue")
    made = agent(calls("cats"), calls("dogs"), says("fine"), before=[limit])
    result = await run(made.graph, user("hi"))
    assert made.ran == ["cats"]
    assert said(result["messages"])[-1] == "ai: fine"


async def test_limits_of_models_hold(run: Run) -> None:
    limit = ModelCallLimitMiddleware(run_limit=1, exit_behavior="end")
    made = agent(calls("cats"), says("fine"), before=[limit])
    result = await run(made.graph, user("hi"))
    assert "limit" in said(result["messages"])[-1]
    made.model.script = lambda _messages: says("hello")
    result = await run(made.graph, user("and now?"))
    assert said(result["messages"])[-1] == "ai: hello"


@pytest.mark.parametrize("where", ["before", "after"])
async def test_what_others_redact_is_judged_as_redacted(where: str, run: Run) -> None:
    pii = PIIMiddleware("bomb", detector=r"bomb", strategy="redact", apply_to_input=True)
    others: dict[str, Any] = {where: [pii]}
    made = agent(says("fine"), **others)
    result = await run(made.graph, user("a bomb"))
    last = {"before": "ai: fine", "after": f"ai: {REPLACED}"}[where]
    assert said(result["messages"])[-1] == last
    assert len(made.judged) == len(set(made.judged))


class Wrapping(Anything):
    """Does something to a request, or to a response."""

    def __init__(self, to_request: Any = None, to_response: Any = None) -> None:
        super().__init__()
        self.to_request: Callable[[Any], Any] = to_request or (lambda request: request)
        self.to_response: Callable[[Any], Any] = to_response or (lambda response: response)

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return self.to_response(handler(self.to_request(request)))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return self.to_response(await handler(self.to_request(request)))


def sending(text: str) -> Any:
    """Sends one message more."""

    def more(request: Any) -> Any:
        return request.override(messages=[*request.messages, HumanMessage(text)])

    return Wrapping(more)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("leaving", ["end", "replace"])
async def test_what_others_send_is_judged(where: str, leaving: str, run: Run) -> None:
    others: dict[str, Any] = {where: [sending("a bomb")]}
    made = agent(says("fine"), exit_behavior=leaving, **others)
    result = await run(made.graph, user("hi"))
    last = {"end": f"ai: {REPLACED}", "replace": "ai: fine"}[leaving]
    assert said(result["messages"]) == ["human: hi", last]
    assert "bomb" not in str(made.model.sent)


def answering(reply: Any) -> Any:
    """Puts a reply in place of the model's."""

    def other(response: Any) -> Any:
        return ModelResponse(result=[reply])

    return Wrapping(None, other)


@pytest.mark.parametrize("exits", ["end", "replace"])
async def test_what_inner_middleware_answers_is_judged(exits: str, run: Run) -> None:
    made = agent(says("x"), after=[answering(AIMessage("a bomb"))], exit_behavior=exits)
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]
    made = agent(says("x"), after=[answering(AIMessage("fine"))], exit_behavior=exits)
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == ["human: hi", "ai: fine"]
    assert made.judged == ["user: hi", "assistant: x", "assistant: fine"]


async def test_inner_middleware_may_choose_among_replies(run: Run) -> None:
    class Best(Anything):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            first = handler(request)
            return first if "good" in str(first) else handler(request)

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            first = await handler(request)
            return first if "good" in str(first) else await handler(request)

    made = agent(says("a bomb"), says("good"), after=[Best()])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[-1] == "ai: good"
    assert made.actions()["good"] == "allow"
    assert made.judged == ["user: hi", "assistant: a bomb", "assistant: good"]


async def test_inner_middleware_may_answer_alone(run: Run) -> None:
    class Alone(Anything):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return AIMessage("a bomb")

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return AIMessage("a bomb")

    made = agent(after=[Alone()])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]


async def test_calls_that_are_added_later_are_judged(run: Run) -> None:
    class Adding(Anything):
        def after_model(self, state: Any, runtime: Any) -> Any:
            last = state["messages"][-1]
            if not last.tool_calls:
                return None
            more = {"name": "search", "args": {"query": "bomb"}, "id": "more", "type": "tool_call"}
            return {"messages": [last.model_copy(update={"tool_calls": [*last.tool_calls, more]})]}

    made = agent(calls("cats"), says("fine"), before=[Adding()], exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    assert made.ran == ["cats"]
    assert "bomb" not in str(made.model.sent)
    assert said(result["messages"])[-1] == "ai: fine"


class Answering(Anything):
    """Gives a tool's answer itself, or changes it."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return self.answer(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return self.answer(request)


@pytest.mark.parametrize("where", ["before", "after"])
async def test_what_others_answer_for_a_tool_is_judged(where: str, run: Run) -> None:
    def answer(request: Any) -> Any:
        return ToolMessage("a bomb", tool_call_id=request.tool_call["id"], name="search")

    others: dict[str, Any] = {where: [Answering(answer)]}
    made = agent(calls("x"), **others)
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", f"ai: {REPLACED}"]
    assert len(made.model.sent) == 1


async def test_a_tool_may_be_brought_by_others(run: Run) -> None:
    brought = finding("a bomb")

    class Bringing(Anything):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tools=[*request.tools, brought]))

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tools=[*request.tools, brought]))

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool=brought))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool=brought))

    @tool("other")
    def other(query: str) -> str:
        """Something else."""
        return query

    for where in ("before", "after"):
        others: dict[str, Any] = {where: [Bringing()]}
        made = agent(calls("x"), tools=[other], **others)
        result = await run(made.graph, user("hi"))
        assert said(result["messages"])[2:] == [f"tool: {REPLACED}", f"ai: {REPLACED}"]


async def test_tools_of_other_middleware_are_guarded(run: Run) -> None:
    having = Wrapping()
    having.tools = [finding("a bomb")]
    made = agent(calls("x"), tools=[], before=[having])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", f"ai: {REPLACED}"]


async def test_an_agent_may_have_no_tools(run: Run) -> None:
    for reply, told in (("fine", "fine"), ("a bomb", REPLACED)):
        made = agent(says(reply), tools=[])
        result = await run(made.graph, user("hi"))
        assert said(result["messages"]) == ["human: hi", f"ai: {told}"]


async def test_an_agent_may_have_a_name(run: Run) -> None:
    made = agent(calls("cats"), says("fine"), says("bye"), options={"name": "bomb_squad"})
    result = await run(made.graph, user("hi"))
    assert result["messages"][-1].name == "bomb_squad"
    await run(made.graph, user("and now?"))
    assert len(made.judged) == 6


async def test_replies_may_come_from_a_cache(run: Run) -> None:
    engine = ScriptedEngine(SCRIPT)
    used = Guard(engine, Policy.strict())
    cached = ScriptedModel(script=lambda _m: calls("cats") if _m[-1].type == "human" else says("a"))
    cached.cache = InMemoryCache()
    ran = list[str]()

    @tool("search")
    def search(query: str) -> str:
        """Search."""
        ran.append(query)
        return f"about {query}"

    for thread in ("1", "2"):
        made = create_agent(
            cached, [search], middleware=[GuardrailMiddleware(used)], checkpointer=InMemorySaver()
        )
        config = {"configurable": {"thread_id": thread}}
        result = await run(made, {"messages": [HumanMessage("hi", id="1")]}, config)
        assert said(result["messages"])[2:] == ["tool: about cats", "ai: a"]
    assert len(ran) == 2
    assert len(cached.sent) < 4


async def test_an_agent_may_be_part_of_a_graph(run: Run) -> None:
    inner = agent(says("a bomb"), tools=[], options={"checkpointer": None, "name": "inner"})
    builder = graph_of(MessagesState)
    builder.add_node("agent", inner.graph)
    builder.add_edge(START, "agent")
    made = builder.compile(checkpointer=InMemorySaver())
    result = await run(made, user("hi"))
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]
    assert "guardrails" not in result


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_an_agent_as_a_tool_is_guarded(run: Run) -> None:
    inner = agent(says("a bomb"), tools=[], options={"checkpointer": None})

    def question(arguments: Any) -> Any:
        return user(arguments["query"])

    def reply(state: Any) -> Any:
        return state["messages"][-1].text

    chain: Any = RunnableLambda(question) | inner.graph | reply
    asking = chain.as_tool(name="search", description="Search.", arg_types={"query": str})
    made = agent(calls("x"), says("fine"), tools=[asking])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", "ai: fine"]


async def test_an_agent_may_have_a_cache_for_its_nodes(run: Run) -> None:
    made = agent(calls("cats"), says("fine"), options={"cache": GraphCache()})
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[-1] == "ai: fine"


@pytest.mark.parametrize("limit", [1, 2])
async def test_concurrency_may_be_limited(limit: int, run: Run) -> None:
    made = agent(calls("a", "b", "c"), says("fine"))
    result = await run(made.graph, user("hi"), {**THREAD, "max_concurrency": limit})
    assert said(result["messages"])[2:] == [
        "tool: about a",
        "tool: about b",
        "tool: about c",
        "ai: fine",
    ]


def test_a_drawing_shows_the_guard() -> None:
    drawn = agent().graph.get_graph()
    assert "GuardrailMiddleware.before_model" in drawn.nodes
    edges = {(edge.source, edge.target) for edge in drawn.edges}
    assert ("GuardrailMiddleware.before_model", "__end__") in edges
    named = agent(name="front").graph.get_graph()
    assert "front.before_model" in named.draw_mermaid()


async def test_a_violation_is_no_failure_to_try_again(run: Run) -> None:
    retry: list[Any] = [ModelRetryMiddleware(max_retries=1, on_failure="error", **QUICK)]
    made = agent(says("a bomb"), says("a bomb"), before=retry, exit_behavior="error")
    with pytest.raises(GuardViolation):
        await run(made.graph, user("hi"))


async def test_models_may_be_bound(run: Run) -> None:
    inner = model(says("a bomb"))
    made = create_agent(
        inner.bind(stop=["x"]),
        [],
        middleware=[GuardrailMiddleware(Guard(ScriptedEngine(SCRIPT), Policy.strict()))],
    )
    result = await run(made, user("hi"))
    assert said(result["messages"]) == ["human: hi", f"ai: {REPLACED}"]
