"""How far a reply is cleared for its reader, token by token. Pure."""

from __future__ import annotations

from collections import deque

from guardrails_qwen.decision import Decision
from guardrails_qwen.streaming.boundaries import SentenceEnds
from guardrails_qwen.streaming.debounce import Seen, settled
from guardrails_qwen.streaming.settings import Debounce, HoldBack, Streaming


class Clearance:
    """What was judged, in order, and the character up to which all of it may be read.

    A character is cleared when all tokens that touch it are; a sentence when a token that ends
    beyond it was judged. So it depends on the tokens and the text alone, not on when they came.

    Args:
        settings: How much is kept back, and when a token counts.
        ends: The ends of the reply's sentences, found so far.
        per_token: Whether tokens are judged, or stretches of sentences: then what was judged is
            cleared, and nothing is debounced.
        redacts: Whether sentences may be taken out, which takes that they are kept back.
    """

    def __init__(
        self, settings: Streaming, ends: SentenceEnds, *, per_token: bool, redacts: bool
    ) -> None:
        self.limit = 0
        """The reply up to this character is cleared."""
        self.hold_back = settings.hold_back
        if redacts and self.hold_back is HoldBack.TOKENS:
            self.hold_back = HoldBack.SENTENCE
        self._by_sentence = per_token and self.hold_back is HoldBack.SENTENCE
        self._tokens = settings.tokens if per_token and self.hold_back is HoldBack.TOKENS else 0
        self._debounce = settings.debounce if per_token else Debounce.OFF
        self._ends = ends
        self._seen = deque[Seen]()  # what is not settled, and the one before
        self.lone: Seen | None = None
        """The only token of all that was judged and not forgotten, where there is just one."""
        self._begun = False

    def settled(self, seen: Seen) -> Decision | None:
        """What is done at a token, now that it is judged."""
        return settled(self._debounce, self._seen[-1] if self._seen else None, seen)

    def run_start(self, seen: Seen) -> int:
        """Where the run of tokens begins that led to what is done at a token."""
        return seen.start if self._debounce is Debounce.OFF else self._seen[-1].start

    def clear(self, seen: Seen, following: int | None) -> None:
        """A token passes, or waits for the next one.

        Args:
            seen: The token.
            following: Where the next one begins, if it is known: they may share a character.
        """
        self._seen.append(seen)
        self.lone = None if self._begun else seen
        self._begun = True
        self.limit = max(self.limit, self._cleared(seen, following))

    def forget(self, start: int) -> None:
        """All from a character on is taken out."""
        while self._seen and self._seen[-1].end > start:
            self._seen.pop()
        self.lone, self._begun = None, bool(self._seen)

    def settle(self, at: int) -> None:
        """All up to a character has left."""
        while len(self._seen) > 1 and self._seen[1].end <= at:
            self._seen.popleft()

    def _cleared(self, seen: Seen, following: int | None) -> int:
        if self.hold_back is HoldBack.REPLY:
            return 0
        waits = seen.suspicious and self._debounce is not Debounce.OFF
        cleared = seen.start if waits else seen.end
        if following is not None:
            cleared = min(cleared, following)
        if self._tokens:
            cleared = min(cleared, self._seen[max(0, len(self._seen) - self._tokens)].start)
        if self._by_sentence:
            return self._ends.up_to(min(cleared, seen.end - 1)) or 0
        return cleared
