"""A judge whose verdicts are written into the text, so that any text is a script."""

from __future__ import annotations

from guardrails_qwen import Category, Severity
from guardrails_qwen.token_verdict import TokenVerdict

_LETTERS = {
    "x": (Severity.UNSAFE, Category.VIOLENT),
    "y": (Severity.CONTROVERSIAL, Category.VIOLENT),
    "z": (Severity.UNSAFE, Category.PII),
}
_BYTES = 3


class LetteredJudge:
    """Judges tokens of three bytes of UTF-8, so that tokens and characters share one another.

    A token is as bad as the worst of x (Unsafe), y (Controversial) and z (Unsafe, PII) that it
    touches; w is Unsafe where the text before it has a q, so that what is taken out matters.

    Args:
        ahead: Characters that have to come behind a token before it is judged.
    """

    def __init__(self, ahead: int = 2) -> None:
        self.ahead = ahead
        self.text = ""
        self.closed = False
        self.asked = 0
        """Calls, and in them …"""
        self.judged = 0
        """… characters judged, those of forgotten text included."""
        self.clear = 0
        """Characters up to which all tokens are judged."""
        self._bytes: int = 0

    def feed(self, text: str) -> list[TokenVerdict]:
        self.asked += 1
        self.text += text
        return self._until(len(self.text[: max(0, len(self.text) - self.ahead)].encode()))

    async def afeed(self, text: str) -> list[TokenVerdict]:
        return self.feed(text)

    def finish(self) -> list[TokenVerdict]:
        self.asked += 1
        return self._until(len(self.text.encode()), complete=True)

    async def afinish(self) -> list[TokenVerdict]:
        return self.finish()

    def truncate(self, characters: int) -> None:
        self.text = self.text[:characters]
        self._bytes = min(self._bytes, len(self.text.encode()))

    async def atruncate(self, characters: int) -> None:
        self.truncate(characters)

    def whole(self, text: str) -> list[TokenVerdict]:
        """The tokens of a complete reply."""
        return [*self.feed(text), *self.finish()]

    def close(self) -> None:
        self.closed = True

    def _until(self, limit: int, *, complete: bool = False) -> list[TokenVerdict]:
        """Tokens up to a byte; those that share a character come together."""
        owners = [at for at, character in enumerate(self.text) for _ in character.encode()]
        found = list[TokenVerdict]()
        group = list[TokenVerdict]()
        begin = self._bytes
        while begin < limit:
            end = min(begin + _BYTES, limit) if complete else begin + _BYTES
            if end > limit:
                break
            group.append(self._token(owners[begin], owners[end - 1] + 1))
            begin = end
            if begin == len(owners) or owners[begin] != owners[begin - 1]:
                found += group
                self._bytes, group = begin, []
        self.clear = owners[self._bytes - 1] + 1 if self._bytes else 0
        self.judged += sum(token.end - token.start for token in found)
        return found

    def _token(self, start: int, end: int) -> TokenVerdict:
        letters = self.text[start:end]
        found = [_LETTERS[letter] for letter in letters if letter in _LETTERS]
        if "w" in letters and "q" in self.text[:start]:
            found.append((Severity.UNSAFE, Category.UNETHICAL_ACTS))
        severity, category = max(found, default=(Severity.SAFE, Category.VIOLENT))
        likely = 0.9 if "!" not in letters else 0.5
        rest = (1 - likely) / 2
        return TokenVerdict(
            start=start,
            end=end,
            token=0,
            severity=severity,
            category=category,
            severity_scores={level: likely if level is severity else rest for level in Severity},
            category_scores={name: float(name is category) for name in Category},
            fingerprint="lettered",
        )
