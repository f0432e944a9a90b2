"""A growing reply as tokens behind a prompt: what has to be run, and where in the cache. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from guardrails_qwen.engines.incremental import TextEncoder, Token
from guardrails_qwen.engines.session_limits import AtLimit
from guardrails_qwen.engines.stream_prompting import StreamPrompt
from guardrails_qwen.errors import CheckpointError, TextTooLong

_FIRST = 8
"""Tokens; a reply is opened by fewer."""
_LEAST_ROOM = 64
"""Tokens; a context with less beside the prompt is not worth a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Tokens to run behind `past` others; verdicts are read at the last few, `scored`."""

    past: int
    ids: tuple[int, ...] = field(repr=False)
    scored: tuple[Token, ...] = field(default=(), repr=False)

    @property
    def end(self) -> int:
        """Positions that are in use afterwards."""
        return self.past + len(self.ids)


class Reply:
    """Text comes in, runs come out: each token of the reply is scored once, in order.

    A reply that fills the context is re-anchored: it goes on behind its prompt and the last part of
    the reply, half of what the context has room for. When that happens depends on the number of
    tokens only, not on how they came.

    Args:
        texts: The guard's tokenizer.
        prompt: What stands in front.
        context: Positions that the model has.
        at_limit: What happens when they are full.

    Raises:
        TextTooLong: The prompt leaves no room.
    """

    def __init__(
        self, texts: TextEncoder, prompt: StreamPrompt, context: int, at_limit: AtLimit
    ) -> None:
        self._texts = texts
        self._prompt = prompt
        self._room = context - len(prompt.ids)
        if self._room < _LEAST_ROOM:
            raise TextTooLong(len(prompt.ids), context - _LEAST_ROOM)
        self._context = context
        self._at_limit = at_limit
        self._growing = texts.growing(prompt.head)
        self._text = ""
        self._tokens = list[Token]()
        self._waiting = list[Token]()
        """Certain, but not run yet."""
        self._anchor: int | None = 0
        """The first token of the reply in the cache."""
        self._skipped = 0
        """Characters whose tokens came out otherwise before, and were judged."""

    @property
    def held(self) -> int:
        """Characters that the next call looks at besides its own."""
        return self._growing.held

    def __len__(self) -> int:
        """Characters of the reply."""
        return len(self._text)

    def feed(self, text: str) -> list[Run]:
        """Append to the reply."""
        self._text += text
        return self._runs(self._growing.feed(text))

    def finish(self) -> list[Run]:
        """The reply is complete."""
        return self._runs(self._growing.finish())

    def truncate(self, characters: int) -> None:
        """Forget the rest of the reply; what of its tokens stays is not run again."""
        self._text = self._text[:characters]
        self._growing = self._texts.growing(self._prompt.head)
        tokens = self._growing.feed(self._text)
        pairs = zip(tokens, self._tokens, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0].id == pair[1].id, pairs))
        if common < len(self._tokens):
            self._skipped = max(self._skipped, self._tokens[-1].end)
        self._skipped = min(self._skipped, characters)
        self._tokens, self._waiting = tokens[:common], tokens[common:]

    def fork(self) -> Reply:
        """An independent one that goes on from here."""
        other = object.__new__(Reply)
        other.__dict__.update(self.__dict__)
        other._growing = self._growing.fork()
        other._tokens, other._waiting = list(self._tokens), list(self._waiting)
        return other

    def _runs(self, new: Sequence[Token]) -> list[Run]:
        tokens = [*self._waiting, *new]
        self._waiting = []
        total = len(self._tokens) + len(tokens)
        if self._at_limit is AtLimit.REFUSE and total > self._room:
            raise TextTooLong(len(self._prompt.ids) + total, self._context)
        return list(self._planned(tokens))

    def _planned(self, tokens: Sequence[Token]) -> Iterator[Run]:
        done = 0
        while done < len(tokens):
            count = len(self._tokens)
            opening = self._opening([*self._tokens[:_FIRST], *tokens[:_FIRST]])
            anchor = self._anchored(count + 1, len(opening))
            front = opening if anchor else []
            again = [] if anchor == self._anchor else [*front, *self._tokens[anchor:count]]
            seen = len(front) + count - anchor
            part = tokens[done : done + self._room - seen]
            yield Run(
                past=len(self._prompt.ids) + seen - len(again),
                ids=tuple(token.id for token in [*again, *part]),
                scored=tuple(token for token in part if token.end > self._skipped),
            )
            self._anchor = anchor
            self._tokens += part
            done += len(part)

    @staticmethod
    def _opening(first: Sequence[Token]) -> list[Token]:
        """The tokens that open the reply without being of it: they stay in front of the rest."""
        return list(takewhile(lambda token: token.end == 0, first))

    def _anchored(self, count: int, opening: int) -> int:
        """The first token of the reply that the model sees when it has `count` of them."""
        if count <= self._room:
            return 0
        kept = self._room // 2
        first, step = self._room - kept, self._room - opening - kept
        return first + max(0, -(-(count - self._room - first + opening) // step)) * step


def pieces(run: Run, most: int) -> Iterator[Run]:
    """A run as several that follow one another, of at most so many tokens."""
    unscored = len(run.ids) - len(run.scored)
    for start in range(0, len(run.ids), most):
        end = start + most
        yield Run(
            past=run.past + start,
            ids=run.ids[start:end],
            scored=run.scored[max(0, start - unscored) : max(0, end - unscored)],
        )


def require_room(context: int) -> None:
    """Refuse a model that has no room for a session.

    Raises:
        CheckpointError: It has not.
    """
    if context < 2 * _LEAST_ROOM:
        raise CheckpointError(f"the model's context of {context} tokens has no room for a reply")
