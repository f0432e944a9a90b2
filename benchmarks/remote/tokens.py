"""What a verdict costs the server: requests and generated tokens, as it counts them itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from benchmarks.remote.contenders import Target
from benchmarks.remote.questions import Kind, questions


@dataclass(slots=True, kw_only=True)
class Cost:
    """Of all verdicts that were asked for."""

    verdicts: int = 0
    requests: int = 0
    generated: int = 0
    """Tokens, by `usage.completion_tokens` of the answers."""

    def add(self, body: bytes) -> None:
        """Count an answer."""
        self.requests += 1
        self.generated += json.loads(body)["usage"]["completion_tokens"]


async def cost(target: Target, name: str, kind: Kind, verdicts: int) -> Cost:
    """What so many verdicts cost, beyond finding out what the server can do."""
    total = Cost(verdicts=verdicts)
    counts = False

    def count(body: bytes) -> None:
        if counts:
            total.add(body)

    contender = replace(target, count=count).contender(name)
    asked = questions(kind)
    try:
        await contender.ajudge(next(asked).conversation)
        counts = True
        for _ in range(verdicts):
            await contender.ajudge(next(asked).conversation)
    finally:
        await contender.aclose()
    return total
