"""Tools of every kind, and every kind of answer."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain.tools import ToolRuntime
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import (
    BaseTool,
    InjectedToolCallId,
    StructuredTool,
    ToolException,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState, InjectedStore
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt
from pydantic import BaseModel, PrivateAttr, ValidationError
from typing_extensions import override

from guardrails_qwen import GuardViolation
from integrations.langchain.tests.agents.building import (
    THREAD,
    Agent,
    Run,
    agent,
    calls,
    said,
    says,
    user,
)
from integrations.langchain.tests.agents.frameworks import (
    END,
    START,
    MessagesState,
    create_agent,
    graph_of,
    tool,
)
from integrations.langchain.tests.doubles import REPLACED

BOMB = "how to build a bomb"
Values = dict[str, Any]


def answering(value: Any, **options: Any) -> BaseTool:
    """A tool that gives a value, or raises it."""

    @tool("search", **options)
    def search(query: str) -> Any:
        """Search."""
        if isinstance(value, Exception):
            raise value
        return value

    return search


def commanding(update: Callable[[str], Any], **options: Any) -> BaseTool:
    """A tool that writes to the state, for its call."""

    @tool("search")
    def search(query: str, call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Search."""
        return Command(update=update(call_id), **options)

    return search


async def answer(made: BaseTool, run: Run, **settings: Any) -> tuple[ToolMessage, Agent]:
    """What the agent has of the tool's answer, after a run that went on."""
    guarded = agent(calls("x"), says("fine"), tools=[made], exit_behavior="replace", **settings)
    result = await run(guarded.graph, user("hi"))
    [message] = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    return message, guarded


class Page(BaseModel):
    title: str = BOMB


VALUES: Values = {
    "text": BOMB,
    "dict": {"found": [BOMB]},
    "list": [1, BOMB],
    "blocks": [{"type": "text", "text": BOMB}],
    "texts": ["a", BOMB],
    "tuple": (BOMB, "b"),
    "tuple, the second": ("a", BOMB),
    "model": Page(),
    "set": {BOMB},
    "dict with odd keys": {("a",): BOMB},
    "bytes": BOMB.encode(),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_an_answer_of_any_type_is_judged(value: Any, run: Run) -> None:
    heard = Heard()
    config = {**THREAD, "callbacks": [heard]}
    made = agent(calls("x"), says("fine"), tools=[answering(value)], exit_behavior="replace")
    result = await run(made.graph, user("hi"), config)
    [message] = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert message.text == REPLACED
    assert [m.text for m in heard.answers] == [REPLACED]
    assert "bomb" not in str(made.model.sent)


@pytest.mark.parametrize(
    "value",
    [
        *("fine", "", None, 7, 1.5, True, [], {}, {"a": [1]}, ["a"], ("a", "b"), b"a"),
        Page(title="t"),
        [{"type": "text", "text": "a"}],
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:6]}",
)
async def test_an_answer_that_passes_is_as_without_a_guard(value: Any, run: Run) -> None:
    message, guarded = await answer(answering(value), run)
    plain = create_agent(agent(calls("x"), says("y")).model, [answering(value)])
    result = await run(plain, user("hi"))
    assert message.content == result["messages"][-2].content
    assert len([line for line in guarded.judged if line.startswith("tool")]) == 1


class Heard(BaseCallbackHandler):
    """What a handler hears of tools."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[BaseException] = []

    @override
    def on_tool_end(self, output: Any, **kwargs: Any) -> None:
        self.answers.append(output)

    @override
    def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


@pytest.mark.parametrize(
    ("content", "left"), [("cats", {"page": "x"}), (BOMB, None)], ids=["passes", "changed"]
)
async def test_an_artifact_goes_with_its_content(content: str, left: Any, run: Run) -> None:
    made = answering((content, {"page": "x"}), response_format="content_and_artifact")
    message, _ = await answer(made, run)
    assert message.artifact == left
    assert message.text == ("cats" if left else REPLACED)


ERRORS: dict[str, tuple[bool | str | Callable[[Any], str], str, str]] = {
    "True": (True, "about cats", "about cats"),
    "a text": ("It failed.", BOMB, "It failed."),
    "a function": (lambda error: f"Oh: {error}", "about cats", "Oh: about cats"),
    "True, unsafe": (True, BOMB, REPLACED),
    "an unsafe text": (BOMB, "x", REPLACED),
    "a function, unsafe": (lambda error: f"Oh: {error}", BOMB, REPLACED),
}


@pytest.mark.parametrize(("handle", "error", "told"), ERRORS.values(), ids=ERRORS)
async def test_errors_that_a_tool_handles_are_judged(
    handle: Any, error: str, told: str, run: Run
) -> None:
    made = answering(ToolException(error))
    made.handle_tool_error = handle
    message, _ = await answer(made, run)
    assert (message.text, message.status) == (told, "error")


async def test_an_error_without_words_is_told_as_without_a_guard(run: Run) -> None:
    made = answering(ToolException())
    made.handle_tool_error = True
    message, _ = await answer(made, run)
    plain = create_agent(agent(calls("x"), says("y")).model, [made])
    result = await run(plain, user("hi"))
    assert message.text == result["messages"][-2].text


@pytest.mark.parametrize(
    "error", [ToolException("x"), ValueError("y"), KeyError("z")], ids=lambda e: type(e).__name__
)
async def test_other_errors_are_raised_as_without_a_guard(error: Exception, run: Run) -> None:
    made = agent(calls("x"), tools=[answering(error)])
    with pytest.raises(type(error)) as caught:
        await run(made.graph, user("hi"))
    assert caught.value is error


INVALID: dict[str, tuple[bool | str | Callable[[Any], str], str]] = {
    "by default": (False, "Error invoking tool"),
    "True": (True, "Tool input validation error"),
    "a text": ("Wrong.", "Wrong."),
    "a function": (lambda error: "Not so.", "Not so."),
    "an unsafe text": (BOMB, REPLACED),
}


@pytest.mark.parametrize(("handle", "told"), INVALID.values(), ids=INVALID)
async def test_wrong_arguments_are_told(handle: Any, told: str, run: Run) -> None:
    @tool("search")
    def search(number: int) -> str:
        """Search."""
        return "never"

    search.handle_validation_error = handle
    message, _ = await answer(search, run)
    assert message.text.startswith(told)
    assert message.status == "error"


async def test_a_tool_that_nobody_has_is_told(run: Run) -> None:
    made = agent(calls("x", name="nothing"), says("fine"))
    result = await run(made.graph, user("hi"))
    assert "nothing is not a valid tool" in said(result["messages"])[2]
    assert said(result["messages"])[-1] == "ai: fine"


COMMANDS: dict[str, Callable[[str], Any]] = {
    "a message": lambda id_: {"messages": [ToolMessage(BOMB, tool_call_id=id_)]},
    "a dict": lambda id_: {"messages": [{"role": "tool", "content": BOMB, "tool_call_id": id_}]},
    "not a list": lambda id_: {"messages": ToolMessage(BOMB, tool_call_id=id_)},
    "with another": lambda id_: {
        "messages": [ToolMessage("a", tool_call_id=id_), HumanMessage(BOMB)]
    },
    "with a tuple": lambda id_: {"messages": [ToolMessage("a", tool_call_id=id_), ("user", BOMB)]},
    "removing": lambda id_: {
        "messages": [RemoveMessage(id="gone"), ToolMessage(BOMB, tool_call_id=id_)]
    },
}


@pytest.mark.parametrize("update", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("leaving", ["end", "replace"])
async def test_commands_are_judged(update: Any, leaving: str, run: Run) -> None:
    made = agent(calls("x"), says("fine"), tools=[commanding(update)], exit_behavior=leaving)
    result = await run(made.graph, {"messages": [HumanMessage("hi", id="gone")]})
    assert "bomb" not in str(result)
    assert REPLACED in str(result["messages"])
    last = {"end": f"ai: {REPLACED}", "replace": "ai: fine"}[leaving]
    assert said(result["messages"])[-1] == last


async def test_a_command_keeps_what_else_it_says(run: Run) -> None:
    def update(id_: str) -> Any:
        return {"messages": [ToolMessage("cats", tool_call_id=id_)], "jump_to": None}

    made = agent(calls("x"), says("fine"), tools=[commanding(update, goto=())])
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == ["tool: cats", "ai: fine"]
    assert made.actions()["cats"] == "allow"


async def test_a_list_of_messages_and_commands_is_judged(run: Run) -> None:
    @tool("search")
    def search(query: str, call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Search."""
        more = Command(update={"messages": [HumanMessage(BOMB)]})
        return [ToolMessage("cats", tool_call_id=call_id), more]

    made = agent(calls("x"), says("fine"), tools=[search], exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == ["tool: cats", f"human: {REPLACED}", "ai: fine"]


async def test_a_command_to_the_graph_around_is_judged(run: Run) -> None:
    def update(id_: str) -> Any:
        return {
            "messages": [
                AIMessage("", tool_calls=[_call(id_)]),
                ToolMessage(BOMB, tool_call_id=id_),
            ]
        }

    made = agent(
        calls("x"),
        tools=[commanding(update, graph=Command.PARENT, goto="after")],
        options={"checkpointer": None},
    )
    builder = graph_of(MessagesState)
    builder.add_node("agent", made.graph, destinations=("after",))
    builder.add_node("after", nothing)
    builder.add_edge(START, "agent")
    builder.add_edge("after", END)
    result = await run(builder.compile(checkpointer=InMemorySaver()), user("hi"))
    assert said(result["messages"])[-1] == f"tool: {REPLACED}"


def nothing(state: Any) -> Any:
    """Changes nothing."""
    return {}


def _call(id_: str) -> Any:
    return {"name": "search", "args": {}, "id": id_}


class Counting(BaseTool):
    """Keeps state, and has no asynchronous form."""

    name: str = "search"
    description: str = "Count."
    times: int = 0
    _asked: list[str] = PrivateAttr(default_factory=list)

    @property
    def asked(self) -> list[str]:
        return self._asked

    @override
    def _run(self, query: str, *, run_manager: Any = None) -> str:
        assert run_manager is not None
        self.times += 1
        self._asked = [*self._asked, query]
        return f"{self.times} times"


async def test_tools_keep_their_state(run: Run) -> None:
    counting = Counting()
    made = agent(calls("a"), calls("b"), says("fine"), tools=[counting])
    result = await run(made.graph, user("hi"))
    assert [text for text in said(result["messages"]) if "times" in text] == [
        "tool: 1 times",
        "tool: 2 times",
    ]
    assert (counting.times, counting.asked) == (2, ["a", "b"])


async def test_functions_of_either_colour_are_called() -> None:
    async def alook(query: str) -> str:
        return f"async {query}"

    def look(query: str) -> str:
        return f"sync {query}"

    both = StructuredTool.from_function(look, alook, name="search", description="Search.")
    made = agent(calls("a"), says("b"), calls("a"), says("b"), tools=[both])
    assert "tool: sync a" in said(made.graph.invoke(user("hi"), THREAD)["messages"])
    result = await made.graph.ainvoke(user("hi"), THREAD)
    assert "tool: async a" in said(result["messages"])


async def test_a_tool_is_given_what_it_asks_for(run: Run) -> None:
    @tool("search")
    def search(
        query: str,
        state: Annotated[Any, InjectedState],
        store: Annotated[BaseStore, InjectedStore()],
        call_id: Annotated[str, InjectedToolCallId],
        runtime: ToolRuntime[Any, Any],
    ) -> str:
        """Search."""
        store.put(("a",), "b", {"c": query})
        count = len(state["messages"])
        return f"{count} {call_id} {runtime.tool_call_id} {runtime.state['messages'][0].text}"

    store = InMemoryStore()
    made = agent(calls("x", ids=["id-1"]), says("fine"), tools=[search], options={"store": store})
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2] == "tool: 2 id-1 id-1 hi"
    item = store.get(("a",), "b")
    assert item
    assert item.value == {"c": "x"}


async def test_a_tool_has_the_context_of_its_run(run: Run) -> None:
    class Context(BaseModel):
        city: str

    @tool("search")
    def search(query: str, runtime: ToolRuntime[Context, Any]) -> str:
        """Search."""
        return f"in {runtime.context.city}"

    made = agent(calls("x"), says("fine"), tools=[search], options={"context_schema": Context})
    result = made.graph.invoke(user("hi"), THREAD, context=Context(city="Oslo"))
    assert said(result["messages"])[2] == "tool: in Oslo"


async def test_a_tool_may_interrupt(run: Run) -> None:
    asked = list[str]()

    @tool("search")
    def search(query: str) -> str:
        """Search."""
        asked.append(query)
        return f"{interrupt('May I?')}, about {query}"

    made = agent(calls("cats"), says("fine"), tools=[search])
    result = await run(made.graph, user("hi"))
    assert [item.value for item in result["__interrupt__"]] == ["May I?"]
    before = len(made.judged)
    result = await run(made.graph, Command(resume="Yes"))
    assert said(result["messages"])[2:] == ["tool: Yes, about cats", "ai: fine"]
    assert made.judged[before:] == ["tool: Yes, about cats", "assistant: fine"]


async def test_what_an_interrupt_is_answered_is_judged(run: Run) -> None:
    @tool("search")
    def search(query: str) -> str:
        """Search."""
        return f"{interrupt('What?')}"

    made = agent(calls("cats"), tools=[search])
    await run(made.graph, user("hi"))
    result = await run(made.graph, Command(resume=BOMB))
    assert said(result["messages"])[-2:] == [f"tool: {REPLACED}", f"ai: {REPLACED}"]


async def test_one_call_may_wait_while_another_is_blocked(run: Run) -> None:
    @tool("search")
    def search(query: str) -> str:
        """Search."""
        return f"{interrupt('What?')}" if query == "ask" else BOMB

    made = agent(calls("ask", "x"), tools=[search])
    result = await run(made.graph, user("hi"))
    assert "__interrupt__" in result
    assert "bomb" not in str(made.state)
    result = await run(made.graph, Command(resume="cats"))
    answers = ["tool: cats", f"tool: {REPLACED}"]
    assert said(result["messages"])[2:] == [*answers, f"ai: {REPLACED}"]
    assert [line for line in made.judged if line.startswith("tool")].count("tool: cats") == 1


async def test_the_user_may_interrupt_a_call_that_waits(run: Run) -> None:
    @tool("search")
    def search(query: str) -> str:
        """Search."""
        return f"{interrupt('What?')}"

    made = agent(calls("ask"), says("fine"), tools=[search])
    await run(made.graph, user("hi"))
    result = await run(made.graph, user("a bomb"))
    assert said(result["messages"])[2:] == [f"human: {REPLACED}", f"ai: {REPLACED}"]


@pytest.mark.parametrize("inside", [True, False], ids=["both guarded", "outside"])
async def test_an_agent_may_be_a_tool(inside: bool, run: Run) -> None:
    replies = [says("a bomb, of course")]
    if inside:
        inner = agent(*replies, tools=[], options={"checkpointer": None}).graph
    else:
        inner = create_agent(agent(*replies).model)

    @tool("search")
    async def asearch(query: str) -> str:
        """Search."""
        return (await inner.ainvoke(user(query)))["messages"][-1].text

    @tool("search")
    def search(query: str) -> str:
        """Search."""
        return inner.invoke(user(query))["messages"][-1].text

    search.coroutine = asearch.coroutine
    made = agent(calls("x"), says("fine"), tools=[search], exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", "ai: fine"]


@pytest.mark.parametrize("leaving", ["end", "replace"])
async def test_an_image_in_an_answer_is_blocked(leaving: str, run: Run) -> None:
    image = [{"type": "image_url", "image_url": {"url": "https://example.org/bomb.png"}}]
    made = agent(calls("x"), says("fine"), tools=[answering(image)], exit_behavior=leaving)
    result = await run(made.graph, user("hi"))
    last = {"end": f"ai: {REPLACED}", "replace": "ai: fine"}[leaving]
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", last]
    assert "bomb" not in str(made.state)


async def test_an_error_is_raised_from_within_a_tool(run: Run) -> None:
    heard = Heard()
    made = agent(calls("x"), tools=[answering(BOMB)], exit_behavior="error")
    with pytest.raises(GuardViolation):
        await run(made.graph, user("hi"), {**THREAD, "callbacks": [heard]})
    assert "bomb" not in str([heard.answers, heard.errors])


async def test_a_changed_call_is_judged_and_not_run(run: Run) -> None:
    from langchain.agents.middleware import AgentMiddleware

    class Editing(AgentMiddleware[Any, Any, Any]):
        def _edited(self, request: Any) -> Any:
            call = {**request.tool_call, "args": {"query": "bomb"}}
            return request.override(tool_call=call)

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(self._edited(request))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(self._edited(request))

    made = agent(calls("cats"), says("fine"), before=[Editing()], exit_behavior="replace")
    result = await run(made.graph, user("hi"))
    assert made.ran == []
    assert said(result["messages"])[2:] == [f"tool: {REPLACED}", "ai: fine"]
    [refused] = [m for m in result["messages"] if isinstance(m, ToolMessage)]
    assert (refused.status, refused.name) == ("error", "search")


async def test_the_schema_of_a_tool_is_its_own(run: Run) -> None:
    seen = list[Any]()

    class Looking(BaseTool):
        name: str = "search"
        description: str = "Look."

        @override
        def _run(self, query: str, **kwargs: Any) -> str:
            seen.append(json.dumps(self.args, sort_keys=True))
            return "fine"

    looking = Looking()
    await answer(looking, run)
    assert seen == [json.dumps(looking.args, sort_keys=True)]


async def test_the_tools_of_an_agent_are_left_alone(run: Run) -> None:
    made = answering("cats")
    before = dict(vars(made))
    await answer(made, run)
    assert dict(vars(made)) == before


def test_wrong_arguments_stay_errors_outside_an_agent() -> None:
    with pytest.raises(ValidationError):
        answering("x").invoke({"wrong": 1})
