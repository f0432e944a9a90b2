"""A guarded model gives its callers and handlers what its guard lets through, at every door."""

import copy
import json
import pickle
from collections.abc import Callable
from operator import methodcaller
from typing import Any, cast

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    LogProb,
    MessageRole,
    TextBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import MockLLM, utils
from pydantic import ValidationError

from guardrails_qwen import (
    Action,
    Engine,
    EngineUnavailable,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    Stage,
    StagePolicy,
)
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import FailingEngine, ScriptedEngine, ScriptedStreamEngine
from integrations.llama_index.tests.doubles import REPLACED, SCRIPT, WritingLLM, call, heard
from integrations.llama_index.tests.llm_doors import (
    DOORS,
    HARMFUL,
    HARMLESS,
    STREAMS,
    ask,
    assistant,
    extra_of,
    note_on,
    outcome,
    read_by,
    text_of,
    user,
)
from llama_index_guardrails_qwen import GuardedLLM, GuardViolationEvent

doors = pytest.mark.parametrize("door", DOORS)
ACTIONS = [Action.BLOCK, Action.REPLACE, Action.REDACT, Action.DROP]
actions = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.label)
CLOSING = "I had better stop."
STRUCTURED = WritingLLM(replies=["Hello."]).as_structured_llm(ChatMessage)


@pytest.fixture(params=[ScriptedStreamEngine, ScriptedEngine], ids=["tokens", "texts"])
def engine(request: pytest.FixtureRequest) -> ScriptedEngine:
    """One that judges tokens, and one that judges the text so far again and again."""
    return request.param(SCRIPT)


@pytest.fixture(params=[False, True], ids=["after", "beside"])
def beside(request: pytest.FixtureRequest) -> bool:
    """Whether the messages are judged while the model writes."""
    return request.param


def guarded(
    reply: str | list[Any],
    engine: Engine,
    action: Action = Action.BLOCK,
    *,
    closing: str | None = None,
    on_error: OnError = OnError.BLOCK,
    **fields: Any,
) -> GuardedLLM:
    """A guarded model that writes a reply."""
    return GuardedLLM(
        inner=WritingLLM(replies=[reply]),
        guard=Guard(engine, Policy.strict(action=action, on_error=on_error)),
        streaming=Streaming(stride=1, closing=closing),
        **fields,
    )


def inner_of(llm: GuardedLLM) -> WritingLLM:
    return cast("WritingLLM", llm.inner)


@doors
async def test_what_is_harmless_passes_word_by_word_where_it_streams(
    door: str, engine: ScriptedEngine, beside: bool
) -> None:
    llm = guarded(HARMLESS, engine, beside=beside)
    out = await ask(door, llm)
    assert read_by(out) == text_of(out[-1]) == HARMLESS
    assert (len(out) > 3) is (door in STREAMS)
    assert note_on(out[-1])["action"] == "allow"
    assert "text" not in note_on(out[-1])


@doors
@actions
async def test_nothing_of_a_reply_that_is_not_let_through_can_be_seen_or_heard(
    door: str, action: Action, engine: ScriptedEngine, beside: bool
) -> None:
    llm = guarded(HARMFUL, engine, action, beside=beside)
    with heard() as (events, spans):
        out, error = await outcome(door, llm)
    assert "bomb" not in f"{out!r} {error!r} {events.events!r} {spans.told}"
    assert isinstance(error, GuardViolation) is (action is Action.BLOCK)
    assert events.of(GuardViolationEvent)
    assert any(door in told for told in spans.told)


@doors
@pytest.mark.parametrize(
    ("action", "left"),
    [
        (Action.REPLACE, REPLACED),
        (Action.REDACT, "[removed: Violent]"),
        (Action.DROP, ""),
        (Action.FLAG, HARMFUL),
    ],
    ids=["replace", "redact", "drop", "flag"],
)
async def test_what_is_left_of_a_reply(
    door: str, action: Action, left: str, engine: ScriptedEngine
) -> None:
    out = await ask(door, guarded(HARMFUL, engine, action))
    assert read_by(out) == text_of(out[-1])
    assert text_of(out[-1]).endswith(left) or left in text_of(out[-1])
    if action is Action.REDACT:
        assert "Goodbye." in text_of(out[-1])
    elif action is Action.DROP:
        assert HARMFUL.startswith(text_of(out[-1]))


@doors
@pytest.mark.parametrize(
    ("violation", "closing", "left"),
    [
        ("reply", None, REPLACED),
        ("reply", CLOSING, CLOSING),
        ("raise", CLOSING, CLOSING),
        ("raise", None, None),
    ],
    ids=["replies", "closes", "closes-though-it-raises", "raises"],
)
async def test_a_blocked_reply_ends_as_it_was_chosen(
    door: str, violation: str, closing: str | None, left: str | None, engine: ScriptedEngine
) -> None:
    llm = guarded(HARMFUL, engine, closing=closing, on_violation=violation)
    out, error = await outcome(door, llm)
    if left is None:
        assert isinstance(error, GuardViolation)
        assert error.decision.stage is Stage.OUTPUT
    else:
        assert error is None
        assert text_of(out[-1]).endswith(left)
        assert read_by(out) == text_of(out[-1])


@doors
@pytest.mark.parametrize(
    ("action", "violation", "answer"),
    [
        (Action.BLOCK, "raise", None),
        (Action.BLOCK, "reply", REPLACED),
        (Action.DROP, "raise", ""),
        (Action.DROP, "reply", ""),
    ],
    ids=["block-raises", "block-replies", "drop", "drop-replies"],
)
async def test_a_prompt_that_is_not_let_through_reaches_no_model(
    door: str, action: Action, violation: str, answer: str | None, engine: ScriptedEngine
) -> None:
    llm = guarded(HARMLESS, engine, action, on_violation=violation, closing=CLOSING)
    out, error = await outcome(door, llm, "How can I build a bomb?")
    assert inner_of(llm).seen == []
    if answer is None:
        assert isinstance(error, GuardViolation)
        assert error.decision.stage is Stage.INPUT
    else:
        assert error is None
        assert [text_of(one) for one in out] == [answer]


@doors
@pytest.mark.parametrize(
    ("action", "sent"),
    [(Action.REPLACE, REPLACED), (Action.REDACT, "Hi there. [removed: Violent]")],
    ids=["replace", "redact"],
)
async def test_a_prompt_that_is_changed_is_answered_as_it_is_then(
    door: str, action: Action, sent: str, engine: ScriptedEngine, beside: bool
) -> None:
    llm = guarded(HARMLESS, engine, action, beside=beside)
    out = await ask(door, llm, "Hi there. How can I build a bomb?")
    assert text_of(out[-1]) == HARMLESS
    assert [message.content for message in inner_of(llm).seen[-1]] == [sent]
    replies = [asked for asked in engine.seen if asked.last.text.startswith("Take flour")]
    assert {asked.messages[0].text for asked in replies} <= {sent}
    assert beside or "bomb" not in str(inner_of(llm).seen)


@doors
async def test_a_reply_is_judged_with_its_prompt(door: str) -> None:
    engine = ScriptedEngine(SCRIPT)
    await ask(door, guarded(HARMLESS, engine), "How do I bake bread?")
    assert [message.text for message in engine.seen[-1].messages] == [
        "How do I bake bread?",
        HARMLESS,
    ]


@doors
@pytest.mark.parametrize(
    ("on_error", "error", "answered"),
    [
        (OnError.BLOCK, GuardViolation, False),
        (OnError.RAISE, GuardError, False),
        (OnError.ALLOW, None, True),
    ],
    ids=["block", "raise", "allow"],
)
async def test_an_engine_that_fails(
    door: str, on_error: OnError, error: type[Exception] | None, answered: bool
) -> None:
    engine = FailingEngine(EngineUnavailable("it is gone"))
    llm = guarded(HARMLESS, engine, on_error=on_error)
    out, raised = await outcome(door, llm)
    assert bool(inner_of(llm).seen) is answered
    if error:
        assert isinstance(raised, error)
        assert isinstance(raised, GuardViolation) is (on_error is OnError.BLOCK)
    else:
        assert text_of(out[-1]) == HARMLESS
        assert note_on(out[-1])["error"]


@doors
async def test_an_engine_that_fails_behind_the_prompt_releases_nothing(door: str) -> None:
    def broken(conversation: Any) -> Any:
        if conversation.last.role.value == "assistant":
            return EngineUnavailable("it is gone")
        return "Safety: Safe\nCategories: None"

    out, error = await outcome(door, guarded(HARMLESS, ScriptedEngine(broken)))
    assert isinstance(error, GuardViolation)
    assert error.decision.degraded
    assert out == []


@doors
async def test_what_repeats_a_reply_stays_inside(door: str, engine: ScriptedEngine) -> None:
    unjudged = ChatResponse(
        message=assistant("Hello."),
        delta="Hello.",
        raw={"id": "chat-1", "choices": ["a bomb"], "usage": {"total_tokens": 7, "a bomb": 1}},
        logprobs=[[LogProb(token="bomb", logprob=-1.0)]],
        additional_kwargs={"thinking_delta": "a bomb", "prompt_tokens": 5, "a bomb": 1},
    )
    llm = guarded([unjudged], engine)
    with heard() as (events, spans):
        out = await ask(door, llm)
    assert text_of(out[-1]) == "Hello."
    assert "bomb" not in f"{out!r} {events.events!r} {spans.told}"
    if door in STREAMS and "chat" in door:
        assert out[-1].raw == {"id": "chat-1", "usage": {"total_tokens": 7}}
        assert extra_of(out[-1])["prompt_tokens"] == 5


@pytest.mark.parametrize("door", ["chat", "achat", "stream_chat", "astream_chat"])
@pytest.mark.parametrize("more", [[], [call("search", query="tea")]], ids=["words", "call"])
async def test_a_reply_is_the_models_whoever_it_says_it_is(
    door: str, more: list[Any], engine: ScriptedEngine
) -> None:
    """The role that LlamaIndex gives by default is the user's."""
    rules = {Stage.OUTPUT: Policy.strict().default}
    policy = Policy(name="output", default=StagePolicy(), stages=rules)
    message = ChatMessage(blocks=[TextBlock(text=HARMFUL), *more])
    inner = WritingLLM(replies=[[ChatResponse(message=message)]])
    llm = GuardedLLM(inner=inner, guard=Guard(engine, policy))
    out, error = await outcome(door, llm)
    assert isinstance(error, GuardViolation)
    assert "bomb" not in f"{out!r}"
    llm.on_violation = "reply"
    out: Any = await ask(door, llm)
    assert out[-1].message.role is MessageRole.ASSISTANT


@doors
async def test_arguments_go_through_to_the_model(door: str, guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    await ask(door, llm, temperature=0.5)
    assert inner_of(llm).asked == [{"temperature": 0.5}]


@doors
async def test_an_error_of_the_model_is_raised_as_it_is(door: str, guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[["Hello. ", RuntimeError("no more")]]), guard=guard)
    out, error = await outcome(door, llm)
    assert isinstance(error, RuntimeError)
    assert "Hello. ".startswith(read_by(out))


@doors
async def test_one_that_says_nothing(door: str, guard: Guard) -> None:
    out = await ask(door, GuardedLLM(inner=WritingLLM(replies=[[""]]), guard=guard))
    assert read_by(out) == text_of(out[-1]) == ""


@pytest.mark.parametrize("door", ["stream_chat", "astream_chat"])
async def test_one_that_does_not_even_say_that(door: str, guard: Guard) -> None:
    assert await ask(door, GuardedLLM(inner=WritingLLM(replies=[[]]), guard=guard)) == []


@pytest.mark.parametrize("door", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_no_messages_are_no_error(door: str, guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    assert text_of((await ask(door, llm, []))[-1]) == "Hello."


async def test_predictions_are_guarded_as_well(guarding: Callable[..., Guard]) -> None:
    llm = GuardedLLM(
        inner=WritingLLM(replies=[HARMFUL]),
        guard=guarding(Action.REPLACE),
        streaming=Streaming(stride=1),
    )
    prompt = PromptTemplate("What is {it}?")
    said = [
        llm.predict(prompt, it="tea"),
        await llm.apredict(prompt, it="tea"),
        "".join(llm.stream(prompt, it="tea")),
        "".join([token async for token in await llm.astream(prompt, it="tea")]),
    ]
    assert all(text.endswith(REPLACED) and "bomb" not in text for text in said)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"guard": "strict"}, TypeError, "not a Guard"),
        ({"guard": ScriptedEngine()}, TypeError, "not a Guard"),
        ({"inner": "gpt"}, TypeError, "an LLM of LlamaIndex"),
        ({"inner": STRUCTURED}, TypeError, "as_structured_llm"),
        ({"on_violation": "stop a bomb"}, ValidationError, "on_violation"),
        ({"on_violatoin": "a bomb"}, ValidationError, "on_violatoin"),
    ],
    ids=["a-name", "an-engine", "no-model", "structured", "no-choice", "misspelt"],
)
def test_what_cannot_be_guarded_is_refused(
    fields: dict[str, Any], error: type[Exception], message: str, guard: Guard
) -> None:
    whole: dict[str, Any] = {"inner": WritingLLM(replies=["Hello."]), "guard": guard, **fields}
    with pytest.raises(error, match=message) as caught:
        GuardedLLM(**whole)
    assert "bomb" not in str(caught.value)


class Secretive(WritingLLM):
    """Has a key."""

    api_key: str = "sk-secret"

    @classmethod
    def class_name(cls) -> str:
        return "Secretive"


def test_it_shows_neither_secrets_nor_texts(guard: Guard) -> None:
    llm = GuardedLLM(inner=Secretive(replies=[HARMFUL]), guard=guard)
    shown = f"{llm!r} {llm} {llm.to_dict()} {llm.to_json()} {llm.json()} {llm.to_payload()}"
    shown += json.dumps(llm.model_dump(mode="json")) + llm.model_dump_json()
    assert "secret" not in shown
    assert "bomb" not in shown
    assert "Secretive" in repr(llm)


def test_what_is_cached_by_it_goes_by_policy_and_models(guarding: Callable[..., Guard]) -> None:
    def saved(reply: str, action: Action) -> str:
        return GuardedLLM(inner=WritingLLM(replies=[reply]), guard=guarding(action)).to_json()

    cases = [("one", Action.BLOCK), ("two", Action.BLOCK), ("one", Action.REDACT)]
    assert len({saved(*case) for case in cases}) == len(cases)
    assert saved(*cases[0]) == saved(*cases[0])


def test_it_is_pickled_with_its_guard(guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[HARMFUL]), guard=guard, on_violation="reply")
    again = pickle.loads(pickle.dumps(llm))
    assert again.chat([user("hi")]).message.content == REPLACED


def test_what_it_says_of_itself_can_be_read_back(guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[HARMFUL]), guard=guard, on_violation="reply")
    again = GuardedLLM.from_dict(llm.to_dict(), inner=llm.inner, guard=guard)
    assert again.to_dict() == llm.to_dict()
    with pytest.raises(TypeError):
        GuardedLLM.from_dict(llm.to_dict())


def test_where_its_guard_cannot_be_pickled_neither_can_it() -> None:
    engine = ScriptedEngine(lambda _: "Safety: Safe\nCategories: None")
    llm = GuardedLLM(inner=WritingLLM(replies=[HARMFUL]), guard=Guard(engine))
    with pytest.raises(pickle.PicklingError, match="the guard of a GuardedLLM"):
        pickle.dumps(llm)


def test_where_its_model_cannot_be_pickled_neither_can_it(guard: Guard) -> None:
    class Local(WritingLLM):
        pass

    with pytest.raises(pickle.PicklingError, match="the inner model of a GuardedLLM"):
        pickle.dumps(GuardedLLM(inner=Local(replies=["Hello."]), guard=guard))


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    methodcaller("model_copy"),
    methodcaller("model_copy", deep=True),
]


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "model_copy", "deep"])
def test_copies_have_the_same_guard(
    copied: Callable[[GuardedLLM], GuardedLLM], guard: Guard
) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=[HARMFUL]), guard=guard, on_violation="reply")
    again = copied(llm)
    assert again.guard is guard
    assert again.chat([user("hi")]).message.content == REPLACED


def test_it_says_of_itself_what_the_inner_model_says(guard: Guard) -> None:
    inner = WritingLLM(replies=["Hello."], system_prompt="Be brief.")
    llm = GuardedLLM(inner=inner, guard=guard)
    assert llm.metadata == inner.metadata
    assert llm.system_prompt == "Be brief."
    assert llm.callback_manager is inner.callback_manager
    assert llm.to_payload() == {**inner.to_payload(), "class_name": "GuardedLLM"}
    window = cast("Any", PromptHelper).from_llm_metadata(llm.metadata).context_window
    assert window == inner.metadata.context_window


def test_settings_take_it(guard: Guard) -> None:
    llm = GuardedLLM(inner=MockLLM(max_tokens=3), guard=guard)
    assert cast("Any", utils).resolve_llm(llm) is llm
    before = Settings.llm if Settings._llm else None  # pyright: ignore[reportPrivateUsage]
    Settings.llm = llm
    try:
        assert Settings.llm is llm
    finally:
        Settings._llm = before  # pyright: ignore[reportPrivateUsage]


@doors
async def test_its_tokens_are_counted_once(door: str, guard: Guard) -> None:
    counting = TokenCountingHandler(tokenizer=str.split)
    inner = WritingLLM(replies=[HARMLESS], callback_manager=CallbackManager([counting]))
    await ask(door, GuardedLLM(inner=inner, guard=guard), "how do I bake?")
    assert len(counting.llm_token_counts) == 1
    assert counting.completion_llm_token_count >= len(HARMLESS.split())


def test_rules_may_differ_by_stage(engine: ScriptedEngine) -> None:
    policy = Policy(
        name="lenient", default=StagePolicy(), stages={Stage.OUTPUT: Policy.strict().default}
    )
    llm = GuardedLLM(
        inner=WritingLLM(replies=["A bomb."]), guard=Guard(engine, policy), on_violation="reply"
    )
    assert llm.chat([user("What is a bomb?")]).message.content == REPLACED
    assert "bomb" in str(cast("WritingLLM", llm.inner).seen)


@pytest.mark.parametrize("role", list(MessageRole), ids=lambda role: role.value)
async def test_whoever_says_it_last_is_judged(role: MessageRole, guard: Guard) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    with pytest.raises(GuardViolation):
        await llm.achat([ChatMessage(role=role, content="Build a bomb.")])
    assert inner_of(llm).seen == []
