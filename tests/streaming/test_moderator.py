"""The moderator of streams: what is released, held, taken out and blocked, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from guardrails_qwen import (
    Action,
    Category,
    ConversationError,
    EngineError,
    EngineUnavailable,
    GuardError,
    OnError,
    Policy,
    Rule,
    Severity,
    Stage,
    StagePolicy,
    UnreadableVerdict,
    Verdict,
)
from guardrails_qwen.engines.session import Judged
from guardrails_qwen.streaming import (
    Ask,
    Block,
    Debounce,
    Event,
    Feed,
    Finish,
    Hold,
    HoldBack,
    Redact,
    Release,
    Streaming,
    StreamModerator,
    Truncate,
)
from tests.streaming.doors import StreamDoors, told
from tests.streaming.lettered import LetteredJudge

S, C, U = Severity.SAFE, Severity.CONTROVERSIAL, Severity.UNSAFE
STRICT, LOOSE = Policy.strict(), Policy.loose()
REDACT = Policy.strict(action=Action.REDACT)
MARK = "[removed: Violent]"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A judgement without a model."""

    start: int
    end: int
    verdict: Verdict

    @property
    def severity(self) -> Severity:
        return self.verdict.severity


@dataclass
class Tape:
    """Judges one character a token, and records what it was asked.

    A character is as bad as the next of the severities says, or Unsafe where it is among the bad.
    `late`: it says nothing before the end.
    """

    severities: Sequence[Severity] = ()
    bad: str = ""
    late: bool = False
    asked: list[Ask] = field(default_factory=list[Ask])
    text: str = ""
    judged: int = 0
    taken: int = 0
    fails: dict[int, Exception] = field(default_factory=dict[int, Exception])

    def feed(self, text: str) -> list[Judged]:
        self.asked.append(Feed(text=text))
        self.text += text
        if error := self.fails.get(len(self.asked)):
            raise error
        return [] if self.late else self._rest()

    async def afeed(self, text: str) -> list[Judged]:
        return self.feed(text)

    def finish(self) -> list[Judged]:
        self.asked.append(Finish())
        if error := self.fails.get(len(self.asked)):
            raise error
        return self._rest()

    async def afinish(self) -> list[Judged]:
        return self.finish()

    def truncate(self, characters: int) -> None:
        self.asked.append(Truncate(characters=characters))
        self.text = self.text[:characters]
        self.judged = min(self.judged, characters)

    async def atruncate(self, characters: int) -> None:
        self.truncate(characters)

    def close(self) -> None:
        pass

    def _rest(self) -> list[Judged]:
        found = list[Judged]()
        while self.judged < len(self.text):
            severity = self._next()
            if self.text[self.judged] in self.bad:
                severity = U
            verdict = Verdict(severity=severity, categories=frozenset({Category.VIOLENT}))
            found.append(Token(start=self.judged, end=self.judged + 1, verdict=verdict))
            self.judged += 1
        return found

    def _next(self) -> Severity:
        self.taken += 1
        return self.severities[self.taken - 1] if self.taken <= len(self.severities) else S


def moderator(policy: Policy = STRICT, streaming: Streaming | None = None) -> StreamModerator:
    return StreamModerator(policy, streaming or Streaming(), per_token=True)


def row(letters: str) -> list[Severity]:
    return [{"s": S, "c": C, "u": U}[letter] for letter in letters]


DEBOUNCED = [
    # policy, debounce, severities of "abcdef", what is read
    pytest.param(STRICT, Debounce.REPORT, "ssssss", "abcdef", id="all safe"),
    pytest.param(STRICT, Debounce.REPORT, "ususcs", "abcdef", id="single ones are noise"),
    pytest.param(STRICT, Debounce.REPORT, "suusss", "a", id="two in a row"),
    pytest.param(STRICT, Debounce.REPORT, "sucsss", "a", id="of different severity"),
    pytest.param(STRICT, Debounce.REPORT, "sssssu", "abcdef", id="the last token passes"),
    pytest.param(LOOSE, Debounce.REPORT, "sucuss", "abcdef", id="loose: one Unsafe of two"),
    pytest.param(LOOSE, Debounce.REPORT, "sccuus", "abc", id="loose: two Unsafe"),
    pytest.param(STRICT, Debounce.EVALUATION, "sucucs", "abcdef", id="evaluation: a mixed pair"),
    pytest.param(STRICT, Debounce.EVALUATION, "succss", "ab", id="evaluation: an equal pair"),
    pytest.param(STRICT, Debounce.OFF, "ssusss", "ab", id="off: at once"),
    pytest.param(LOOSE, Debounce.OFF, "sscuss", "abc", id="off, loose"),
]


@pytest.mark.parametrize(("policy", "debounce", "severities", "read"), DEBOUNCED)
def test_debounce(
    doors: StreamDoors, policy: Policy, debounce: Debounce, severities: str, read: str
) -> None:
    judged = moderator(policy, Streaming(debounce=debounce))
    events = doors.moderate(judged, Tape(row(severities)), "abcdef")
    assert told(events) == read
    assert judged.decision is not None
    assert judged.decision.allowed is (read == "abcdef")


LONE = [
    pytest.param(STRICT, "u", "", Action.BLOCK, id="Unsafe"),
    pytest.param(STRICT, "s", "a", Action.ALLOW, id="Safe"),
    pytest.param(LOOSE, "u", "", Action.BLOCK, id="loose, Unsafe"),
    pytest.param(LOOSE, "c", "a", Action.FLAG, id="loose, Controversial"),
    pytest.param(REDACT, "u", MARK, Action.REDACT, id="redact"),
]


@pytest.mark.parametrize("debounce", Debounce)
@pytest.mark.parametrize(("policy", "severity", "read", "action"), LONE)
def test_a_reply_of_one_token_is_what_that_token_is(
    doors: StreamDoors, policy: Policy, severity: str, read: str, action: Action, debounce: Debounce
) -> None:
    judged = moderator(policy, Streaming(debounce=debounce))
    assert told(doors.moderate(judged, Tape(row(severity)), "a")) == read
    assert judged.decision is not None
    assert judged.decision.action is action


@pytest.mark.parametrize("hold_back", HoldBack)
def test_one_token_that_redaction_leaves_is_what_it_is(
    doors: StreamDoors, hold_back: HoldBack
) -> None:
    for text, read in [("Axx。x", MARK), ("Axx。xy", f"{MARK}xy"), ("Axx。y", f"{MARK}y")]:
        judged = moderator(REDACT, Streaming(hold_back=hold_back))
        assert told(doors.moderate(judged, Tape(bad="x"), [text])) == read


def test_a_suspicious_token_waits_for_the_next_one(doors: StreamDoors) -> None:
    judged, tape = moderator(), Tape(row("sus"))
    assert doors.run(judged.feed("a"), tape) == [Release(start=0, end=1, text="a")]
    assert doors.run(judged.feed("b"), tape) == [Hold(characters=1)]
    assert doors.run(judged.feed("c"), tape) == [Release(start=1, end=3, text="bc")]


HELD = [
    # settings, what is out after "Ab. Cd", and after "Ab. Cd ef"
    pytest.param(Streaming(), "Ab. Cd", "Ab. Cd ef", id="nothing but the debounce"),
    pytest.param(Streaming(tokens=3), "Ab.", "Ab. Cd", id="three tokens"),
    pytest.param(Streaming(tokens=20), "", "", id="more tokens than there are"),
    pytest.param(Streaming(hold_back=HoldBack.SENTENCE), "Ab. ", "Ab. ", id="the sentence"),
    pytest.param(Streaming(hold_back=HoldBack.REPLY), "", "", id="the reply"),
]


@pytest.mark.parametrize(("streaming", "first", "second"), HELD)
def test_hold_back(doors: StreamDoors, streaming: Streaming, first: str, second: str) -> None:
    judged, tape = moderator(STRICT, streaming), Tape([])
    events = doors.run(judged.feed("Ab. Cd"), tape)
    assert told(events) == first
    more = doors.run(judged.feed(" ef"), tape)
    assert told([*events, *more]) == second
    rest = doors.run(judged.finish(), tape)
    assert told([*events, *more, *rest]) == "Ab. Cd ef"


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_sentence_waits_for_a_token_beyond_its_end(doors: StreamDoors, size: int) -> None:
    streaming = Streaming(hold_back=HoldBack.SENTENCE, debounce=Debounce.OFF)
    text = "Ab. Cd. xe"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert told(doors.moderate(moderator(STRICT, streaming), Tape(bad="x"), chunks)) == "Ab. "


def test_a_character_that_an_unjudged_token_touches_is_not_released(doors: StreamDoors) -> None:
    streaming = Streaming(debounce=Debounce.OFF)
    safe, unsafe = Verdict(severity=S), Verdict(severity=U)

    class Shared(Tape):
        def feed(self, text: str) -> list[Judged]:
            return [
                Token(start=0, end=2, verdict=safe),
                Token(start=1, end=2, verdict=unsafe),
                Token(start=2, end=3, verdict=safe),
            ]

    events = doors.run(moderator(STRICT, streaming).feed("a👍b"), Shared([]))
    assert told(events) == "a"


ENDED = [
    pytest.param(Action.BLOCK, None, None, id="block"),
    pytest.param(Action.BLOCK, "Sorry.", "Sorry.", id="block with a closing text"),
    pytest.param(Action.REPLACE, "Sorry.", "instead", id="replace"),
    pytest.param(Action.DROP, "Sorry.", "", id="drop"),
]


@pytest.mark.parametrize(("action", "closing", "said"), ENDED)
def test_how_a_reply_ends(
    doors: StreamDoors, action: Action, closing: str | None, said: str | None
) -> None:
    stage = StagePolicy(rules=(Rule(action=action),), replacement="instead")
    judged = moderator(Policy(name="p", default=stage), Streaming(closing=closing))
    tape = Tape(row("ssuu"))
    *released, block = doors.run(judged.feed("abcdef"), tape)
    assert told(released) == "ab"
    assert isinstance(block, Block)
    assert (block.closing, block.decision.text) == (said, None)
    decision = judged.decision
    assert decision is not None
    assert (decision.action, decision.text) == (action, "ab" + (said or ""))
    assert decision.rule == stage.rules[0]
    assert decision.verdict is not None
    assert decision.verdict.severity is U
    assert doors.run(judged.feed("more"), tape) == []
    assert doors.run(judged.finish(), tape) == []
    assert tape.asked == [Feed(text="abcdef")]


REDACTED = [
    pytest.param("Ab. Cd xx ef. Gh.", f"Ab. {MARK} Gh.", [(4, 13)], id="the whole sentence"),
    pytest.param("Ab. xx. Gh.", f"Ab. {MARK} Gh.", [(4, 7)], id="at its beginning"),
    pytest.param("xx. Gh.", f"{MARK} Gh.", [(0, 3)], id="at the beginning of all"),
    pytest.param("Ab. Cd xx", f"Ab. {MARK}", [(4, 9)], id="at the end of all"),
    pytest.param("Ab. Cd xx.  ", f"Ab. {MARK}  ", [(4, 10)], id="with white space at the end"),
    pytest.param("Ab. Cd xxef\n", f"Ab. {MARK}\n", [(4, 11)], id="and more of the sentence"),
    pytest.param("xx.\n", f"{MARK}\n", [(0, 3)], id="all but white space"),
    pytest.param("Ab. Cd x. Gh.", "Ab. Cd x. Gh.", [], id="one token is noise"),
    pytest.param("ab;b。xc。de", f"{MARK}de", [(0, 8)], id="a run over a boundary takes both"),
    pytest.param("Ab. xx. xx.  xx. Ij.", f"Ab. {MARK} Ij.", [(4, 16)], id="three in a row are one"),
    pytest.param(
        "Ab. xx. Gh. Axx. Ij.",
        f"Ab. {MARK} Gh. {MARK} Ij.",
        [(4, 7), (12, 16)],
        id="two that text parts are two",
    ),
    pytest.param(
        "ab！xxc！xd！e", f"ab！{MARK}xd！e", [(3, 7)], id="what is forgotten counts no more"
    ),
    pytest.param("A\nBxx\n\nC", f"A\n{MARK}\n\nC", [(2, 5)], id="lines stay lines"),
]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("hold_back", HoldBack)
@pytest.mark.parametrize(("text", "read", "spans"), REDACTED)
def test_redaction(
    doors: StreamDoors,
    text: str,
    read: str,
    spans: list[tuple[int, int]],
    hold_back: HoldBack,
    size: int,
) -> None:
    judged = moderator(REDACT, Streaming(hold_back=hold_back))
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    events = doors.moderate(judged, Tape(bad="x。" if "。" in text else "x"), chunks)
    assert told(events) == read
    decision = judged.decision
    assert decision is not None
    assert decision.action is (Action.REDACT if spans else Action.ALLOW)
    assert decision.text == read
    assert [(span.start, span.end) for span in decision.redactions] == spans
    assert not any(isinstance(event, Block) for event in events)


def test_the_judge_forgets_what_was_taken_out(doors: StreamDoors) -> None:
    tape = Tape(bad="x")
    doors.moderate(moderator(REDACT), tape, ["Ab. xx.  Cxx. Gh."])
    assert tape.text == "Ab.  Gh."
    assert tape.asked.count(Truncate(characters=4)) == 2


def test_white_space_that_is_flagged_is_taken_out_once(doors: StreamDoors) -> None:
    tape = Tape(bad="x ")
    events = doors.moderate(moderator(REDACT), tape, ["Ab. xx.    Gh. Ij."])
    assert told(events) == f"Ab. {MARK}Gh. Ij."
    assert sum(isinstance(ask, Truncate) for ask in tape.asked) == 2


def test_what_follows_a_sentence_that_is_taken_out_last_is_judged(doors: StreamDoors) -> None:
    judged, tape = moderator(REDACT), Tape(bad="x", late=True)
    events = doors.moderate(judged, tape, ["Ab. xx. Gh. xx. Ij."])
    assert told(events) == f"Ab. {MARK} Gh. {MARK} Ij."
    assert tape.asked.count(Finish()) == 3


def test_a_marker_names_what_its_sentence_was(doors: StreamDoors) -> None:
    judged = moderator(REDACT)
    events = doors.moderate(judged, LetteredJudge(), ["Good one. Bad zzzzzz. Good."])
    assert told(events) == "Good one. [removed: PII] Good."
    [mark] = [event for event in events if isinstance(event, Redact)]
    assert (mark.start, mark.decision.action) == (10, Action.REDACT)


def test_a_marker_names_what_it_stands_for_first_and_the_decision_all(doors: StreamDoors) -> None:
    judged = moderator(REDACT)
    events = doors.moderate(judged, LetteredJudge(), ["Good. Bad xxxxxx. Bad zzzzzz. Good."])
    assert told(events) == "Good. [removed: Violent] Good."
    assert judged.decision is not None
    [span] = judged.decision.redactions
    assert span.categories == {Category.VIOLENT, Category.PII}


def test_what_the_reader_has_is_not_taken_out(doors: StreamDoors) -> None:
    text = (
        "ab。cxxd！xe！f"  # the first x behind the cut is the second of a run that begins before it
    )
    judged = moderator(REDACT)
    events = doors.moderate(judged, Tape(bad="x。"), list(text))
    assert told(events) == f"ab。{MARK}f"
    assert judged.decision is not None
    assert [(span.start, span.end) for span in judged.decision.redactions] == [(3, 11)]


def test_a_reply_that_needs_too_many_redactions_is_replaced(doors: StreamDoors) -> None:
    text = "Bad xxxxxx. Good one. " * 65
    judged, judge = moderator(REDACT), LetteredJudge()
    events = doors.moderate(judged, judge, [text])
    assert judged.decision is not None
    assert judged.decision.action is Action.REPLACE
    assert isinstance(events[-1], Block)
    assert events[-1].closing == REDACT.default.replacement
    assert judged.decision.text == told(events) + REDACT.default.replacement
    assert len(judged.decision.redactions) == 64


def test_redaction_costs_no_more_than_so_much_a_cut(doors: StreamDoors) -> None:
    text = "Bad xxxxxx. " + "Good one here. " * 40
    judge = LetteredJudge()
    doors.moderate(moderator(REDACT), judge, [text * 20])
    assert judge.judged < len(text) * 20 * 2 + 20 * 600


class Stretches(Tape):
    """Judges what was fed at once; one severity each."""

    def _rest(self) -> list[Judged]:
        start, self.judged = self.judged, len(self.text)
        if start == self.judged:
            return []
        return [Token(start=start, end=self.judged, verdict=Verdict(severity=self._next()))]


STRETCHES = [
    pytest.param(STRICT, Streaming(), "Ab. Cd. ", id="each verdict counts at once"),
    pytest.param(STRICT, Streaming(tokens=9), "Ab. Cd. ", id="there are no tokens to hold back"),
    pytest.param(STRICT, Streaming(hold_back=HoldBack.REPLY), "", id="the reply"),
    pytest.param(REDACT, Streaming(), "Ab. Cd. [removed: unsafe] Gh.", id="redact"),
]


@pytest.mark.parametrize(("policy", "streaming", "read"), STRETCHES)
def test_a_judge_of_stretches(
    doors: StreamDoors, policy: Policy, streaming: Streaming, read: str
) -> None:
    judged = StreamModerator(policy, streaming, per_token=False)
    chunks = ["Ab. ", "Cd. ", "Ef. ", "Gh."]
    assert told(doors.moderate(judged, Stretches(row("ssus")), chunks)) == read


def test_flagged_text_passes_and_the_decision_says_so(doors: StreamDoors) -> None:
    judged = moderator(LOOSE)
    assert told(doors.moderate(judged, Tape(row("sccs")), "abcd")) == "abcd"
    assert judged.decision is not None
    assert (judged.decision.action, judged.decision.text) == (Action.FLAG, "abcd")
    assert judged.decision.rule == LOOSE.default.rules[0]


def test_an_allowed_reply_has_its_worst_verdict(doors: StreamDoors) -> None:
    judged = moderator()
    doors.moderate(judged, Tape(row("scsuss")), "abcdef")
    assert judged.decision is not None
    assert judged.decision.action is Action.ALLOW
    assert judged.decision.rule is None
    assert judged.decision.verdict is not None
    assert judged.decision.verdict.severity is U


def test_the_rules_are_those_of_the_stage(doors: StreamDoors) -> None:
    policy = Policy(
        name="p",
        default=StagePolicy(),
        stages={Stage.TOOL_RESULT: StagePolicy(rules=(Rule(action=Action.BLOCK),))},
    )
    for stage, read in [(Stage.OUTPUT, "abcd"), (Stage.TOOL_RESULT, "")]:
        judged = StreamModerator(policy, stage=stage, per_token=True)
        assert told(doors.moderate(judged, Tape(row("uuuu")), "abcd")) == read
        assert judged.decision is not None
        assert judged.decision.stage is stage


def test_no_policy_is_asked_about_safe_tokens_unless_a_rule_may_hold(doors: StreamDoors) -> None:
    class Unbuilt(Token):
        @property
        def severity(self) -> Severity:
            return S

    class Safe(Tape):
        def _rest(self) -> list[Judged]:
            start, self.judged = self.judged, len(self.text)
            # were the policy asked, it would block: the verdict contradicts the severity
            unsafe = Verdict(severity=U)
            return [
                Unbuilt(start=at, end=at + 1, verdict=unsafe) for at in range(start, self.judged)
            ]

    assert told(doors.run(moderator().feed("abcd"), Safe([]))) == "abcd"
    rules = (Rule(action=Action.BLOCK, probability=0.5),)
    asking = moderator(Policy(name="p", default=StagePolicy(rules=rules)))
    assert told(doors.run(asking.feed("abcd"), Safe([]))) == ""


NOTHING = [
    pytest.param([], [], id="no chunk"),
    pytest.param(["", ""], [], id="empty chunks"),
    pytest.param([" ", "\n"], ["Feed", "Feed", "Finish"], id="white space"),
]


@pytest.mark.parametrize(("chunks", "asked"), NOTHING)
def test_a_reply_of_nothing_passes(doors: StreamDoors, chunks: list[str], asked: list[str]) -> None:
    judged, tape = moderator(), Tape([])
    assert told(doors.moderate(judged, tape, chunks)) == "".join(chunks)
    assert [type(ask).__name__ for ask in tape.asked] == asked
    assert judged.decision is not None
    assert (judged.decision.action, judged.decision.text) == (Action.ALLOW, "".join(chunks))
    assert judged.decision.fingerprint.startswith(STRICT.fingerprint + ".")


def test_a_complete_reply_takes_no_more(doors: StreamDoors) -> None:
    judged, tape = moderator(), Tape([])
    doors.moderate(judged, tape, ["abc"])
    assert doors.run(judged.finish(), tape) == []
    with pytest.raises(ValueError, match="complete"):
        doors.run(judged.feed("d"), tape)


FAILURES = [
    pytest.param(EngineUnavailable("gone"), True, id="an outage"),
    pytest.param(EngineError("broken"), True, id="a failing engine"),
    pytest.param(UnreadableVerdict("it is fine"), False, id="nonsense"),
    pytest.param(ConversationError("an image"), False, id="a text that cannot be judged"),
    pytest.param(RuntimeError("a bug that quotes SECRET"), False, id="a bug"),
]


@pytest.mark.parametrize("asked", [2, 3], ids=["in the middle", "at the end"])
@pytest.mark.parametrize(("error", "waved"), FAILURES)
def test_failure(doors: StreamDoors, error: Exception, waved: bool, asked: int) -> None:
    chunks = ["Ab. Cd", " ef. Gh"]
    streaming = Streaming(hold_back=HoldBack.SENTENCE)

    def tape() -> Tape:
        return Tape([], fails={asked: error})

    blocked = moderator(Policy.strict(on_error=OnError.BLOCK), streaming)
    before = "Ab. " if asked == 2 else "Ab. Cd ef. "
    events = doors.moderate(blocked, tape(), chunks)
    assert told(events) == before
    assert isinstance(events[-1], Block)
    assert blocked.decision is not None
    assert (blocked.decision.action, blocked.decision.verdict) == (Action.BLOCK, None)
    assert blocked.decision.degraded
    assert "SECRET" not in blocked.decision.summary

    allowed = moderator(Policy.strict(on_error=OnError.ALLOW), streaming)
    events = doors.moderate(allowed, tape(), chunks)
    assert told(events) == ("Ab. Cd ef. Gh" if waved else before)
    assert allowed.decision is not None
    assert allowed.decision.allowed is waved
    assert allowed.decision.degraded

    raising = moderator(Policy.strict(on_error=OnError.RAISE), streaming)
    with pytest.raises(GuardError) as caught:
        doors.moderate(raising, tape(), chunks)
    assert "SECRET" not in str(caught.value)
    assert raising.over
    for again in (raising.feed("more"), raising.feed(""), raising.finish()):
        with pytest.raises(GuardError) as other:
            doors.run(again, tape())
        assert other.value is caught.value
    assert raising.decision is None


def test_what_follows_an_outage_passes_at_once_and_is_not_judged(doors: StreamDoors) -> None:
    policy = Policy.strict(on_error=OnError.ALLOW)
    judged, tape = moderator(policy), Tape(row("su"), fails={2: EngineError("gone")})
    assert told(doors.run(judged.feed("ab"), tape)) == "a"
    assert told(doors.run(judged.feed("c"), tape)) == "bc"
    assert told(doors.run(judged.feed("d"), tape)) == "d"
    assert doors.run(judged.finish(), tape) == []
    assert tape.asked == [Feed(text="ab"), Feed(text="c")]


def test_a_redacted_reply_whose_judge_fails_is_redacted_and_degraded(doors: StreamDoors) -> None:
    policy = Policy.strict(action=Action.REDACT, on_error=OnError.ALLOW)
    judged, tape = moderator(policy), Tape(bad="x", fails={3: EngineError("gone")})
    assert told(doors.moderate(judged, tape, ["xx. Cd."])) == f"{MARK} Cd."
    assert judged.decision is not None
    assert judged.decision.action is Action.REDACT
    assert judged.decision.degraded


class Skipping(Tape):
    def _rest(self) -> list[Judged]:
        found = super()._rest()
        return found[1:]


class Inventing(Tape):
    def _rest(self) -> list[Judged]:
        end = len(self.text) + 1
        return [Token(start=0, end=end, verdict=Verdict(severity=S))]


class Forgetting(Tape):
    def finish(self) -> list[Judged]:
        return []


class Mute(Tape):
    def feed(self, text: str) -> list[Judged]:
        return None  # type: ignore[return-value]  # what a wrong judge may do


@pytest.mark.parametrize("kind", [Skipping, Inventing, Forgetting, Mute])
def test_what_a_judge_leaves_out_is_not_released(doors: StreamDoors, kind: type[Tape]) -> None:
    judged = moderator(Policy.strict(on_error=OnError.ALLOW))
    events = doors.moderate(judged, kind([], late=True), ["abc"])
    assert told(events) == ""
    assert judged.decision is not None
    assert judged.decision.action is Action.BLOCK


HALVES = [
    pytest.param(["a\ud83d", "\udc4db"], "a👍b", True, id="two halves in two chunks"),
    pytest.param(["a\ud83d\udc4db"], "a👍b", True, id="two halves in one"),
    pytest.param(["a\ud83d", "", "\udc4d"], "a👍", True, id="an empty chunk between"),
    pytest.param(["a\ud83d", "b"], "a", False, id="a first half alone"),
    pytest.param(["a\udc4d", "b"], "a", False, id="a second half alone"),
    pytest.param(["a\ud83d\ud83d\udc4d"], "a", False, id="two first halves"),
    pytest.param(["a\ud83d"], "a", False, id="a first half at the end"),
]


@pytest.mark.parametrize(("chunks", "read", "whole"), HALVES)
def test_half_characters(doors: StreamDoors, chunks: list[str], read: str, whole: bool) -> None:
    for policy in (STRICT, Policy.strict(on_error=OnError.ALLOW)):
        judged, tape = moderator(policy), Tape([])
        events = doors.moderate(judged, tape, chunks)
        assert told(events) == read
        assert judged.decision is not None
        assert judged.decision.allowed is whole
        assert all(isinstance(event, (Release, Block, Hold)) for event in events)
        offsets = [event.end for event in events if isinstance(event, Release)]
        assert offsets[-1] == len(read)


def test_steps_that_are_left_early_release_nothing_more(doors: StreamDoors) -> None:
    judged = moderator()
    steps = judged.feed("abc")
    assert next(steps) == Feed(text="abc")
    steps.close()
    assert judged.over
    assert doors.run(judged.feed("d"), Tape([])) == []


def test_a_moderator_that_is_closed_releases_and_decides_nothing() -> None:
    for answer in (Tape().feed("abc"), EngineUnavailable("gone"), GuardError("broken")):
        judged = moderator(Policy.strict(on_error=OnError.ALLOW))
        steps = judged.feed("abc")
        next(steps)
        judged.close()
        with pytest.raises(StopIteration) as done:
            steps.send(answer)
        assert done.value.value == []
        assert judged.over
        assert judged.decision is None


@pytest.mark.parametrize("per_token", [True, False], ids=["tokens", "stretches"])
def test_a_long_chunk_is_judged_in_pieces(doors: StreamDoors, per_token: bool) -> None:
    text = "Mix it well. " * 1000
    judged, tape = StreamModerator(STRICT, per_token=per_token), Tape()
    assert told(doors.moderate(judged, tape, [text])) == text
    sizes = [len(ask.text) for ask in tape.asked if isinstance(ask, Feed)]
    assert max(sizes) <= 2000
    assert sum(sizes) == len(text)


def test_no_repr_holds_text(doors: StreamDoors) -> None:
    judged, judge = moderator(REDACT), LetteredJudge()
    events: list[Event] = doors.moderate(judged, judge, ["SECRET. SECRET xxxxxx. SECRET."])
    asks = [Feed(text="SECRET"), Finish(), Truncate(characters=1)]
    for value in (*events, *asks, judged, judged.decision):
        assert "SECRET" not in repr(value)
