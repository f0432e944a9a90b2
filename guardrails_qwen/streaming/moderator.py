"""Moderating a reply while it is written: what may be read now, and what never. Pure."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import replace

from guardrails_qwen.decision import Decision
from guardrails_qwen.engines.session import Judged
from guardrails_qwen.errors import ConversationError, GuardError
from guardrails_qwen.policy import Policy
from guardrails_qwen.rules import Action, Stage
from guardrails_qwen.streaming.boundaries import SentenceEnds
from guardrails_qwen.streaming.characters import Characters
from guardrails_qwen.streaming.clearance import Clearance
from guardrails_qwen.streaming.debounce import Seen
from guardrails_qwen.streaming.draft import Draft
from guardrails_qwen.streaming.events import Block, Event, Hold
from guardrails_qwen.streaming.offsets import Offsets
from guardrails_qwen.streaming.settings import HoldBack, Streaming
from guardrails_qwen.streaming.steps import Answer, Ask, Feed, Finish, Steps, Truncate
from guardrails_qwen.verdict import Severity

_MOST_REDACTIONS = 64
"""Of one reply. Each makes the judge begin again at a cut, so their number bounds the cost; a reply
that needs more is replaced."""
_PIECE = 2_000
"""Characters handed to the judge at once, a few milliseconds of work without a pause."""
_SHORT_PIECE = 500
"""The same after a redaction: so little is in vain at the next."""

_INK = re.compile(r"\S")
_Asking = Generator[Ask, Answer, None]


class StreamModerator:
    """Decides what of a reply may be read while the reply is written.

    It knows no engine, thread or event loop: `feed` and `finish` return steps that ask for what has
    to be judged and end with events; `run` and `arun` drive them with a judge.

    - Nothing is released that was not judged, and nothing after a block. How the reply is cut into
      chunks changes neither what is released in all nor the decision, as long as the judge does
      not fail.
    - A token that the policy would do more about than flag it waits for the next one, as the
      debounce demands; at the end of the reply it passes, unless it is the only one.
    - What is redacted is taken out from the beginning of the sentence in which the run of flagged
      tokens begins to the end of the one in which it ends. The judge is made to forget it, and
      judges what follows in the context that the reader has; the marker is not judged. A reply
      that would need more than 64 redactions is replaced from there on.
    - A judge of whole texts says nothing about tokens: each of its verdicts counts at once, what it
      judged is cleared, and to redact takes out all that came since its last verdict that passed.
    - What cannot be judged follows the stage's `on_error`. Where that is to allow, all that waits
      and all that comes passes unjudged, and the decision says so. Where that is to raise, the
      error is raised again by all that comes.
    - What has left is not kept, but for the text of the decision.

    One reply each; not to be shared by threads or tasks. Whoever leaves the steps before their end
    leaves a moderator that releases nothing more; so does `close`.
    """

    def __init__(
        self,
        policy: Policy,
        settings: Streaming = Streaming(),
        *,
        stage: Stage = Stage.OUTPUT,
        per_token: bool,
    ) -> None:
        """A moderator for one reply.

        Args:
            policy: What is done about verdicts.
            settings: How much is kept back, and when a token counts.
            stage: Whose rules hold.
            per_token: Whether the judge judges tokens, as sessions do, or stretches of sentences.
        """
        self.policy = policy
        self.settings = settings
        self.stage = Stage(stage)
        self.per_token = per_token
        self.decision: Decision | None = None
        """What was decided about the reply; None until its end. Its text is what was released in
        all, with markers and closing text; its verdict that of the token that decided, or the
        worst of all where the reply passed."""
        rules = policy.at(self.stage).rules
        self._safe_passes = all(
            rule.probability is None and rule.severity > Severity.SAFE for rule in rules
        )
        redacts = any(rule.action is Action.REDACT for rule in rules)
        self._characters = Characters()
        self._ends = SentenceEnds()
        self._draft = Draft(policy.at(self.stage).marker)
        self._clearance = Clearance(settings, self._ends, per_token=per_token, redacts=redacts)
        self._offsets = Offsets()
        self._events: list[Event] = []
        self._fed = 0
        """The reply up to this character was handed to the judge, or taken out."""
        self._judged = 0
        """The text that the judge has was judged up to this character of it."""
        self._cut: int | None = None
        """Where the reply is being taken out from, until the sentence ends; or None."""
        self._flagged = 0
        """Behind the flagged token: the sentence that is taken out ends there or later."""
        self._redactions = 0
        self._closed = self._ended = self._asking = False
        self._came_all = self._complete = False
        self._error: GuardError | None = None
        """What was raised, and is raised again."""
        self._deciding: Decision | None = None
        """The first decision of the strictest action that was done."""
        self._worst: Judged | None = None
        """The last of the worst severity."""
        self._unjudged: Decision | None = None
        """Why all that comes passes unjudged."""

    @property
    def over(self) -> bool:
        """Whether nothing more will be released."""
        return self._closed or self._ended or self._asking

    def close(self) -> None:
        """Release nothing more and decide nothing, whatever is being judged now."""
        self._closed = True

    def feed(self, text: str) -> Steps:
        """More of the reply. Nothing happens where the reply was blocked.

        Raises:
            ValueError: The reply is complete already.
            GuardError: It cannot be judged, and the policy says to raise.
        """
        self._require_judged()
        if self._complete:
            raise ValueError("the reply is complete: nothing can be added to it")
        for start in range(0, len(text), _PIECE):
            if self.over:
                break
            whole = self._characters.feed(text[start : start + _PIECE])
            self._draft.append(whole)
            self._ends.feed(whole)
            yield from self._advance()
            self._require_whole()
        return self._drained()

    def finish(self) -> Steps:
        """The reply is complete. Nothing happens where it was already, or was blocked.

        Raises:
            GuardError: It cannot be judged, and the policy says to raise.
        """
        self._require_judged()
        if self.over:
            return []
        self._came_all = True
        self._characters.finish()
        self._require_whole()
        yield from self._advance()
        while self._fed and self._asks:
            self._take((yield from self._asked(Finish())))
            self._count_lone()
            if self._cut is None:
                break
            yield from self._advance()  # what follows the sentence that is taken out
        if not self.over:
            self._conclude()
        return self._drained()

    @property
    def _asks(self) -> bool:
        """Whether the judge is still asked about what came."""
        return not self.over and self._cut is None and self._unjudged is None

    def _advance(self) -> _Asking:
        """Have all judged that came."""
        yield from self._resume()
        while self._asks:
            piece = self._draft.slice(self._fed, self._fed + self._piece())
            if not piece:
                break
            self._fed += len(piece)
            self._take((yield from self._asked(Feed(text=piece))))
            yield from self._resume()
        if self._unjudged and not self.over:
            self._release(self._draft.length)

    def _piece(self) -> int:
        return _SHORT_PIECE if self._redactions else _PIECE

    def _resume(self) -> _Asking:
        """Go on behind the sentence that is taken out, once its end is there."""
        end = None if self._cut is None or self.over else self._cut_end(self._cut)
        if self._cut is None or end is None:
            return
        kept = self._offsets.cut(self._cut, end)
        self._draft.resume(end)
        self._cut, self._fed, self._judged = None, end, kept
        self._take((yield from self._asked(Truncate(characters=kept))))

    def _cut_end(self, cut: int) -> int | None:
        """Where what is taken out ends; None where that is not known, or where all ends."""
        end = self._ends.after(self._flagged)
        if end is None and self._came_all:
            end = self._draft.length
        if end is None:
            return None
        ink = cut + len(self._draft.slice(cut, end).rstrip())
        # white space behind the sentence stays, unless a flagged token is in it
        if ink >= (self._flagged if self.per_token else cut + 1):
            end = ink
        return end if end < self._draft.length else None

    def _asked(self, ask: Ask) -> Generator[Ask, Answer, Answer]:
        self._asking = True  # for whoever never answers
        answer = yield ask
        self._asking = False
        return answer

    def _take(self, answer: Answer) -> None:
        if self._closed:
            return
        if isinstance(answer, GuardError):
            self._fail(answer)
            return
        for index, judged in enumerate(answer):
            following = answer[index + 1] if index + 1 < len(answer) else None
            self._consider(judged, following)
            if not self._asks:
                return
        self._release(self._clearance.limit)

    def _consider(self, judged: Judged, following: Judged | None) -> None:
        """Act on what was judged, or clear it."""
        if not self._in_order(judged):
            self._fail(GuardError("the judge left a part of the reply unjudged"))
            return
        self._judged = max(self._judged, judged.end)
        if self._worst is None or judged.severity >= self._worst.severity:
            self._worst = judged
        seen = self._seen(judged)
        decision = self._clearance.settled(seen)
        if decision and decision.action > Action.FLAG:
            self._release(self._clearance.limit)
            self._act(decision, seen)
            return
        self._note(decision)
        behind = self._offsets.start(following.start) if following else None
        self._clearance.clear(seen, behind)

    def _count_lone(self) -> None:
        """A reply of a single token is what that token is: no other will confirm it."""
        lone = self._clearance.lone
        if lone is None or lone.decision is None or not self._asks:
            return
        if lone.suspicious:
            self._act(lone.decision, lone)
        else:
            self._note(lone.decision)

    def _in_order(self, judged: Judged) -> bool:
        """Whether nothing but white space lies between this and what was judged before."""
        if judged.start > self._judged:
            skipped = self._offsets.start(self._judged), self._offsets.start(judged.start)
            if self._draft.slice(*skipped).strip():
                return False
        return self._offsets.end(judged.end) <= self._fed

    def _seen(self, judged: Judged) -> Seen:
        safe = self._safe_passes and judged.severity is Severity.SAFE
        return Seen(
            start=self._offsets.start(judged.start),
            end=self._offsets.end(judged.end),
            severity=judged.severity,
            decision=None if safe else self.policy.decide(self.stage, judged.verdict),
        )

    def _note(self, decision: Decision | None) -> None:
        done = self._deciding.action if self._deciding else Action.ALLOW
        if decision and decision.action > done:
            self._deciding = decision

    def _act(self, decision: Decision, seen: Seen) -> None:
        if decision.action is not Action.REDACT:
            self._end(decision)
        elif self._redactions == _MOST_REDACTIONS:
            self._end(replace(decision, action=Action.REPLACE))
        else:
            self._note(decision)
            self._take_out(decision, seen)

    def _take_out(self, decision: Decision, seen: Seen) -> None:
        """From the beginning of the sentence on; nothing that the reader has."""
        self._redactions += 1
        start = self._clearance.run_start(seen)
        if self.per_token and start >= self._draft.settled:
            ink = _INK.search(self._draft.slice(start, seen.end))
            start = self._ends.up_to(start + ink.start() if ink else start) or 0
        self._cut = self._draft.take_out(start, decision)
        self._flagged = seen.end
        self._clearance.forget(self._cut)
        if self._clearance.hold_back is not HoldBack.REPLY:
            self._release(self._cut)

    def _release(self, limit: int) -> None:
        self._events += self._draft.release(limit)
        self._clearance.settle(self._draft.settled)

    def _require_judged(self) -> None:
        if self._error:
            raise self._error

    def _require_whole(self) -> None:
        if self._characters.broken and not self.over:
            reason = "the reply has half a character in it: decode it properly"
            self._fail(ConversationError(reason))

    def _fail(self, error: GuardError) -> None:
        try:
            decision = self.policy.decide_unjudged(self.stage, error)
        except GuardError as raised:
            self._ended, self._error = True, raised
            raise
        if decision.action is not Action.ALLOW:
            self._end(decision)
            return
        self._unjudged = decision
        self._release(self._draft.length)

    def _end(self, decision: Decision) -> None:
        """Nothing more is released, but for a closing text."""
        closings = {
            Action.REPLACE: self.policy.at(self.stage).replacement,
            Action.DROP: "",
        }
        closing = closings.get(decision.action, self.settings.closing)
        if closing:
            self._draft.say(closing)
        self._ended = True
        self.decision = self._whole(decision)
        without_text = replace(self.decision, text=None)
        self._events.append(Block(decision=without_text, closing=closing))

    def _conclude(self) -> None:
        """All is released that waits, tokens that waited for another one included."""
        if self._cut is not None:
            self._draft.resume(self._draft.length)
        elif self._unjudged is None and self._rest().strip():
            self._fail(GuardError("the judge left a part of the reply unjudged"))
            return
        self._events += self._draft.release(self._draft.length, complete=True)
        self._ended = self._complete = True
        self.decision = self._whole(self._deciding or self._unjudged or self._passed())

    def _rest(self) -> str:
        return self._draft.slice(self._offsets.start(self._judged), self._draft.length)

    def _passed(self) -> Decision:
        if self._worst is None:
            fingerprint = f"{self.policy.fingerprint}."
            return Decision(
                action=Action.ALLOW,
                stage=self.stage,
                policy=self.policy.name,
                fingerprint=fingerprint,
            )
        decision = self.policy.decide(self.stage, self._worst.verdict)
        return replace(decision, action=Action.ALLOW, rule=None)

    def _whole(self, decision: Decision) -> Decision:
        """A decision about a token as one about the reply."""
        error = self._unjudged.error if self._unjudged else decision.error
        told, redactions = self._draft.told, self._draft.redactions
        return replace(decision, text=told, redactions=redactions, error=error)

    def _drained(self) -> list[Event]:
        events, self._events = self._events, []
        if self._closed:
            return []
        waiting = 0 if self.over else self._draft.waiting
        return events or ([Hold(characters=waiting)] if waiting else [])
