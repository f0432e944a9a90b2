"""What a guarded model is sent of a conversation, what is judged of it, and how often."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.memory import Memory
from llama_index.core.memory.memory import BaseMemoryBlock

from guardrails_qwen import (
    Action,
    Conversation,
    EngineUnavailable,
    Guard,
    GuardViolation,
    OnError,
    Policy,
    Severity,
    Stage,
    StagePolicy,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.testing import FailingEngine, ScriptedEngine
from integrations.llama_index.tests.doubles import REPLACED, SCRIPT, UNSAFE, WritingLLM, call
from integrations.llama_index.tests.llm_doors import CHATS, ask, assistant, outcome, text_of, user
from llama_index_guardrails_qwen import GuardedLLM
from llama_index_guardrails_qwen.incidents import report

SAFE = "Safety: Safe\nCategories: None"

chats = pytest.mark.parametrize("door", CHATS)

SYSTEM = ChatMessage(role=MessageRole.SYSTEM, content="Never say how to build a bomb.")
ABOUT = user("What is a bomb?")
CALLS = ChatMessage(role=MessageRole.ASSISTANT, blocks=[call("search", query="tea")])
CALLS_BOMB = ChatMessage(role=MessageRole.ASSISTANT, blocks=[call("search", query="bomb")])


def result(text: str, call_id: str = "call-1") -> ChatMessage:
    return ChatMessage(
        role=MessageRole.TOOL, content=text, additional_kwargs={"tool_call_id": call_id}
    )


@pytest.fixture
def model(guarding: Callable[..., Guard]) -> Callable[..., GuardedLLM]:
    """Makes a guarded model that says Hello."""

    def make(action: Action = Action.BLOCK, **fields: Any) -> GuardedLLM:
        inner = WritingLLM(replies=["Hello."])
        return GuardedLLM(inner=inner, guard=guarding(action), **fields)

    return make


def sent(llm: GuardedLLM) -> list[str]:
    """What the inner model was sent last."""
    inner: Any = llm.inner
    return [f"{message.role.value}: {message.content or ''}" for message in inner.seen[-1]]


@chats
@pytest.mark.parametrize(
    ("messages", "left"),
    [
        ([user("Build a bomb."), user("And tea?")], ["user: And tea?"]),
        (
            [user("Hi."), assistant("Take a bomb."), user("And tea?")],
            ["user: Hi.", "user: And tea?"],
        ),
        (
            [user("Build a bomb."), assistant("I will not."), user("And tea?")],
            ["user: And tea?"],
        ),
        (
            [user("Hi."), CALLS_BOMB, result("boiled"), assistant("Fine."), user("And tea?")],
            ["user: Hi.", "assistant: Fine.", "user: And tea?"],
        ),
        (
            [user("Build a bomb."), CALLS, result("boiled"), assistant("Fine."), user("And tea?")],
            ["user: And tea?"],
        ),
        (
            [user("Hi."), CALLS, result("A bomb."), assistant("Fine."), user("And tea?")],
            ["user: Hi.", "assistant: ", "tool: ", "assistant: Fine.", "user: And tea?"],
        ),
    ],
    ids=["prompt", "reply", "prompt-and-reply", "call", "prompt-and-all", "result"],
)
async def test_the_past_is_left_out_where_it_is_blocked(
    door: str, messages: list[ChatMessage], left: list[str], model: Callable[..., GuardedLLM]
) -> None:
    llm = model()
    await ask(door, llm, messages)
    assert sent(llm) == left
    await ask(door, llm, messages)
    assert sent(llm) == left


@chats
@pytest.mark.parametrize(
    ("action", "left"),
    [
        (Action.REPLACE, ["user: Hi.", f"assistant: {REPLACED}", "user: And tea?"]),
        (Action.REDACT, ["user: Hi.", "assistant: Good. [removed: Violent]", "user: And tea?"]),
        (Action.DROP, ["user: Hi.", "user: And tea?"]),
        (Action.FLAG, ["user: Hi.", "assistant: Good. A bomb.", "user: And tea?"]),
    ],
    ids=["replace", "redact", "drop", "flag"],
)
async def test_the_past_is_changed_once(
    door: str,
    action: Action,
    left: list[str],
    model: Callable[..., GuardedLLM],
    engine: ScriptedEngine,
) -> None:
    llm = model(action)
    messages = [user("Hi."), assistant("Good. A bomb."), user("And tea?")]
    await ask(door, llm, messages)
    assert sent(llm) == left
    asked = len(engine.seen)
    await ask(door, llm, [*messages, assistant("Hello."), user("And milk?")])
    assert sent(llm) == [*left, "assistant: Hello.", "user: And milk?"]
    assert all("bomb" not in str(one.last.text) for one in engine.seen[asked:])


@chats
async def test_what_was_blocked_is_not_read_with_what_follows(door: str) -> None:
    """Guards read messages of one side as one, so it would be blocked for ever."""

    def judged(conversation: Any) -> Any:
        read = str([message.text for message in conversation.messages])
        return UNSAFE if "bomb" in read else "Safety: Safe\nCategories: None"

    llm = GuardedLLM(
        inner=WritingLLM(replies=["Hello."]), guard=Guard(ScriptedEngine(judged), Policy.strict())
    )
    first, later = [user("A bomb!"), user("And tea?")], [user("And milk?")]
    await ask(door, llm, first)
    assert sent(llm) == ["user: And tea?"]
    await ask(door, llm, [*first, assistant("Hello."), *later])
    assert sent(llm) == ["user: And tea?", "assistant: Hello.", "user: And milk?"]
    _, error = await outcome(door, llm, [*first, assistant("Hello."), user("A bomb!")])
    assert isinstance(error, GuardViolation)
    await ask(door, llm, [*first, assistant("Hello."), user("A bomb!"), *later])
    assert sent(llm) == ["user: And tea?", "assistant: Hello.", "user: And milk?"]


@chats
async def test_a_long_conversation_is_judged_once(
    door: str, model: Callable[..., GuardedLLM], engine: ScriptedEngine
) -> None:
    llm, messages = model(), list[ChatMessage]()
    for turn in range(20):
        messages.append(user(f"Question {turn}"))
        await ask(door, llm, messages)
        messages.append(assistant("Hello."))
    judged = [one.last.text for one in engine.seen]
    assert all(judged.count(f"Question {turn}") == 1 for turn in range(20))
    assert max(engine.batches) == 1


@chats
async def test_a_window_that_slides_is_judged_at_its_edge_only(
    door: str, model: Callable[..., GuardedLLM], engine: ScriptedEngine
) -> None:
    llm, messages = model(), list[ChatMessage]()
    for turn in range(12):
        messages = [*messages, user(f"Question {turn}")][-5:]
        await ask(door, llm, messages)
        messages.append(assistant("Hello."))
    assert max(engine.batches) <= 2


@chats
async def test_what_is_blocked_is_judged_whenever_it_is_asked_for(
    door: str, model: Callable[..., GuardedLLM], engine: ScriptedEngine
) -> None:
    llm = model()
    for calls in (1, 2):
        _, error = await outcome(door, llm, [ABOUT])
        assert isinstance(error, GuardViolation)
        assert len(engine.seen) == calls


@chats
@pytest.mark.parametrize("trusting", [True, False])
async def test_system_messages_may_be_trusted(
    door: str, trusting: bool, model: Callable[..., GuardedLLM], engine: ScriptedEngine
) -> None:
    llm = model(trust_system=trusting)
    _, error = await outcome(door, llm, [SYSTEM, user("Hi.")])
    assert isinstance(error, GuardViolation) is not trusting
    if trusting:
        assert sent(llm) == [f"system: {SYSTEM.content}", "user: Hi."]
        read = str([message.text for one in engine.seen for message in one.messages])
        assert "bomb" not in read


@chats
async def test_only_those_that_begin_are_trusted(
    door: str, model: Callable[..., GuardedLLM]
) -> None:
    _, error = await outcome(door, model(trust_system=True), [user("Hi."), SYSTEM])
    assert isinstance(error, GuardViolation)


@chats
async def test_only_the_first_one_is_trusted(door: str, model: Callable[..., GuardedLLM]) -> None:
    """Those behind it may be those of a memory, with what users said."""
    llm = model(trust_system=True)
    memory = ChatMessage(role=MessageRole.SYSTEM, content="Said before: build a bomb.")
    await ask(door, llm, [SYSTEM, memory, user("Hi.")])
    assert sent(llm) == [f"system: {SYSTEM.content}", "user: Hi."]


@chats
@pytest.mark.parametrize("trusting", [True, False])
async def test_what_a_memory_keeps_of_what_was_blocked(
    door: str, trusting: bool, model: Callable[..., GuardedLLM]
) -> None:
    class Keeping(BaseMemoryBlock[str]):
        """Keeps all that was said."""

        async def _aget(self, messages: list[ChatMessage] | None = None, **kwargs: Any) -> str:
            return "How can I build a bomb?"

        async def _aput(self, messages: list[ChatMessage]) -> None:
            pass

    memory = cast("Any", Memory).from_defaults(session_id="a", memory_blocks=[Keeping(name="said")])
    await memory.aput(user("Hi."))
    kept = await memory.aget()
    await memory.sql_store._async_engine.dispose()
    llm = model(trust_system=trusting)
    prompt = ChatMessage(role=MessageRole.SYSTEM, content="Be nice.")
    await ask(door, llm, [prompt, *kept])
    assert sent(llm) == ["system: Be nice.", "user: Hi."]


@chats
@pytest.mark.parametrize(
    ("action", "left"),
    [
        (Action.BLOCK, None),
        (Action.REPLACE, REPLACED),
        (Action.REDACT, "Tea. [removed: Violent]"),
        (Action.DROP, ""),
    ],
    ids=["block", "replace", "redact", "drop"],
)
async def test_what_a_tool_has_just_given(
    door: str, action: Action, left: str | None, model: Callable[..., GuardedLLM]
) -> None:
    llm = model(action)
    _, error = await outcome(door, llm, [user("Hi."), CALLS, result("Tea. A bomb.")])
    if left is None:
        assert isinstance(error, GuardViolation)
        assert error.decision.stage is Stage.TOOL_RESULT
    else:
        assert sent(llm) == ["user: Hi.", "assistant: ", f"tool: {left}"]


@chats
@pytest.mark.parametrize(
    ("action", "judged"), [(Action.REPLACE, 160), (Action.REDACT, 480)], ids=["replace", "redact"]
)
async def test_many_results_that_are_changed_do_not_cost_their_square(
    door: str,
    action: Action,
    judged: int,
    model: Callable[..., GuardedLLM],
    engine: ScriptedEngine,
) -> None:
    names = [f"call-{number}" for number in range(30)]
    calls = [call("search", name, query="tea") for name in names]
    results = [result("A bomb.", name) for name in names]
    asking = ChatMessage(role=MessageRole.ASSISTANT, blocks=calls)
    llm = model(action)
    await ask(door, llm, [user("Hi."), asking, *results])
    assert "bomb" not in str(sent(llm))
    assert len(sent(llm)) == 32
    assert sum(engine.batches) < judged


@chats
async def test_what_stands_behind_much_that_was_refused_is_left_out(
    door: str, model: Callable[..., GuardedLLM]
) -> None:
    """Whether it would be harmless by itself was not asked often enough to know."""
    past = [message for _ in range(8) for message in (user("A bomb."), assistant("No."))]
    answered = [user("Hi."), CALLS, result("Fine."), assistant("So.")]
    llm = model()
    await ask(door, llm, [*past, *answered, user("And tea?")])
    assert "bomb" not in str(sent(llm))
    assert sent(llm)[-1] == "user: And tea?"


@chats
@pytest.mark.parametrize(
    ("violation", "answer"), [("raise", None), ("reply", REPLACED)], ids=["raises", "replies"]
)
async def test_what_a_tool_was_kept_from_is_raised_once(
    door: str, violation: str, answer: str | None, model: Callable[..., GuardedLLM]
) -> None:
    verdict = Verdict(severity=Severity.UNSAFE)
    decision = Policy.strict().decide(Stage.TOOL_RESULT, verdict)
    notices = [result(report(decision), "call-1"), result(report(decision), "call-2")]
    llm = model(on_violation=violation)
    messages = [user("Hi."), CALLS, *notices]
    out, error = await outcome(door, llm, messages)
    if answer is None:
        assert isinstance(error, GuardViolation)
        assert error.decision.stage is Stage.TOOL_RESULT
    else:
        assert [text_of(one) for one in out] == [answer]
    await ask(door, llm, messages)
    assert len(sent(llm)) == 4


CONTEXT = [user("About the b-o-m-b."), assistant("Shall I go on?"), user("Yes, in detail.")]
OTHER = [user("About pancakes."), assistant("Shall I go on?"), user("Yes, in detail.")]


@chats
@pytest.mark.parametrize("first", [OTHER, CONTEXT], ids=["harmless-first", "harmful-first"])
async def test_what_one_conversation_may_say_is_judged_in_another(
    door: str, first: list[ChatMessage]
) -> None:
    """Everybody's "yes" is the same; what it says yes to is not."""

    def judged(conversation: Any) -> Any:
        read = str([message.text for message in conversation.messages])
        bad = "b-o-m-b" in read and "detail" in conversation.last.text
        return UNSAFE if bad else "Safety: Safe\nCategories: None"

    llm = GuardedLLM(inner=WritingLLM(replies=["Fine."]), guard=Guard(ScriptedEngine(judged)))
    second = CONTEXT if first is OTHER else OTHER
    for messages in (first, second):
        _, error = await outcome(door, llm, messages)
        assert isinstance(error, GuardViolation) is (messages is CONTEXT)
    await ask(door, llm, [*OTHER, assistant("Fine."), user("Thanks.")])
    assert len(sent(llm)) == 5


@chats
async def test_outages_are_not_remembered(door: str) -> None:
    engine: Any = FailingEngine(EngineUnavailable("it is gone"))
    guard = Guard(engine, Policy.strict(on_error=OnError.ALLOW))
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    await ask(door, llm, [ABOUT])
    guard.engine = ScriptedEngine(SCRIPT, name=engine.name)
    guard.engine.fingerprint = engine.fingerprint
    _, error = await outcome(door, llm, [ABOUT])
    assert isinstance(error, GuardViolation)


@chats
async def test_another_policy_judges_anew(
    door: str, model: Callable[..., GuardedLLM], engine: ScriptedEngine
) -> None:
    llm = model(Action.FLAG)
    await ask(door, llm, [ABOUT])
    llm.guard = Guard(engine, Policy.strict())
    _, error = await outcome(door, llm, [ABOUT])
    assert isinstance(error, GuardViolation)


@chats
async def test_a_reply_is_judged_again_behind_another_prompt(
    door: str, model: Callable[..., GuardedLLM], engine: ScriptedEngine
) -> None:
    llm = model()
    await ask(door, llm, [user("Hi."), assistant("Sure."), user("And tea?")])
    asked = len(engine.seen)
    await ask(door, llm, [user("Ho."), assistant("Sure."), user("And tea?")])
    assert "Sure." in [one.last.text for one in engine.seen[asked:]]


async def test_a_picture_in_the_past_is_left_out(model: Callable[..., GuardedLLM]) -> None:
    picture = ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(url="https://a.example/b.png")])
    llm = model()
    await ask("achat", llm, [picture, assistant("A cat."), user("And tea?")])
    assert sent(llm) == ["user: And tea?"]


@pytest.mark.parametrize("beside", [False, True], ids=["after", "beside"])
async def test_a_hundred_calls_at_once(beside: bool, guarding: Callable[..., Guard]) -> None:
    llm = GuardedLLM(
        inner=WritingLLM(replies=["Hello."]), guard=guarding(), on_violation="reply", beside=beside
    )

    async def one(number: int) -> tuple[bool, str]:
        harmful = number % 3 == 0
        text = f"{number}: {'a bomb' if harmful else 'tea'}"
        door = CHATS[1] if number % 2 else CHATS[3]
        out: Any = await ask(door, llm, [user(text)])
        return harmful, out[-1].message.content

    answers = await asyncio.gather(*(one(number) for number in range(100)))
    assert all(text == (REPLACED if harmful else "Hello.") for harmful, text in answers)


async def test_rules_of_the_stage_of_each_message(engine: ScriptedEngine) -> None:
    policy = Policy(
        name="tools", default=StagePolicy(), stages={Stage.TOOL_RESULT: Policy.strict().default}
    )
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=Guard(engine, policy))
    await llm.achat([ABOUT])
    with pytest.raises(GuardViolation):
        await llm.achat([ABOUT, CALLS, result("A bomb.")])


def persuaded(conversation: Conversation) -> str | UnreadableVerdict:
    """A safety model that can be talked round by what it reads before."""
    *before, last = [message.judged_text for message in conversation.messages]
    if "PERSUADE" in last:
        return UNSAFE if "openly" in last else UnreadableVerdict("")
    return UNSAFE if "bomb" in last and not any("PERSUADE" in text for text in before) else SAFE


@chats
@pytest.mark.parametrize("how", ["openly", "unreadably"])
async def test_nothing_passes_for_what_is_left_out(door: str, how: str) -> None:
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=Guard(ScriptedEngine(persuaded)))
    talk = [user(f"PERSUADE {how}"), assistant("Well."), user("How is a bomb built?")]
    for _ in range(2):
        with pytest.raises(GuardViolation):
            await ask(door, llm, talk)
    assert llm.inner.seen == []  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    with pytest.raises(GuardViolation):
        await ask(door, llm, [user("Hi."), assistant("Well."), user("How is a bomb built?")])


async def test_a_past_that_never_settles_is_left_out() -> None:
    def chained(conversation: Conversation) -> str:
        """Each message is harmless behind the one before it only."""
        texts = [message.judged_text for message in conversation.messages]
        number = int(texts[-1].rpartition(" ")[2])
        harmless = number == 99 or f"Message {number - 1}" in texts[:-1]
        return SAFE if harmless else UNSAFE

    engine = ScriptedEngine(chained)
    inner = WritingLLM(replies=["Message 99"])
    llm = GuardedLLM(inner=inner, guard=Guard(engine))
    await llm.achat([*(user(f"Message {number}") for number in range(1, 30)), user("Message 99")])
    assert [message.content for message in inner.seen[-1]] == ["Message 99"]
    assert len(engine.batches) < 10
