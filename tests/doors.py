"""The two doors of a guard as one interface: what passes through both is proved to agree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from guardrails_qwen import Decision, Guard, GuardError, Stage
from guardrails_qwen.conversation import ConversationLike


@dataclass(frozen=True)
class Doors:
    """`check` and friends, or `acheck` and friends."""

    asynchronous: bool

    def check(
        self, guard: Guard, value: ConversationLike, *, stage: Stage | None = None
    ) -> Decision:
        if self.asynchronous:
            return asyncio.run(guard.acheck(value, stage=stage))
        return guard.check(value, stage=stage)

    def enforce(self, guard: Guard, value: ConversationLike, *, stage: Stage | None = None) -> str:
        if self.asynchronous:
            return asyncio.run(guard.aenforce(value, stage=stage))
        return guard.enforce(value, stage=stage)

    def many(self, guard: Guard, values: Iterable[ConversationLike]) -> list[Decision]:
        if self.asynchronous:
            return asyncio.run(guard.acheck_many(values))
        return guard.check_many(values)

    def settled(
        self, guard: Guard, values: Iterable[ConversationLike]
    ) -> list[Decision | GuardError]:
        if self.asynchronous:
            return asyncio.run(guard.acheck_many(values, return_exceptions=True))
        return guard.check_many(values, return_exceptions=True)
