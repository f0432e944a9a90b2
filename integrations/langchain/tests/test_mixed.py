"""Replies that stream and say more than text: from there on they are judged as a whole."""

import operator
from collections.abc import Awaitable, Callable, Sequence
from functools import reduce
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from guardrails_qwen import (
    Action,
    Category,
    ConversationError,
    EngineError,
    Guard,
    GuardError,
    GuardViolation,
    OnError,
    Policy,
    Severity,
    Stage,
    Verdict,
)
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedStreamEngine
from integrations.langchain.tests.doubles import FILTERED, REPLACED, SCRIPT, UNSAFE
from langchain_guardrails_qwen import GuardRunnable

Timed = Callable[[GuardRunnable, Sequence[Any]], Awaitable[list[tuple[int, Any]]]]


@pytest.fixture(params=["transform", "atransform"])
def timed(request: pytest.FixtureRequest) -> Timed:
    """What comes out when a guard is fed a stream, each with how much had gone in by then."""

    async def run(runnable: GuardRunnable, values: Sequence[Any]) -> list[tuple[int, Any]]:
        fed = list[Any]()

        def feed():
            for value in values:
                fed.append(value)
                yield value

        async def afeed():
            for value in feed():
                yield value

        if request.param == "transform":
            return [(len(fed), chunk) for chunk in runnable.transform(feed())]
        return [(len(fed), chunk) async for chunk in runnable.atransform(afeed())]

    return run


async def out_of(timed: Timed, guard: GuardRunnable, fed: Sequence[Any]) -> list[Any]:
    return [piece for _, piece in await timed(guard, fed)]


@pytest.fixture
def engine() -> ScriptedStreamEngine:
    return ScriptedStreamEngine(SCRIPT)


def guarding(
    engine: ScriptedStreamEngine, action: Action = Action.BLOCK, **settings: Any
) -> GuardRunnable:
    policy = Policy.strict(action=action)
    return GuardRunnable(Guard(engine, policy), streaming=Streaming(**settings))


def chunk(text: str = "", **fields: Any) -> AIMessageChunk:
    return AIMessageChunk(content=text, id="msg-1", **fields)


def call(args: str, **fields: Any) -> AIMessageChunk:
    piece: Any = {"name": None, "id": None, "args": args, "index": 0, **fields}
    return chunk(tool_call_chunks=[piece])


def calling(*args: str) -> list[AIMessageChunk]:
    return [call("", name="search", id="1"), *map(call, args)]


def added(chunks: Sequence[Any]) -> Any:
    return reduce(operator.add, chunks)


TEXT_SAID = "Let me look that up. "
TEXT = [chunk("Let me "), chunk("look that "), chunk("up. ")]
MORE = {
    "tool calls": calling('{"q": "bre', 'ad"}'),
    "reasoning": [chunk(additional_kwargs={"reasoning_content": "They want bread."})],
    "name": [chunk("Bread.", name="baker")],
    "thinking": [AIMessageChunk(content=[{"type": "thinking", "thinking": "Hm."}], id="msg-1")],
}


LAST = chunk(chunk_position="last", response_metadata={"model_name": "m"})


@pytest.mark.parametrize("more", MORE.values(), ids=list(MORE))
async def test_text_before_leaves_at_once_and_the_rest_when_all_was_judged(
    more: list[AIMessageChunk], timed: Timed, engine: ScriptedStreamEngine
) -> None:
    fed = [*TEXT, *more, LAST]
    out = await timed(guarding(engine), fed)
    early = "".join(piece.text for count, piece in out if count <= len(TEXT))
    assert early
    assert TEXT_SAID.startswith(early)
    assert {count for count, _ in out} - set(range(len(TEXT) + 1)) == {len(fed)}
    assert added([piece for _, piece in out]) == added(fed)


async def test_more_than_text_at_first_releases_nothing_before_the_end(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    fed = [*MORE["reasoning"], *TEXT, LAST]
    out = await timed(guarding(engine), fed)
    assert out == [(len(fed), piece) for piece in fed]


async def test_the_whole_is_judged_at_both_stages(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    fed = [*TEXT, *calling('{"q": "bread"}'), LAST]
    await out_of(timed, guarding(engine), fed)
    [judged] = engine.seen
    assert judged.last.text == TEXT_SAID
    assert [call.name for call in judged.last.tool_calls] == ["search"]


async def test_an_unsafe_call_is_blocked_behind_its_text(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    with pytest.raises(GuardViolation) as caught:
        await timed(guarding(engine), [*TEXT, *calling('{"q": "bo', 'mb"}'), LAST])
    assert caught.value.decision.stage in (Stage.OUTPUT, Stage.TOOL_CALL)


@pytest.mark.parametrize(
    ("action", "closing", "end"),
    [
        (Action.BLOCK, "That is all.", "That is all."),
        (Action.REPLACE, None, REPLACED),
        (Action.DROP, None, ""),
        (Action.REDACT, None, REPLACED),
    ],
    ids=["closing", "replace", "drop", "redact"],
)
async def test_a_call_that_does_not_pass_ends_the_reply(
    action: Action,
    closing: str | None,
    end: str,
    timed: Timed,
    engine: ScriptedStreamEngine,
) -> None:
    guard = guarding(engine, action, closing=closing)
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    fed = [*TEXT, *calling('{"q": "bo', 'mb"}'), chunk(usage_metadata=usage)]
    out = await out_of(timed, guard, fed)
    assert (out[-1].text, out[-1].id, out[-1].chunk_position) == (end, "msg-1", "last")
    assert out[-1].response_metadata == FILTERED
    total = added(out)
    assert (total.tool_calls, total.usage_metadata) == ([], usage)
    assert "bomb" not in str(out)


async def test_what_was_redacted_stays_redacted(timed: Timed, engine: ScriptedStreamEngine) -> None:
    fed = [chunk("Hello. "), chunk("A bomb is here. "), chunk("Bye. "), *MORE["reasoning"]]
    out = await out_of(timed, guarding(engine, Action.REDACT), fed)
    assert added(out).text.startswith("Hello. [removed: Violent]")
    assert "bomb" not in str(out)


async def test_harm_behind_the_text_is_redacted_behind_what_was_released(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    fed = [*TEXT, *MORE["name"], chunk(" A bomb."), LAST]
    out = await out_of(timed, guarding(engine, Action.REDACT), fed)
    assert added(out).text == "Let me look that up. Bread. [removed: Violent]"
    assert "bomb" not in str(out)


UNSAFE_TOKEN = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))


async def test_what_was_redacted_does_not_come_back_with_a_whole_that_passes(
    timed: Timed,
) -> None:
    engine = ScriptedStreamEngine({}, tokens={"bomb": UNSAFE_TOKEN})
    fed = [chunk("Hello. A bomb is here. "), chunk("Bye. "), *MORE["reasoning"]]
    out = await out_of(timed, guarding(engine, Action.REDACT), fed)
    assert added(out).text == f"Hello. [removed: Violent]{REPLACED}"
    assert "bomb" not in str(out)


async def test_a_redaction_of_what_was_released_already_ends_the_reply(timed: Timed) -> None:
    tokens = dict[str, Verdict]()
    engine = ScriptedStreamEngine({"look": UNSAFE}, tokens=tokens)
    out = await out_of(timed, guarding(engine, Action.REDACT), [*TEXT, *TEXT, *MORE["name"]])
    assert added(out).text == TEXT_SAID + REPLACED
    assert out[-1].response_metadata == FILTERED


async def test_what_is_taken_out_keeps_its_usage(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    harm = chunk("bomb ", usage_metadata=usage, response_metadata={"echo": "bomb"})
    fed = [chunk("Hello. A "), harm, chunk("is here. "), chunk("Then bye.")]
    out = await out_of(timed, guarding(engine, Action.REDACT), fed)
    total = added(out)
    assert (total.text, total.usage_metadata) == ("Hello. [removed: Violent] Then bye.", usage)
    assert "bomb" not in str(out)


async def test_a_reply_that_goes_on_behind_its_end_ends_once(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    fed = [
        chunk("Hello there, all of you. ", response_metadata={"finish_reason": "stop"}),
        chunk("A bomb is here. "),
    ]
    out = await out_of(timed, guarding(engine, Action.REPLACE), fed)
    assert added(out).response_metadata == FILTERED
    assert out[0].text.startswith("Hello")


@pytest.mark.parametrize("closing", ["That is all.", None], ids=["closing", "raises"])
@pytest.mark.parametrize("door", ["transform", "atransform"])
async def test_the_source_is_closed_before_the_reader_hears_of_the_block(
    closing: str | None, door: str, engine: ScriptedStreamEngine
) -> None:
    events = list[str]()

    def feed():
        try:
            for word in ["A", "bomb", "is", "here", "now"]:
                yield chunk(f"{word} ")
            events.append("done")
        finally:
            events.append("closed")

    async def afeed():
        try:
            for piece in feed():
                yield piece
        except GeneratorExit:
            events.append("closed")
            raise

    guard = guarding(engine, closing=closing)
    try:
        if door == "transform":
            for piece in guard.transform(feed()):
                events.append(piece.text)
        else:
            async for piece in guard.atransform(afeed()):
                events.append(piece.text)
    except GuardViolation:
        events.append("raised")
    end = events.index(closing or "raised")
    assert "closed" in events[:end]
    assert "done" not in events


def blocks(*texts: str, index: int | str | None = 0, kind: str = "text") -> AIMessageChunk:
    extra = {} if index is None else {"index": index}
    content: Any = [{"type": kind, "text": text, **extra} for text in texts]
    return AIMessageChunk(content=content, id="msg-1")


def named(text: str, name: str) -> AIMessageChunk:
    return AIMessageChunk(content=[{"type": "text", "text": text, "index": 0, "id": name}])


@pytest.mark.parametrize("index", [0, "lc_txt_0"], ids=["number", "standard"])
@pytest.mark.parametrize("action", [Action.REPLACE, Action.REDACT], ids=lambda a: a.label)
async def test_text_in_blocks_is_moderated_in_blocks(
    index: int | str, action: Action, timed: Timed, engine: ScriptedStreamEngine
) -> None:
    said = ["Hello th", "ere. A bo", "mb goes. ", "Then it is over. "]
    out = await timed(guarding(engine, action), [blocks(part, index=index) for part in said])
    assert out[0][0] < len(said)
    total = added([piece for _, piece in out])
    [block] = total.content
    assert (block["type"], block["index"]) == ("text", index)
    assert block["text"].startswith("Hello there. ")
    assert "bomb" not in str(out)


async def test_a_block_that_is_named_at_its_end_is_still_text(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    end = AIMessageChunk(content=[{"type": "text", "id": "msg_1", "index": 0}], id="msg-1")
    fed = [blocks("Hello there. "), blocks("Take flour. "), blocks("Bye."), end, LAST]
    out = await out_of(timed, guarding(engine), fed)
    assert added(out) == added(fed)
    assert engine.seen == []  # nothing had to be judged as a whole


@pytest.mark.parametrize(
    "fed",
    [
        pytest.param([blocks("A bo"), blocks(" cake. ", index=1), blocks("mb. ")], id="earlier"),
        pytest.param([blocks("A bo"), chunk(" cake. "), blocks("mb. ")], id="behind a text"),
        pytest.param(
            [named("A bo", "a"), named(" cake. ", "b"), blocks("mb. ")], id="of two names"
        ),
    ],
)
async def test_blocks_that_are_not_continued_in_order_are_judged_added_up(
    fed: list[AIMessageChunk], timed: Timed, engine: ScriptedStreamEngine
) -> None:
    with pytest.raises(GuardViolation):
        await timed(guarding(engine), fed)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param([chunk("a bo"), chunk("mb is"), chunk(" here")], id="texts"),
        pytest.param(calling('{"q": "bomb"}'), id="tool call"),
        pytest.param([chunk(additional_kwargs={"reasoning": "bomb"})], id="arguments"),
        pytest.param([blocks("a bomb is ", "here", kind="text-plain")], id="block"),
        pytest.param([chunk(name="bomb")], id="name"),
        pytest.param(
            [chunk(response_metadata={"echo": "bomb"}), chunk("A bomb is here.")], id="metadata"
        ),
        pytest.param(
            [chunk("A bomb is here.", response_metadata={"logprobs": "bomb"})], id="log-probs"
        ),
        pytest.param([AIMessageChunk(content="", id="a bomb")], id="id"),
        pytest.param([AIMessageChunk.model_validate({"content": "", "note": "bomb"})], id="extra"),
    ],
)
@pytest.mark.parametrize("before", [[], TEXT], ids=["at first", "behind text"])
async def test_harm_has_no_way_out(
    harm: list[AIMessageChunk],
    before: list[AIMessageChunk],
    timed: Timed,
    engine: ScriptedStreamEngine,
) -> None:
    out = await out_of(timed, guarding(engine, Action.REPLACE), [*before, *harm, LAST])
    assert "bomb" not in str(out)


async def test_what_cannot_be_judged_is_an_error(
    timed: Timed, engine: ScriptedStreamEngine
) -> None:
    image: Any = [{"type": "image_url", "image_url": {"url": "http://x/bomb.png"}}]
    with pytest.raises(ConversationError) as caught:
        await timed(guarding(engine), [*TEXT, AIMessageChunk(content=image)])
    assert "bomb" not in str(caught.value)


async def test_half_a_character_is_not_text(timed: Timed, engine: ScriptedStreamEngine) -> None:
    with pytest.raises(ConversationError, match="surrogate"):
        await timed(guarding(engine), [chunk("Cake \ud83c"), chunk("\udf70 is here. ")])


@pytest.mark.parametrize("stage", [Stage.OUTPUT, None], ids=["stage", "no stage"])
async def test_texts_are_replies_where_the_stage_says_so(
    stage: Stage | None, timed: Timed, engine: ScriptedStreamEngine
) -> None:
    guard = GuardRunnable(Guard(engine), stage=stage)
    out = await timed(guard, ["Take flour. ", "And water. ", "Bake it."])
    assert (out[0][0] < 3) is (stage is Stage.OUTPUT)
    assert "".join(piece for _, piece in out) == "Take flour. And water. Bake it."


async def test_an_engine_that_fails_at_the_whole(timed: Timed) -> None:
    def script(conversation: Any) -> Any:
        return EngineError("down")

    safe = dict[str, Any]()
    engine = ScriptedStreamEngine(script, tokens=safe)
    guard = GuardRunnable(Guard(engine, Policy.strict(on_error=OnError.RAISE)))
    with pytest.raises(GuardError):
        await timed(guard, [*TEXT, *calling("{}"), LAST])
