"""The streaming engine: what it loads, what it refuses, and what its sessions bear."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from guardrails_qwen import (
    Category,
    CheckpointError,
    Conversation,
    ConversationError,
    EngineClosed,
    EngineOverloaded,
    Guard,
    GuardError,
    Message,
    Policy,
    Role,
    Severity,
    Stage,
    TextTooLong,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.base import Engine
from guardrails_qwen.engines.ragged import TextCache
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.engines.session_limits import AtLimit, Sessions
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.engines.stream_session import StreamSession
from guardrails_qwen.token_verdict import TokenVerdict
from tests.engines import stream_shaped
from tests.engines.stream_shaped import Oddity, Shape

ASK = Conversation.of("How do I bake bread?")
REPLY = (
    "First, mix flour and water. Let it rest for an hour: 面团需要时间。 Then bake it 🍞.\n\nEnjoy!"
)
HEADS = sorted(
    f"{query}{name}.weight"
    for query in ("", "query_")
    for name in (
        "risk_level_category_pre",
        "risk_level_category_layernorm",
        "risk_level_head",
        "category_head",
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of random weights."""
    return stream_shaped.save(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def engine(folder: Path):
    """It, loaded."""
    with StreamEngine.from_pretrained(folder, dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with little context."""
    return stream_shaped.save(tmp_path_factory.mktemp("short"), Shape(context=200))


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def door(request: pytest.FixtureRequest):
    """Both doors of a session in turn: `door(session, "feed", text)`."""

    async def through(owner: Any, name: str, *args: object) -> Any:
        if request.param:
            return await getattr(owner, f"a{name}")(*args)
        return getattr(owner, name)(*args)

    return through


def said(tokens: list[TokenVerdict]) -> list[tuple[int, int, int, Severity]]:
    return [(token.token, token.start, token.end, token.severity) for token in tokens]


def whole(session: StreamSession, text: str) -> list[TokenVerdict]:
    return [*session.feed(text), *session.finish()]


def near(found: list[TokenVerdict], expected: list[TokenVerdict]) -> bool:
    """Whether both say the same, but for the order of floating-point sums."""
    return said(found) == said(expected) and all(
        one.severity_scores[level] == pytest.approx(other.severity_scores[level], abs=1e-5)
        for one, other in zip(found, expected, strict=True)
        for level in Severity
    )


class TestLoading:
    """A checkpoint is used as it was published, or refused with what is wrong."""

    def test_the_bundled_one_says_that_it_protects_nobody(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "guardrails_qwen"):
            engine = StreamEngine.from_pretrained()
        assert engine.demonstration
        assert "demonstration, not protection" in repr(engine)
        assert "protects nobody" in caplog.text

    def test_it_is_an_engine_of_both_kinds(self, engine: StreamEngine) -> None:
        assert isinstance(engine, Engine)
        assert isinstance(engine, SessionEngine)

    @pytest.mark.parametrize("name", HEADS)
    def test_a_missing_head_is_named(self, name: str, tmp_path: Path) -> None:
        stream_shaped.save(tmp_path, oddity=Oddity(without=[name]))
        with pytest.raises(CheckpointError, match=rf"missing keys: {name}"):
            StreamEngine.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("added", "message"),
        [
            pytest.param(
                {"third_head.weight": torch.zeros(3, 24)}, "unexpected keys: third_head", id="more"
            ),
            pytest.param(
                {"risk_level_head.weight": torch.zeros(4, 24)},
                "mismatched keys: .*risk_level_head",
                id="another shape",
            ),
        ],
    )
    def test_unexpected_tensors_are_named(
        self, added: dict[str, torch.Tensor], message: str, tmp_path: Path
    ) -> None:
        stream_shaped.save(tmp_path, oddity=Oddity(added=added))
        with pytest.raises(CheckpointError, match=message):
            StreamEngine.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            pytest.param({"guard_inner_size": None}, "lacks guard_inner_size", id="no inner size"),
            pytest.param({"num_category": None}, "lacks num_category", id="no size"),
            pytest.param(
                {"response_risk_level_map": None}, "lacks response_risk_level_map", id="no labels"
            ),
            pytest.param(
                {"response_risk_level_map": {"0": "Safe", "1": "Unsafe", "3": "Controversial"}},
                "not 0, 1, 2",
                id="a gap in the labels",
            ),
            pytest.param(
                {"query_risk_level_map": {"0": "Safe", "1": "Unsafe", "2": "Dubious"}},
                "unknown or double: safe, unsafe, dubious",
                id="an unknown label",
            ),
            pytest.param(
                {"query_risk_level_map": {"0": "Safe", "1": "Unsafe", "2": "Unsafe"}},
                "unknown or double",
                id="a label twice",
            ),
            pytest.param(
                {"response_category_map": {"0": "Violent"}},
                "have 3 severities and 1 categories, and the heads 3 and 8",
                id="labels for fewer outputs",
            ),
            pytest.param(
                {"architectures": ["Qwen3ForCausalLM"]}, "takes Qwen3Guard-Stream", id="Gen"
            ),
            pytest.param({"attention_bias": True}, "attention biases", id="biases"),
            pytest.param({"max_position_embeddings": 64}, "no room for a reply", id="no context"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, config: dict[str, object], message: str, tmp_path: Path
    ) -> None:
        stream_shaped.save(tmp_path, oddity=Oddity(config=config))
        with pytest.raises(CheckpointError, match=message):
            StreamEngine.from_pretrained(tmp_path)

    def test_code_in_the_folder_is_not_run(self, tmp_path: Path) -> None:
        """The published checkpoints bring code along, which is left alone."""
        auto_map = {
            "AutoConfig": "configuration_guard.GuardConfig",
            "AutoModel": "modeling_guard.Qwen3ForGuardModel",
        }
        stream_shaped.save(tmp_path, oddity=Oddity(config={"auto_map": auto_map}))
        for name in ("configuration_guard.py", "modeling_guard.py"):
            (tmp_path / name).write_text("raise SystemExit('code of the checkpoint was run')\n")
        with StreamEngine.from_pretrained(tmp_path) as engine:
            assert isinstance(engine.judge([ASK])[0], Verdict)

    def test_labels_are_those_of_the_config(self, tmp_path: Path) -> None:
        """Other orders of the same outputs name them otherwise, and nothing else changes."""
        published = stream_shaped.save(tmp_path / "published", Shape())
        turned = stream_shaped.save(
            tmp_path / "turned",
            Shape(
                risks=("Controversial", "Safe", "Unsafe"),
                categories=tuple(reversed(stream_shaped.CATEGORIES)),
            ),
        )
        one, other = (
            StreamEngine.from_pretrained(folder, dtype="float32") for folder in (published, turned)
        )
        before, after = (whole(engine.open(ASK), REPLY) for engine in (one, other))
        names = {
            Severity.SAFE: Severity.CONTROVERSIAL,
            Severity.UNSAFE: Severity.SAFE,
            Severity.CONTROVERSIAL: Severity.UNSAFE,
        }
        assert [names[token.severity] for token in before] == [token.severity for token in after]
        assert {token.category for token in before} != {Category.VIOLENT}
        assert one.fingerprint != other.fingerprint

    @pytest.mark.parametrize("template", ["", "{{ messages[0].content }}", "{{ nonsense( }}"])
    def test_a_template_that_loses_turns_is_refused(self, template: str, tmp_path: Path) -> None:
        stream_shaped.save(tmp_path)
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(CheckpointError):
            StreamEngine.from_pretrained(tmp_path)

    def test_weights_that_are_no_numbers_give_no_verdict(self, tmp_path: Path) -> None:
        broken = torch.full((3, 24), torch.nan)
        oddity = Oddity(added={"risk_level_head.weight": broken})
        engine = StreamEngine.from_pretrained(stream_shaped.save(tmp_path, oddity=oddity))
        session = engine.open(ASK)
        with pytest.raises(UnreadableVerdict, match="not finite"):
            session.feed("Hello there, you.")
        assert isinstance(engine.judge([Conversation.exchange("a", "b")])[0], UnreadableVerdict)


class TestSessions:
    """A session bears whatever comes, and tells when it does not."""

    async def test_both_doors_agree(self, door: Any, engine: StreamEngine) -> None:
        session = await door(engine, "open", ASK)
        found = [*await door(session, "feed", REPLY), *await door(session, "finish")]
        assert near(found, whole(engine.open(ASK), REPLY))
        assert found[0].start == 0
        assert found[-1].end == len(REPLY)
        assert all(sum(token.severity_scores.values()) == pytest.approx(1) for token in found)
        assert all(sum(token.category_scores.values()) == pytest.approx(1) for token in found)

    def test_without_a_prompt_there_is_none_to_judge(self, engine: StreamEngine) -> None:
        session = engine.open(None)
        assert session.prompt is None
        assert near(whole(session, REPLY), whole(engine.open(Conversation.of("")), REPLY))

    def test_nothing_said_is_nothing_judged(self, engine: StreamEngine) -> None:
        assert whole(engine.open(ASK), "") == []

    def test_a_fork_goes_its_own_way(self, engine: StreamEngine) -> None:
        session = engine.open(ASK)
        begun = session.feed("First, mix flour ")
        other = session.fork()
        one, two = whole(session, "and water."), whole(other, "and gunpowder.")
        assert near([*begun, *one], whole(engine.open(ASK), "First, mix flour and water."))
        assert near([*begun, *two], whole(engine.open(ASK), "First, mix flour and gunpowder."))

    def test_a_closed_session_takes_nothing(self, engine: StreamEngine) -> None:
        session = engine.open(ASK)
        session.close()
        session.close()
        assert "closed" in repr(session)
        for call in (lambda: session.feed("a"), session.finish, session.fork):
            with pytest.raises(EngineClosed):
                call()

    def test_a_lone_surrogate_ends_it(self, engine: StreamEngine) -> None:
        session = engine.open(ASK)
        with pytest.raises(ConversationError) as caught:
            session.feed("Hello \ud83d there")
        assert "Hello" not in str(caught.value)
        with pytest.raises(GuardError, match="cannot go on"):
            session.feed("more")

    @pytest.mark.parametrize(
        ("conversation", "error"),
        [
            pytest.param(
                Conversation.exchange("a", "b"), ConversationError, id="ends with a reply"
            ),
            pytest.param(
                Conversation.of(
                    Message(role=Role.USER, text="look", images=("https://example.com/a.png",))
                ),
                ConversationError,
                id="an image",
            ),
            pytest.param(
                Conversation.of("word " * 9000), TextTooLong, id="longer than the context"
            ),
        ],
    )
    async def test_what_cannot_be_asked_opens_nothing(
        self, conversation: Conversation, error: type[Exception], door: Any, engine: StreamEngine
    ) -> None:
        gc.collect()
        before = engine.open_sessions, engine.session_memory
        with pytest.raises(error) as caught:
            await door(engine, "open", conversation)
        assert "word" not in str(caught.value)
        assert (engine.open_sessions, engine.session_memory) == before

    async def test_one_caller_at_a_time(self, engine: StreamEngine) -> None:
        session = engine.open(ASK)
        feeding = asyncio.create_task(session.afeed("Hello there, you all. "))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one caller at a time"):
            session.feed("more")
        assert await feeding
        assert session.feed("and more ")

    async def test_a_cancelled_call_ends_it(self, engine: StreamEngine) -> None:
        session = engine.open(ASK)
        feeding = asyncio.create_task(session.afeed("Hello there, you. " * 400))
        await asyncio.sleep(0)
        feeding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await feeding
        with pytest.raises(GuardError, match="cannot go on"):
            await session.afeed("more")
        assert near(whole(engine.open(ASK), REPLY), whole(engine.open(ASK), REPLY))

    def test_an_engine_that_is_closed_takes_nothing(self, folder: Path) -> None:
        engine = StreamEngine.from_pretrained(folder)
        session = engine.open(ASK)
        engine.close()
        assert "closed" in repr(engine)
        for call in (lambda: session.feed("a b c"), lambda: engine.open(ASK)):
            with pytest.raises(EngineClosed):
                call()
        with pytest.raises(EngineClosed):
            engine.judge([ASK])

    def test_a_closed_engine_lets_its_model_go(self, folder: Path) -> None:
        engine = StreamEngine.from_pretrained(folder)
        session = engine.open(ASK)
        gc.collect()
        before = tensors()
        engine.close()
        session.close()
        gc.collect()
        assert tensors() < before - 10  # norms of two layers, embedding, angles and such


class TestTruncating:
    """A session is as if what was truncated had never been fed."""

    @pytest.mark.parametrize(
        "steps",
        [
            pytest.param(["\nlq", 1, 0, "X"], id="to nothing, twice"),
            pytest.param(["Have tea now ", 8, 5, "Kill"], id="into a word, twice"),
            pytest.param(["Have tea now ", 8, " and", 10, 3, "e 🍞 e\u0301", 5], id="to and fro"),
        ],
    )
    def test_again_and_again(self, steps: list[str | int], engine: StreamEngine) -> None:
        judged, text = walk(engine, steps)
        assert judged == set(range(len(text)))

    def test_at_random(self, engine: StreamEngine) -> None:
        choose = random.Random(3)
        for _ in range(60):
            steps: list[str | int] = []
            for _ in range(choose.randrange(2, 9)):
                start, size = choose.randrange(len(REPLY)), choose.randrange(1, 20)
                step = REPLY[start : start + size], choose.randrange(30)
                steps.append(choose.choice(step))
            judged, text = walk(engine, steps)
            assert judged == set(range(len(text))), steps


def walk(engine: StreamEngine, steps: list[str | int]) -> tuple[set[int], str]:
    """Feed texts and truncate; the characters that were judged, and the text in the end."""
    session, text, judged = engine.open(ASK), "", set[int]()
    for step in steps:
        if isinstance(step, int):
            session.truncate(step)
            text = text[:step]
            judged &= set(range(step))
            continue
        text += step
        for token in session.feed(step):
            judged |= set(range(token.start, token.end))
    last = session.finish()
    expected = whole(engine.open(ASK), text)
    if last:
        assert near(last[-1:], expected[-1:])
    return judged | {i for token in last for i in range(token.start, token.end)}, text


class TestLimits:
    """Sessions are bounded in number and memory, and account for themselves."""

    def test_one_session_too_many(self, folder: Path) -> None:
        engine = StreamEngine.from_pretrained(folder, sessions=Sessions(most=2))
        first, _second = engine.open(ASK), engine.open(ASK)
        with pytest.raises(EngineOverloaded, match="2 sessions are open"):
            engine.open(ASK)
        first.close()
        assert engine.open(ASK).feed("Hello there ")

    def test_memory(self, folder: Path) -> None:
        a_token = 2 * 2 * 2 * 16 * 4
        sessions = Sessions(memory=400 * a_token)
        engine = StreamEngine.from_pretrained(folder, dtype="float32", sessions=sessions)
        one, other = engine.open(ASK), engine.open(ASK)
        one.feed("word after word after word " * 20)
        assert engine.session_memory <= 400 * a_token
        with pytest.raises(EngineOverloaded, match="MB"):
            engine.open(ASK)
        one.close()
        other.close()
        assert (engine.open_sessions, engine.session_memory) == (0, 0)

    def test_what_a_reply_fills_is_no_outage(self, folder: Path) -> None:
        """No policy waves it through, as it may an overloaded engine. All there is can be used."""
        a_token = 2 * 2 * 2 * 16 * 4
        sessions = Sessions(memory=400 * a_token)
        engine = StreamEngine.from_pretrained(folder, dtype="float32", sessions=sessions)
        session = engine.open(ASK)
        judged = sum(len(session.feed("word ")) for _ in range(360))
        assert judged > 350
        with pytest.raises(TextTooLong):
            session.feed("word " * 60)
        with pytest.raises(TextTooLong):
            engine.open(Conversation.of("word " * 500))

    def test_a_fork_that_is_refused_does_no_harm(self, folder: Path) -> None:
        engine = StreamEngine.from_pretrained(folder, sessions=Sessions(most=1))
        session = engine.open(ASK)
        with pytest.raises(EngineOverloaded):
            session.fork()
        assert session.feed("Hello there ")

    async def test_whole_messages_queue_for_memory(
        self, engine: StreamEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many callers there are, only so many messages are begun."""
        made = list[weakref.ref[TextCache]]()
        most = 0
        init = TextCache.__init__

        def counted(self: TextCache, *args: Any) -> None:
            nonlocal most
            init(self, *args)
            made.append(weakref.ref(self))
            most = max(most, sum(one.room for ref in made if (one := ref())))

        monkeypatch.setattr(TextCache, "__init__", counted)
        reply = Conversation.exchange("a", "word " * 3000)
        found = await asyncio.gather(*(engine.ajudge([reply]) for _ in range(12)))
        assert all(isinstance(one, Verdict) for [one] in found)
        assert most < 3 * 8192

    def test_a_forgotten_session_counts_for_nothing(self, folder: Path) -> None:
        engine = StreamEngine.from_pretrained(folder)
        engine.open(ASK).feed("Hello there ")
        gc.collect()
        assert (engine.open_sessions, engine.session_memory) == (0, 0)

    @pytest.mark.parametrize("bad", [{"most": 0}, {"memory": 0}, {"at_limit": "truncate"}])
    def test_settings_that_make_no_sense(self, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"sessions and memory|AtLimit"):
            Sessions(**bad)


class TestContext:
    """A reply may be longer than the model's context, or not, as the engine was told."""

    @staticmethod
    def loaded(folder: Path, at_limit: AtLimit) -> StreamEngine:
        sessions = Sessions(at_limit=at_limit)
        return StreamEngine.from_pretrained(folder, dtype="float32", sessions=sessions)

    def test_refusing(self, short: Path) -> None:
        session = self.loaded(short, AtLimit.REFUSE).open(ASK)
        assert session.feed("word " * 50)
        with pytest.raises(TextTooLong):
            session.feed("word " * 150)

    @pytest.mark.parametrize("cut", [1, 7, 10_000])
    def test_going_on(self, cut: int, short: Path) -> None:
        """All of it is judged, and what is said depends on the text alone."""
        engine = self.loaded(short, AtLimit.REANCHOR)
        text = REPLY * 15
        expected = whole(engine.open(ASK), text)
        session = engine.open(ASK)
        found = [
            token for i in range(0, len(text), cut) for token in session.feed(text[i : i + cut])
        ]
        found += session.finish()
        assert near(found, expected)
        assert expected[-1].end == len(text)
        assert len(expected) > 400

    def test_the_rule_is_the_documented_one(self, short: Path) -> None:
        """Behind a full context the model sees the prompt and the last half of the room."""
        engine = self.loaded(short, AtLimit.REANCHOR)
        text = REPLY * 15
        tokens = whole(engine.open(ASK), text)
        room = 200 - len(engine.prompt(ASK))  # of which one token opens the reply
        first = room - 1
        kept = room // 2
        tail = tokens[first - kept : first + 1]
        again = whole(engine.open(ASK), text[tail[0].start : tail[-1].end])
        assert [token.token for token in again] == [token.token for token in tail]
        assert again[-1].severity_scores == pytest.approx(tail[-1].severity_scores, abs=1e-5)
        assert again[-2].severity_scores != pytest.approx(tail[-2].severity_scores, abs=1e-5)

    @pytest.mark.parametrize("characters", [30, 700, 1100])
    def test_truncating_what_went_on(self, characters: int, short: Path) -> None:
        engine = self.loaded(short, AtLimit.REANCHOR)
        text = REPLY * 15
        session = engine.open(ASK)
        before = session.feed(text)
        session.truncate(characters)
        after = whole(session, "And then eat it.")
        expected = whole(engine.open(ASK), text[:characters] + "And then eat it.")
        kept = [token for token in before if token.end <= characters]
        assert near(after[-4:], expected[-4:])
        assert kept[-1].end <= after[0].end
        assert {token.end for token in [*kept, *after]} >= {token.end for token in expected[-4:]}

    def test_a_long_prompt_is_refused(self, short: Path) -> None:
        engine = self.loaded(short, AtLimit.REANCHOR)
        with pytest.raises(TextTooLong):
            engine.open(Conversation.of("word " * 150))
        [found] = engine.judge([Conversation.of("word " * 250)])
        assert isinstance(found, TextTooLong)


class TestWholeTexts:
    """As an engine like any other it judges prompts and complete replies."""

    def test_a_batch_is_what_each_is_alone(self, engine: StreamEngine) -> None:
        asked = [
            ASK,
            Conversation.exchange("How do I bake bread?", REPLY),
            Conversation.of("word " * 9000),
            Conversation.exchange("", ""),
            Conversation.of("面包怎么做?"),
        ]
        found = engine.judge(asked)
        alone = [engine.judge([one])[0] for one in asked]
        assert list(map(type, found)) == [Verdict, Verdict, TextTooLong, Verdict, Verdict]
        assert [found[i] for i in (0, 1, 3, 4)] == [alone[i] for i in (0, 1, 3, 4)]
        assert all(isinstance(one, GuardError) or one.tokens is not None for one in found)

    async def test_both_doors(self, engine: StreamEngine) -> None:
        asked = [ASK, Conversation.exchange("How do I bake bread?", REPLY * 40)]
        assert await engine.ajudge(asked) == engine.judge(asked)

    def test_a_prompt_is_what_its_session_says(self, engine: StreamEngine) -> None:
        assert engine.judge([ASK]) == [engine.open(ASK).prompt]

    def test_nothing_is_left_open(self, engine: StreamEngine) -> None:
        gc.collect()
        before = engine.open_sessions, engine.session_memory
        engine.judge([Conversation.exchange("a", REPLY)] * 20)
        assert (engine.open_sessions, engine.session_memory) == before

    def test_the_demonstration_tells_a_bomb_from_a_cake(self) -> None:
        guard = Guard(StreamEngine.from_pretrained())
        assert not guard.check("How can I make a bomb?").allowed
        assert guard.check("What is a good recipe for pancakes?").allowed


class TestSharing:
    """Sessions join and leave shared passes at any time."""

    def test_random_steps_of_many_sessions(self, engine: StreamEngine) -> None:
        choose = random.Random(7)
        replies = [f"{index}. {REPLY}" for index in range(12)]
        expected = [whole(engine.open(ASK), reply) for reply in replies]

        async def one(index: int) -> list[TokenVerdict]:
            session = await engine.aopen(ASK)
            found, text = list[TokenVerdict](), replies[index]
            while text:
                size = choose.randrange(1, 9)
                found += await session.afeed(text[:size])
                text = text[size:]
                await asyncio.sleep(choose.choice([0, 0.001]))
            found += await session.afinish()
            session.close()
            return found

        async def all_of_them() -> list[list[TokenVerdict]]:
            return list(await asyncio.gather(*map(one, range(12))))

        found = asyncio.run(all_of_them())
        assert all(map(near, found, expected))

    def test_closing_while_it_runs_spares_the_others(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = StreamEngine.from_pretrained(folder, dtype="float32")
        staying, leaving = engine.open(ASK), engine.open(ASK)
        expected = whole(engine.open(ASK), REPLY)
        running, go_on = Event(), Event()
        hold(engine, running, go_on, monkeypatch)

        async def both() -> tuple[object, object]:
            tasks = [
                asyncio.create_task(leaving.afeed(REPLY)),
                asyncio.create_task(staying.afeed(REPLY)),
            ]
            await asyncio.to_thread(running.wait)
            leaving.close()
            go_on.set()
            one, other = await asyncio.gather(*tasks, return_exceptions=True)
            return one, other

        _, found = asyncio.run(both())
        assert isinstance(found, list)
        assert near([*found, *staying.finish()], expected)


def tensors() -> int:
    """How many there are."""
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


def hold(
    engine: StreamEngine, running: Event, go_on: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make the next passes wait, so that a test can do something meanwhile."""
    batcher: Any = engine._parts.batcher  # pyright: ignore[reportPrivateUsage]
    run: Callable[[Any], Any] = batcher._run

    def waiting(batch: Any) -> Any:
        running.set()
        go_on.wait(30)
        return run(batch)

    monkeypatch.setattr(batcher, "_run", waiting)


def test_a_reply_is_never_safe_by_failing(engine: StreamEngine) -> None:
    decision = Guard(engine, Policy.strict()).check("word " * 9000, stage=Stage.INPUT)
    assert not decision.allowed
    assert decision.degraded
    assert "word" not in json.dumps(decision.to_dict(text=False))
