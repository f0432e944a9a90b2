"""Decisions in events, metadata and tags: there in every method, and without moderated text."""

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    CallbackManager,
)
from langchain_core.runnables import Runnable, RunnableParallel
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.tracers.langchain import LangChainTracer
from langchain_core.tracers.schemas import Run

from guardrails_qwen import (
    Action,
    Decision,
    EngineError,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    Stage,
)
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import FailingEngine
from integrations.langchain.tests.doubles import (
    Door,
    EchoModel,
    Guarding,
    abatch,
    ainvoke,
    batch,
    invoke,
)
from langchain_guardrails_qwen import GuardRunnable
from langchain_guardrails_qwen.trace import EVENT, METADATA, TAGS, UNJUDGED, aannotate, annotate


class Events(BaseCallbackHandler):
    """Notes decisions, and the ends of runs."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []

    def on_custom_event(self, name: str, data: Any, **_run: Any) -> None:
        self.log.append((name, data))

    def on_chain_end(self, *_args: Any, **_run: Any) -> None:
        self.log.append(("end", None))

    def on_chain_error(self, *_args: Any, **_run: Any) -> None:
        self.log.append(("error", None))

    @property
    def decisions(self) -> list[Any]:
        return [data for name, data in self.log if name == EVENT]


class AsyncEvents(AsyncCallbackHandler):
    """The same, for asynchronous managers."""

    def __init__(self) -> None:
        self.decisions: list[Any] = []

    async def on_custom_event(self, name: str, data: Any, **_run: Any) -> None:
        await asyncio.sleep(0)
        self.decisions += [data] if name == EVENT else []


class Traces(BaseTracer):
    """Keeps all runs, as they are when they end."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Any] = []

    def _persist_run(self, run: Run) -> None:
        pass

    def _end_trace(self, run: Run) -> None:
        self.runs.append(run)
        super()._end_trace(run)

    def named(self, name: str) -> list[Any]:
        return [run for run in self.runs if run.name == name]


class AsyncTraces(AsyncBaseTracer):
    """The same, as a tracer of the other colour."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Any] = []

    async def _persist_run(self, run: Run) -> None:
        pass

    async def _on_chain_end(self, run: Run) -> None:
        self.runs.append(run)


def notes(run: Any) -> list[dict[str, Any]]:
    return run.extra.get("metadata", {}).get(METADATA, [])


async def raising(door: Door, runnable: Any, value: Any, *handlers: BaseCallbackHandler) -> None:
    """Run something that is blocked."""
    with pytest.raises(GuardViolation):
        await door(runnable, value, {"callbacks": list(handlers)})


@pytest.mark.parametrize(
    ("action", "said", "past"),
    [
        pytest.param(Action.BLOCK, "hi", Action.ALLOW, id="allowed"),
        *[
            pytest.param(action, "Hi. A bomb. Bye.", action, id=action.label)
            for action in (Action.FLAG, Action.REDACT, Action.REPLACE, Action.DROP, Action.BLOCK)
        ],
    ],
)
async def test_a_decision_is_an_event_metadata_and_a_tag(
    action: Action, said: str, past: Action, door: Door, guarding: Guarding
) -> None:
    events, more, traces = Events(), AsyncEvents(), Traces()
    config: Any = {"callbacks": [events, more, traces]}
    try:
        await door(guarding(action), said, config)
    except GuardViolation:
        assert past is Action.BLOCK
    [run] = traces.runs
    assert TAGS[past] in (run.tags or [])
    [note] = notes(run)
    assert note["action"] == past.label
    assert note["stage"] == "input"
    assert "text" not in note
    assert events.decisions == more.decisions == [note]
    assert events.log[-1][0] == ("error" if past is Action.BLOCK else "end"), "told before the end"
    told = f"{note}{events.log[:-1]}{run.inputs}{run.error}{run.tags}{run.extra}"
    assert "bomb" not in told


async def test_each_guard_of_a_chain_has_its_own(
    door: Door, guarding: Guarding, llm: EchoModel
) -> None:
    traces = Traces()
    chain = guarding(stage=Stage.INPUT) | llm | guarding(stage=Stage.OUTPUT)
    await door(chain, "hi", {"callbacks": [traces]})
    stages = [(run.name, [note["stage"] for note in notes(run)]) for run in traces.runs]
    assert ("guard-input", ["input"]) in stages
    assert ("guard-output", ["output"]) in stages
    assert [named for name, named in stages if not name.startswith("guard")] == [[], []]


async def test_a_blocked_reply_is_in_no_trace_of_its_guard(door: Door, guarding: Guarding) -> None:
    llm, traces, events = EchoModel(prefix="A bomb: "), Traces(), Events()
    chain = guarding(stage=Stage.INPUT) | llm | guarding(stage=Stage.OUTPUT)
    await raising(door, chain, "hi", traces, events)
    [run] = traces.named("guard-output")
    assert TAGS[Action.BLOCK] in (run.tags or [])
    assert [note["action"] for note in notes(run)] == ["block"]
    assert [note["action"] for note in events.decisions] == ["allow", "block"]
    assert "bomb" not in f"{run.inputs}{run.outputs}{run.extra}{run.error}"


async def test_a_reply_that_is_closed_was_blocked(door: Door, guarding: Guarding) -> None:
    llm, events = EchoModel(prefix="A bomb: "), Events()
    guard = guarding(streaming=Streaming(closing="No."))
    await door(guard | llm | guard, "hi", {"callbacks": [events]})
    assert [note["action"] for note in events.decisions] == ["allow", "block"]


@pytest.mark.parametrize("method", ["batch", "abatch"])
async def test_each_value_of_a_batch_has_its_own(method: str, guarding: Guarding) -> None:
    traces = [Traces() for _ in range(3)]
    configs: Any = [{"callbacks": [one]} for one in traces]
    values = ["hi", "a bomb", [("human", "a bomb"), ("human", "hi")]]
    guard = guarding()
    if method == "batch":
        guard.batch(values, configs, return_exceptions=True)
    else:
        await guard.abatch(values, configs, return_exceptions=True)
    actions = [[note["action"] for note in notes(one.runs[0])] for one in traces]
    assert actions[0] == ["allow"]
    assert actions[1] == ["block"]
    assert len(actions[2]) == 2
    assert TAGS[Action.ALLOW] in (traces[0].runs[0].tags or [])
    assert TAGS[Action.BLOCK] not in (traces[0].runs[0].tags or [])


@pytest.mark.parametrize(
    ("on_error", "tags"),
    [
        pytest.param(OnError.RAISE, {UNJUDGED}, id="raise"),
        pytest.param(OnError.BLOCK, {UNJUDGED, TAGS[Action.BLOCK]}, id="block"),
        pytest.param(OnError.ALLOW, {UNJUDGED, TAGS[Action.ALLOW]}, id="allow"),
    ],
)
async def test_what_could_not_be_judged(on_error: OnError, tags: set[str], door: Door) -> None:
    traces = Traces()
    guard = GuardRunnable(Guard(FailingEngine(), Policy.strict(on_error=on_error)))
    try:
        await door(guard, "hi", {"callbacks": [traces]})
    except GuardError:
        assert on_error is not OnError.ALLOW
    [run] = traces.runs
    assert set(run.tags or []) == tags
    [note] = notes(run)
    assert "Error" in note["error"]


async def test_what_cannot_be_read(door: Door, guarding: Guarding) -> None:
    traces = Traces()
    with pytest.raises(GuardError):
        await door(guarding(), {"question": "bomb"}, {"callbacks": [traces]})
    [run] = traces.runs
    assert run.tags == [UNJUDGED]
    [note] = notes(run)
    assert note["error"].startswith("ConversationError: ")
    assert "bomb" not in str(note)


async def test_the_text_if_it_is_asked_for(door: Door, guarding: Guarding) -> None:
    events = Events()
    guard = guarding(Action.REPLACE, trace_text=True)
    await door(guard, "a bomb", {"callbacks": [events]})
    [note] = events.decisions
    assert note["text"] == "This content was removed by the safety policy."


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("method", [invoke, ainvoke, batch, abatch])
async def test_a_prompt_is_the_input_of_its_run_only_if_that_is_asked_for(
    text: bool, method: Door, guarding: Guarding
) -> None:
    traces = Traces()
    await raising(method, guarding(trace_text=text), "a bomb", traces)
    assert ("bomb" in str(traces.runs[0].inputs)) is text


async def test_events_of_a_chain_have_the_decisions(guarding: Guarding, llm: EchoModel) -> None:
    guard = guarding()
    chain = guard | llm | guard
    seen: list[Any] = [event async for event in chain.astream_events("hi", version="v2")]
    told = [event for event in seen if event["event"] == "on_custom_event"]
    assert [(event["name"], event["data"]["stage"]) for event in told] == [
        (EVENT, "input"),
        (EVENT, "output"),
    ]
    guards = {e["run_id"] for e in seen if e["event"] == "on_chain_start" and e["name"] == "guard"}
    assert {event["run_id"] for event in told} == guards


async def test_events_of_a_blocked_chain_have_the_decision_and_no_text(
    guarding: Guarding, llm: EchoModel
) -> None:
    seen = list[Any]()

    async def read() -> None:
        async for event in (guarding() | llm).astream_events("a bomb", version="v2"):
            seen.append(event)

    with pytest.raises(GuardViolation):
        await read()
    told = [event for event in seen if event["name"] == EVENT]
    assert [event["data"]["action"] for event in told] == ["block"]
    others = [event for event in seen if event["parent_ids"]]
    assert others
    assert "bomb" not in str(others)


class Broken(BaseCallbackHandler):
    """Fails when it is told of a decision, and wants that to be heard."""

    raise_error = True

    def on_custom_event(self, *_args: Any, **_run: Any) -> None:
        raise RuntimeError("bomb")


class BrokenAsync(AsyncCallbackHandler):
    """The same."""

    raise_error = True

    async def on_custom_event(self, *_args: Any, **_run: Any) -> None:
        raise RuntimeError("bomb")


class BrokenTraces(Traces):
    """A tracer that keeps its runs in a form of its own."""

    def _start_trace(self, run: Run) -> None:
        super()._start_trace(run)
        self.run_map[str(run.id)] = object()  # pyright: ignore[reportArgumentType]

    def _get_run(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("bomb")


@pytest.mark.parametrize("broken", [Broken, BrokenAsync, BrokenTraces])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
async def test_a_handler_that_fails_changes_nothing(
    broken: type[BaseCallbackHandler],
    first: bool,
    door: Door,
    guarding: Guarding,
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = Events()
    handlers: list[Any] = [broken(), events] if first else [events, broken()]
    with caplog.at_level("WARNING", logger="guardrails_qwen"):
        assert await door(guarding(), "hi", {"callbacks": handlers}) == ["hi"]
        await raising(door, guarding(), "a bomb", *handlers)
    assert [note["action"] for note in events.decisions] == ["allow", "block"]
    assert "bomb" not in "".join(r.getMessage() for r in caplog.records if "told" in r.getMessage())


async def test_an_asynchronous_tracer(guarding: Guarding) -> None:
    traces = AsyncTraces()
    await guarding().ainvoke("hi", {"callbacks": [traces]})
    assert [[note["action"] for note in notes(run)] for run in traces.runs] == [["allow"]]


class Client:
    """What a LangSmith tracer sends, instead of LangSmith."""

    def __init__(self) -> None:
        self.ended: list[dict[str, Any]] = []
        self.session = self
        self.tracing_queue = None

    def create_run(self, *_args: Any, **_run: Any) -> None:
        pass

    def update_run(self, **run: Any) -> None:
        self.ended.append(run)

    def flush(self) -> None:
        pass


def test_what_a_tracer_of_langsmith_sends(guarding: Guarding) -> None:
    client: Any = Client()
    tracer = LangChainTracer(client=client)
    with pytest.raises(GuardViolation):
        guarding().invoke("a bomb", {"callbacks": [tracer]})
    tracer.wait_for_futures()
    [run] = client.ended
    assert TAGS[Action.BLOCK] in run["tags"]
    assert run["extra"]["metadata"][METADATA][0]["action"] == "block"
    assert "bomb" not in str(run)


async def test_the_marks_of_one_run_are_not_those_of_another(
    door: Door, guarding: Guarding
) -> None:
    traces = Traces()
    branches: Runnable[Any, Any] = RunnableParallel(a=guarding(), b=guarding(Action.FLAG))
    config: Any = {"callbacks": [traces], "tags": ["mine"], "metadata": {"user": "u1"}}
    await door(branches, "hi", config)
    await door(guarding(Action.FLAG), "a bomb", config)
    assert [len(notes(run)) for run in traces.named("guard")] == [1, 1, 1]
    assert config["tags"] == ["mine"]
    assert config["metadata"] == {"user": "u1"}
    assert all("mine" in (run.tags or []) for run in traces.runs)


def decision(action: Action) -> Decision:
    return Decision(action=action, stage=Stage.INPUT, text="a bomb")


@pytest.mark.parametrize("method", ["annotate", "aannotate"])
async def test_annotations_of_several_decisions(method: str) -> None:
    traces, events = Traces(), Events()
    run = CallbackManager.configure([traces, events]).on_chain_start(None, {}, name="mine")
    results = [decision(Action.FLAG), decision(Action.BLOCK), EngineError("busy")]
    if method == "annotate":
        annotate(run, results[:1])
        annotate(run, results[1:])
    else:
        await aannotate(run, results[:1])
        await aannotate(run, results[1:])
    run.on_chain_end({})
    [mine] = traces.runs
    assert mine.tags == [UNJUDGED, TAGS[Action.BLOCK]]
    assert [note.get("action") for note in notes(mine)] == ["flag", "block", None]
    assert events.decisions == notes(mine)
    assert "bomb" not in str(notes(mine))
