"""Tools between checks: what goes to them, and what of their answers anybody gets."""

import asyncio
import builtins
import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex, workflow
from llama_index.core.base.llms.types import ContentBlock, ImageBlock, TextBlock
from llama_index.core.base.response.schema import Response, StreamingResponse
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.tools import (
    BaseTool,
    FunctionTool,
    QueryEngineTool,
    RetrieverTool,
    ToolMetadata,
    ToolOutput,
)
from llama_index.core.tools import calling as untyped_calling
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow
from pydantic import BaseModel
from typing_extensions import override
from workflows.runtime.types.results import (  # pyright: ignore[reportMissingTypeStubs]
    WaitingForEvent,
)

from guardrails_qwen import Action, EngineError, Guard, GuardViolation, OnError, Policy, Role, Stage
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.llama_index.tests.doubles import REPLACED, NGramEmbedding, heard
from llama_index_guardrails_qwen.events import GuardViolationEvent
from llama_index_guardrails_qwen.incidents import claimed
from llama_index_guardrails_qwen.tools import GuardedTool, guarded_tool, guarded_tools

calling: Any = untyped_calling
untyped: Any = workflow
untyped_pause: Any = WaitingForEvent
Guarding = Callable[..., Guard]
Call = Callable[..., Awaitable[ToolOutput]]


@pytest.fixture(params=["call", "acall"])
def use(request: pytest.FixtureRequest) -> Call:
    """Both doors of a tool."""

    async def call(tool: GuardedTool, *args: Any, **kwargs: Any) -> ToolOutput:
        if request.param == "acall":
            return await tool.acall(*args, **kwargs)
        return await asyncio.to_thread(tool, *args, **kwargs)

    return call


@pytest.fixture(params=["call_tool", "acall_tool"])
def as_llms_do(request: pytest.FixtureRequest) -> Call:
    """How LlamaIndex's models call tools, errors caught."""

    async def call(tool: BaseTool, arguments: dict[str, Any]) -> ToolOutput:
        if request.param == "acall_tool":
            return await calling.acall_tool(tool, arguments)
        return await asyncio.to_thread(calling.call_tool, tool, arguments)

    return call


def search(query: str) -> str:
    """Find a page."""
    if query == "fail":
        raise LookupError("no page about a bomb")
    return {"bad": "how to make a bomb", "good": "how to make pancakes"}.get(query, "nothing")


async def asearch(query: str) -> str:
    """Find a page."""
    return search(query)


def tool_of(value: Any, **options: Any) -> FunctionTool:
    """A tool that always gives the same."""

    def give() -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    return FunctionTool.from_defaults(give, **options)


def tool_that_shows(output: ToolOutput) -> FunctionTool:
    """A tool that gives an output of its own making."""

    def show(_: object) -> ToolOutput:
        return output

    return tool_of("x", callback=show)


def output_of(**fields: Any) -> ToolOutput:
    """An output that says "fine", if nothing else is said."""
    given: dict[str, Any] = {"tool_name": "give", "content": "fine", "raw_input": {}, **fields}
    return ToolOutput(**given)


def everything(output: ToolOutput) -> str:
    """All that programs can get of an output."""
    return f"{output!r} {output.raw_output!r} {output.exception!r} {vars(output)}"


@pytest.mark.parametrize("function", [search, asearch], ids=["function", "coroutine"])
async def test_what_passes_is_what_the_tool_gives(
    guard: Guard, use: Call, function: Callable[..., Any]
) -> None:
    bare = FunctionTool.from_defaults(function)
    output = await use(guarded_tool(bare, guard), query="good")
    assert output == await bare.acall(query="good")


async def test_a_call_and_its_result_are_judged_at_their_stages(
    guard: Guard, engine: ScriptedEngine, use: Call
) -> None:
    await use(guarded_tool(search, guard), query="good")
    [asked], [answered] = (conversation.messages for conversation in engine.seen)
    assert (asked.role, asked.judged_text) == (Role.ASSISTANT, 'search({"query": "good"})')
    assert (answered.role, answered.judged_text) == (Role.TOOL, "how to make pancakes")


@pytest.mark.parametrize("function", [search, asearch], ids=["function", "coroutine"])
async def test_a_blocked_result_is_an_error_that_quotes_nothing(
    guard: Guard, use: Call, function: Callable[..., Any]
) -> None:
    output = await use(guarded_tool(function, guard), query="bad")
    assert output.is_error
    assert "bomb" not in everything(output)
    assert isinstance(output.exception, GuardViolation)
    assert output.exception.decision.stage is Stage.TOOL_RESULT
    assert claimed(output.content) is output.exception.decision


async def test_blocked_arguments_never_reach_the_tool(guard: Guard, use: Call) -> None:
    called = list[str]()

    def note(text: str) -> str:
        called.append(text)
        return "done"

    output = await use(guarded_tool(note, guard), text="a bomb")
    assert not called
    assert output.is_error
    assert "bomb" not in everything(output)
    decision = claimed(output.content)
    assert decision
    assert decision.stage is Stage.TOOL_CALL


async def test_positional_arguments_are_judged(guard: Guard, use: Call) -> None:
    output = await use(guarded_tool(search, guard), "a bomb")
    assert isinstance(output.exception, GuardViolation)
    assert output.exception.decision.stage is Stage.TOOL_CALL


async def test_arguments_that_cannot_be_read_never_reach_the_tool(guard: Guard, use: Call) -> None:
    loop = dict[str, Any]()
    loop["again"] = loop
    output = await use(guarded_tool(search, guard), query=loop)
    assert isinstance(output.exception, GuardViolation)
    assert output.exception.decision.degraded


@pytest.mark.parametrize("query", ["bad", "a bomb"], ids=["result", "arguments"])
async def test_with_reply_the_model_reads_the_replacement(
    guard: Guard, use: Call, query: str
) -> None:
    output = await use(guarded_tool(search, guard, on_violation="reply"), query=query)
    assert output.is_error
    assert output.content == REPLACED
    assert isinstance(output.exception, GuardViolation)
    assert "bomb" not in everything(output)


@pytest.mark.parametrize(
    ("action", "content"),
    [
        pytest.param(Action.REDACT, "Hello. [removed: Violent] Bye.", id="redact"),
        pytest.param(Action.REPLACE, REPLACED, id="replace"),
        pytest.param(Action.DROP, "", id="drop"),
    ],
)
async def test_other_actions_change_the_result(
    guarding: Guarding, use: Call, action: Action, content: str
) -> None:
    tool = guarded_tool(tool_of("Hello. A bomb here. Bye."), guarding(action))
    output = await use(tool)
    assert not output.is_error
    assert output.content == output.raw_output == content
    assert [type(block) for block in output.blocks] == [TextBlock]
    assert "bomb" not in everything(output)


@pytest.mark.parametrize(
    ("action", "content"),
    [
        pytest.param(Action.REDACT, REPLACED, id="redact"),
        pytest.param(Action.REPLACE, REPLACED, id="replace"),
        pytest.param(Action.DROP, "", id="drop"),
    ],
)
async def test_arguments_cannot_be_changed_so_the_tool_is_not_called(
    guarding: Guarding, use: Call, action: Action, content: str
) -> None:
    output = await use(guarded_tool(search, guarding(action)), query="a bomb")
    assert output.is_error
    assert output.content == content
    assert output.raw_input == {}


async def test_flagged_passes_as_it_is(guarding: Guarding, use: Call) -> None:
    output = await use(guarded_tool(search, guarding(Action.FLAG)), query="bad")
    assert output.content == "how to make a bomb"


def deep(levels: int) -> list[Any]:
    return [deep(levels - 1)] if levels else ["x"]


class Page(BaseModel):
    title: str
    text: str


@dataclass
class Entry:
    title: str
    text: str

    def __str__(self) -> str:
        return self.title


class Opaque:
    """Says only what `str` writes."""

    def __str__(self) -> str:
        return "opaque"


def node(text: str, **metadata: Any) -> NodeWithScore:
    return NodeWithScore(node=TextNode(text=text, metadata=metadata), score=1.0)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": ["fine", {"b": "a bomb"}]}, id="dict"),
        pytest.param({"a bomb": 1}, id="key"),
        pytest.param(Page(title="fine", text="a bomb"), id="model"),
        pytest.param(Document(text="a bomb"), id="document"),
        pytest.param([TextNode(text="fine"), TextNode(text="a bomb")], id="nodes"),
        pytest.param([TextBlock(text="fine"), TextBlock(text="a bomb")], id="blocks"),
        pytest.param([TextBlock(text="a bo"), TextBlock(text="mb here")], id="blocks that meet"),
        pytest.param(output_of(content="a bomb"), id="output in an output"),
    ],
)
async def test_content_of_any_form_is_judged(guard: Guard, use: Call, value: Any) -> None:
    output = await use(guarded_tool(tool_of(value), guard))
    assert isinstance(output.exception, GuardViolation)
    assert "bomb" not in everything(output)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Entry(title="fine", text="a bomb"), id="dataclass"),
        pytest.param(Response("fine", source_nodes=[node("a bomb")]), id="source nodes"),
        pytest.param(Response("fine", source_nodes=[node("ok", a="a bomb")]), id="their metadata"),
        pytest.param(Response("fine", metadata={"a": "a bomb"}), id="metadata"),
        pytest.param(Document(text="fine", metadata={"a": "a bomb"}), id="document"),
    ],
)
async def test_what_is_beside_the_content_is_left_out_where_it_does_not_pass(
    guard: Guard, use: Call, value: Any
) -> None:
    output = await use(guarded_tool(tool_of(value), guard))
    assert output.content == "fine"
    assert output.raw_output == "fine"
    assert not output.is_error
    assert "bomb" not in everything(output)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(iter(["a bomb"]), id="iterator"),
        pytest.param(b"a bo\x00mb", id="bytes"),
        pytest.param(deep(40), id="deep"),
        pytest.param(ImageNode(text="fine", image_url="https://x/y.png"), id="picture"),
    ],
)
async def test_what_cannot_be_read_beside_the_content_is_left_out(
    guard: Guard, use: Call, value: Any
) -> None:
    shown = output_of(raw_output=value)
    output = await use(guarded_tool(tool_that_shows(shown), guard))
    assert output.content == output.raw_output == "fine"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(7, id="number"),
        pytest.param(None, id="nothing"),
        pytest.param({"a": [1, "fine"]}, id="dict"),
        pytest.param(Page(title="fine", text="too"), id="model"),
        pytest.param(Entry(title="fine", text="too"), id="dataclass"),
        pytest.param(Opaque(), id="object"),
        pytest.param(Response("fine", source_nodes=[node("also fine", a="ok")]), id="response"),
    ],
)
async def test_what_passes_beside_the_content_is_kept(guard: Guard, use: Call, value: Any) -> None:
    output = await use(guarded_tool(tool_of(value), guard))
    assert output.raw_output is value


async def test_what_the_content_says_is_not_judged_again(
    guard: Guard, engine: ScriptedEngine, use: Call
) -> None:
    tool = FunctionTool.from_defaults(search, partial_params={"query": "good"})
    await use(guarded_tool(tool, guard, check_arguments=False))
    assert [seen.last.judged_text for seen in engine.seen] == ["how to make pancakes"]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"tool_name": "a bomb"}, id="name"),
        pytest.param({"raw_input": {"input": "a bomb"}}, id="input"),
        pytest.param({"exception": ValueError("a bomb")}, id="exception"),
        pytest.param({"raw_output": "a bomb"}, id="raw output"),
        pytest.param({"raw_output": {"a bomb": 1}}, id="key"),
    ],
)
async def test_nothing_of_an_output_goes_unjudged(
    guard: Guard, use: Call, changed: dict[str, Any]
) -> None:
    made = output_of(**{"is_error": True, **changed})
    output = await use(guarded_tool(tool_that_shows(made), guard))
    assert output.content == "fine"
    assert output.is_error
    assert "bomb" not in everything(output)


async def test_pictures_are_not_let_through_unjudged(guard: Guard, use: Call) -> None:
    picture: ContentBlock = ImageBlock(url="https://example.com/a.png")
    output = await use(guarded_tool(tool_of([TextBlock(text="fine"), picture]), guard))
    assert isinstance(output.exception, GuardViolation)
    assert not any(isinstance(block, ImageBlock) for block in output.blocks)


async def test_an_error_that_passes_is_raised_as_it_is(guard: Guard, use: Call) -> None:
    error = LookupError("no such page")
    with pytest.raises(LookupError) as caught:
        await use(guarded_tool(tool_of(error), guard))
    assert caught.value is error


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


def bare(_: Exception, inner: Exception) -> Exception:
    return inner


def meanwhile(outer: Exception, inner: Exception) -> Exception:
    """What is raised while something else is handled."""
    outer.__context__ = inner
    return outer


def around_itself(outer: Exception, inner: Exception) -> Exception:
    """`raise outer from outer` while something else is handled."""
    outer.__cause__, outer.__context__ = outer, inner
    inner.__context__ = outer
    return outer


class Several(Exception):
    """As the groups of Python 3.11."""

    def __init__(self, text: str, exceptions: list[Exception]) -> None:
        super().__init__(text)
        self.exceptions = tuple(exceptions)


def grouped(outer: Exception, inner: Exception) -> Exception:
    group: Any = getattr(builtins, "ExceptionGroup", Several)
    return group("several", [outer, inner])


def grouped_cause(outer: Exception, inner: Exception) -> Exception:
    return grouped(KeyError("x"), chained(outer, inner))


class Terse(Exception):
    def __str__(self) -> str:
        return "failed"


class Broken(Exception):
    def __str__(self) -> str:
        raise ValueError("a bomb")


@pytest.mark.parametrize(
    ("error", "content"),
    [
        pytest.param(Terse("a bomb"), "failed", id="arguments"),
        pytest.param(chained(ValueError("failed"), ValueError("a bomb")), "failed", id="cause"),
        pytest.param(meanwhile(ValueError("failed"), ValueError("a bomb")), "failed", id="context"),
        pytest.param(Several("failed", [ValueError("a bomb")]), "failed", id="group"),
    ],
)
async def test_of_an_error_that_says_more_than_may_pass_the_text_is_left(
    guard: Guard, use: Call, error: Exception, content: str
) -> None:
    output = await use(guarded_tool(tool_of(error), guard))
    assert output.is_error
    assert output.content == content
    assert output.exception is None
    assert "bomb" not in everything(output)


async def test_of_an_error_without_text_the_name_is_left(guard: Guard, use: Call) -> None:
    class Unseen(Plain):
        """Raises outside of any span, for a span asks an error for its text."""

    def fail(self: Plain, *args: Any) -> ToolOutput:
        raise Broken

    Unseen.__call__ = fail  # pyright: ignore[reportAttributeAccessIssue]
    output = await use(guarded_tool(Unseen(), guard), "it")
    assert output.content == "Broken"
    assert output.exception is None


async def test_an_error_that_does_not_pass_is_blocked(guard: Guard, as_llms_do: Call) -> None:
    output = await as_llms_do(guarded_tool(search, guard), {"query": "fail"})
    assert isinstance(output.exception, GuardViolation)
    assert output.exception.__context__ is None
    assert "bomb" not in everything(output)
    assert claimed(output.content)


@pytest.mark.parametrize("check_result", [True, False], ids=["judged", "not judged"])
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(bare, id="bare"),
        pytest.param(chained, id="cause"),
        pytest.param(meanwhile, id="context"),
        pytest.param(around_itself, id="around itself"),
        pytest.param(grouped, id="group"),
        pytest.param(grouped_cause, id="cause in a group"),
    ],
)
async def test_a_violation_inside_of_a_tool_is_its_own(
    guard: Guard,
    engine: ScriptedEngine,
    use: Call,
    check_result: bool,
    wrap: Callable[[Exception, Exception], Exception],
) -> None:
    inside = GuardViolation(guard.check("a bomb"))
    decision = inside.decision
    error = wrap(RuntimeError("failed"), inside)
    output = await use(guarded_tool(tool_of(error), guard, check_result=check_result))
    assert isinstance(output.exception, GuardViolation)
    assert output.exception.decision is decision
    assert claimed(output.content) is decision
    assert engine.seen[-1].last.role is Role.ASSISTANT  # it is not judged once more


async def test_a_violation_that_a_tool_handles_is_its_own_affair(guard: Guard, use: Call) -> None:
    def careful() -> str:
        try:
            guard.enforce("a bomb")
        except GuardViolation as violation:
            return f"Error: {violation}"
        return "nothing"

    output = await use(guarded_tool(careful, guard))
    assert not output.is_error
    assert output.content.startswith("Error: input blocked")


@pytest.mark.parametrize("door", ["call", "acall"])
async def test_what_a_caller_handles_is_not_what_its_tool_raises(guard: Guard, door: str) -> None:
    async def afail() -> str:
        raise LookupError("no such page")

    async def fall_back() -> object:
        try:
            return guard.enforce("a bomb")
        except GuardViolation:
            if door == "acall":
                return await guarded_tool(afail, guard).acall()
            return guarded_tool(tool_of(LookupError("no such page")), guard).call()

    with pytest.raises(LookupError) as caught:
        await fall_back()
    assert isinstance(caught.value.__context__, GuardViolation)


class Counted(Exception):
    """Says how often it was read, and fails a test in which that does not end."""

    reads = 0

    def __str__(self) -> str:
        Counted.reads += 1
        if Counted.reads > 2_000:
            pytest.fail("errors are read again and again")
        return "failed"


def raised_from(levels: int, error: Exception) -> Exception:
    """An error that was wrapped at each of so many levels, as parsers do by `raise ... from`."""
    for level in range(levels):
        outer = Counted(level)
        outer.__cause__ = outer.__context__ = error
        error = outer
    return error


async def test_an_error_behind_many_others_is_read_once(
    guard: Guard, use: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "reads", 0)
    error = raised_from(25, ValueError("failed"))
    with pytest.raises(Counted) as caught:
        await use(guarded_tool(tool_of(error), guard))
    assert caught.value is error
    assert 25 <= Counted.reads <= 25 * 4


@pytest.mark.parametrize("last", ["a bomb", GuardViolation], ids=["text", "violation"])
async def test_nothing_is_too_far_behind(guard: Guard, use: Call, last: Any) -> None:
    first = ValueError(last) if isinstance(last, str) else last(guard.check("a bomb"))
    output = await use(guarded_tool(tool_of(raised_from(100, first)), guard))
    assert output.is_error
    assert isinstance(output.exception, GuardViolation) is isinstance(first, GuardViolation)
    assert "bomb" not in everything(output)


async def test_an_error_that_was_raised_from_itself_is_raised(guard: Guard, use: Call) -> None:
    error = ValueError("failed")
    error.__cause__ = error
    with pytest.raises(ValueError, match="failed") as caught:
        await use(guarded_tool(tool_of(error), guard))
    assert caught.value is error


async def test_parts_that_are_shared_are_read_once(
    guard: Guard, engine: ScriptedEngine, use: Call
) -> None:
    shared: Any = Opaque()
    for _ in range(25):
        shared = [shared, shared]
    await use(guarded_tool(tool_that_shows(output_of(raw_output=shared)), guard))
    assert [seen.last.judged_text for seen in engine.seen[1:]] == ["fine", "opaque"]


async def test_a_tool_guarded_twice_reports_what_blocked(guard: Guard, use: Call) -> None:
    inner = guarded_tool(search, guard, on_violation="reply")
    output = await use(guarded_tool(inner, guard), query="bad")
    decision = claimed(output.content)
    assert decision
    assert decision.stage is Stage.TOOL_RESULT


async def test_a_guard_that_cannot_judge_blocks(use: Call) -> None:
    output = await use(guarded_tool(search, Guard(FailingEngine())), query="good")
    assert isinstance(output.exception, GuardViolation)
    assert "pancakes" not in everything(output)


async def test_a_policy_that_raises_does_so_without_any_text(use: Call) -> None:
    policy = Policy.strict(on_error=OnError.RAISE)
    tool = guarded_tool(search, Guard(FailingEngine(), policy), check_arguments=False)
    for query in ("bad", "fail"):
        with pytest.raises(EngineError) as caught:
            await use(tool, query=query)
        assert "bomb" not in f"{caught.value!r} {caught.value.__context__!r}"


@pytest.mark.parametrize("query", ["bad", "a bomb", "fail"], ids=["result", "arguments", "error"])
async def test_handlers_hear_nothing_of_what_is_blocked(
    guard: Guard, use: Call, query: str
) -> None:
    with heard() as (events, spans):
        await use(guarded_tool(search, guard), query=query)
    assert "bomb" not in f"{spans.told} {events.events!r}"
    assert len(events.of(GuardViolationEvent)) == 1
    assert events.of(GuardViolationEvent)[0].component == "tool"


async def test_handlers_hear_of_what_passes(guard: Guard, use: Call) -> None:
    with heard() as (_, spans):
        await use(guarded_tool(search, guard), query="good")
    enter, exit_ = spans.told
    assert "'query': 'good'" in enter
    assert "pancakes" in exit_


class Engine(CustomQueryEngine):
    """Answers with what it is asked, and a source."""

    source: str = "also fine"

    @override
    def custom_query(self, query_str: str) -> Response:
        answer = "a bomb" if query_str == "bad" else f"about {query_str}"
        return Response(answer, source_nodes=[node(self.source)])


async def test_a_query_engine_as_a_tool(guard: Guard, use: Call) -> None:
    tool = guarded_tool(QueryEngineTool.from_defaults(Engine(), name="engine"), guard)
    assert tool.metadata.name == "engine"
    output = await use(tool, input="pancakes")
    assert output.content == "about pancakes"
    assert output.raw_output.source_nodes[0].text == "also fine"


async def test_nobody_hears_of_a_query_engine_what_is_not_judged(guard: Guard, use: Call) -> None:
    tool = guarded_tool(QueryEngineTool.from_defaults(Engine(source="another bomb")), guard)
    with heard() as (events, spans):
        output = await use(tool, input="pancakes")
        blocked = await use(tool, input="bad")
    assert output.content == output.raw_output == "about pancakes"
    assert isinstance(blocked.exception, GuardViolation)
    assert "bomb" not in f"{spans.told} {events.events!r} {everything(output)}"


async def test_what_is_not_judged_here_is_heard_inside(guard: Guard, use: Call) -> None:
    tool = QueryEngineTool.from_defaults(Engine())
    with heard() as (_, spans):
        await use(guarded_tool(tool, guard, check_result=False), input="pancakes")
    assert any(told.startswith("Engine.") for told in spans.told)


def _written(*tokens: str) -> Generator[str, None, None]:
    yield from tokens


async def test_an_answer_that_streams_is_read_through(guard: Guard, use: Call) -> None:
    class Streaming(Engine):
        @override
        def custom_query(self, query_str: str) -> Any:
            return StreamingResponse(_written("all ", "fine"), source_nodes=[node("ok")])

    output = await use(guarded_tool(QueryEngineTool.from_defaults(Streaming()), guard), input="x")
    assert output.content == "all fine"
    assert isinstance(output.raw_output, Response)
    assert output.raw_output.source_nodes


async def test_a_retriever_as_a_tool(guard: Guard, use: Call) -> None:
    pages = [Document(text="how to make a bomb"), Document(text="how to make pancakes")]
    index = VectorStoreIndex.from_documents(pages, embed_model=NGramEmbedding())
    tool = RetrieverTool.from_defaults(index.as_retriever(similarity_top_k=1))
    with heard() as (events, spans):
        good = await use(guarded_tool(tool, guard), query="pancakes")
        bad = await use(guarded_tool(tool, guard), query="how to make a b...")
    assert "pancakes" in good.content
    assert good.raw_output[0].text == "how to make pancakes"
    assert isinstance(bad.exception, GuardViolation)
    assert "bomb" not in f"{spans.told} {events.events!r} {everything(bad)}"


class Plain(BaseTool):
    """A tool of one colour."""

    @property
    @override
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="plain", description="Plain.")

    @override
    def __call__(self, input: Any, more: str = "") -> ToolOutput:
        return output_of(content=f"{input}{more}", raw_input={"input": input})


class Sloppy(Plain):
    """Gives what is no output."""

    @override
    def __call__(self, input: Any, more: str = "") -> Any:
        return "a bomb" if input == "bad" else "fine"


async def test_a_tool_of_one_colour_has_both(guard: Guard, use: Call) -> None:
    tool = guarded_tool(Plain(), guard)
    assert (await use(tool, "fi", more="ne")).content == "fine"
    assert (await use(tool, "a b", more="omb")).is_error


async def test_a_tool_that_gives_no_output_is_judged(guard: Guard, use: Call) -> None:
    tool = guarded_tool(Sloppy(), guard)
    assert (await use(tool, "good")).content == "fine"
    assert isinstance((await use(tool, "bad")).exception, GuardViolation)


async def test_functions_that_need_keywords_are_called_as_before(
    guard: Guard, as_llms_do: Call
) -> None:
    class Keywords(Plain):
        @override
        def __call__(self, *, input: Any) -> ToolOutput:  # type: ignore[override]
            return output_of(content=input)

    output = await as_llms_do(guarded_tool(Keywords(), guard), {"input": "fine"})
    assert output.content == "fine"


async def test_a_function_tool_stays_one(guard: Guard) -> None:
    def look(ctx: Context, query: str) -> str:
        """Look."""
        return f"{type(ctx).__name__} {query}"

    bare = FunctionTool.from_defaults(look, return_direct=True, partial_params={"query": "it"})
    tool = guarded_tool(bare, guard)
    assert isinstance(tool, FunctionTool)
    assert tool.metadata is bare.metadata
    assert (tool.requires_context, tool.ctx_param_name) == (True, "ctx")
    assert tool.partial_params == {"query": "it"}
    assert inspect.signature(tool.real_fn) == inspect.signature(look)
    with pytest.raises(ValueError, match="Context is required"):
        await tool.acall()


class Nothing(Workflow):
    """There only for its context."""

    @untyped.step
    async def end(self, event: StartEvent) -> StopEvent:
        return StopEvent()


async def test_contexts_are_not_judged_nor_kept(guard: Guard, engine: ScriptedEngine) -> None:
    def look(ctx: Context, query: str) -> str:
        """Look."""
        return f"{type(ctx).__name__} {query}"

    ctx = Context(Nothing())
    tool = guarded_tool(look, guard)
    output = await tool.acall(ctx=ctx, query="bomb shelter")
    assert "Context" not in repr(output)
    output = await tool.acall(ctx=ctx, query="it")
    assert output.content == "Context it"
    assert output.raw_input == {"args": (), "kwargs": {"query": "it"}}
    assert engine.seen[-2].last.judged_text == 'look({"query": "it"})'


async def test_the_functions_of_a_tool_are_guarded_too(guard: Guard) -> None:
    tool = guarded_tool(search, guard)
    assert isinstance(tool, FunctionTool)
    for function in (tool.fn, tool.real_fn):
        assert function("good") == "how to make pancakes"
        assert claimed(str(function(query="bad")))
    assert await tool.async_fn("good") == "how to make pancakes"
    assert claimed(str(await tool.async_fn(query="bad")))
    real = guarded_tool(asearch, guard)
    assert isinstance(real, FunctionTool)
    assert inspect.iscoroutinefunction(real.real_fn)


async def test_a_waiting_tool_waits(guard: Guard, use: Call) -> None:
    pause: Exception = untyped_pause.__new__(untyped_pause)
    pause.args = ("a bomb",)  # it is nobody's to read, but a sign for the workflow
    with pytest.raises(untyped_pause) as caught:
        await use(guarded_tool(tool_of(pause), guard))
    assert caught.value is pause


async def test_only_what_is_wanted_is_judged(
    guard: Guard, engine: ScriptedEngine, use: Call
) -> None:
    arguments, results = (
        guarded_tool(search, guard, check_result=False),
        guarded_tool(search, guard, check_arguments=False),
    )
    assert (await use(arguments, query="bad")).content == "how to make a bomb"
    assert (await use(results, query="a bomb")).content == "nothing"
    assert [seen.last.role for seen in engine.seen] == [Role.ASSISTANT, Role.TOOL]


async def test_calls_side_by_side_share_nothing(guard: Guard) -> None:
    tool = guarded_tool(search, guard)
    queries = ["good", "bad", "other"] * 30
    outputs = await asyncio.gather(*(tool.acall(query=query) for query in queries))
    for query, output in zip(queries, outputs, strict=True):
        assert output.is_error is (query == "bad")
        assert output.raw_input == {"args": (), "kwargs": {"query": query}}


def test_several_tools_are_guarded_alike(guard: Guard) -> None:
    tools = guarded_tools([search, Plain()], guard, on_violation="reply")
    assert [tool.metadata.name for tool in tools] == ["search", "plain"]
    assert tools[0](query="bad").content == REPLACED


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"tool": "search"}, TypeError, id="tool"),
        pytest.param({"guard": ScriptedEngine()}, TypeError, id="guard"),
        pytest.param({"on_violation": "drop"}, ValueError, id="on_violation"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    guard: Guard, fields: dict[str, Any], error: type[Exception]
) -> None:
    given: dict[str, Any] = {"tool": search, "guard": guard, **fields}
    with pytest.raises(error, match=f"{next(iter(fields))} is"):
        guarded_tool(**given)
