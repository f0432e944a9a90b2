"""Hooks of middleware, written once for both colours: steps that ask a guard and call a handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from guardrails_qwen import Conversation, Guard
from langchain_guardrails_qwen.gate import Results
from langchain_guardrails_qwen.judging import Asked
from langchain_guardrails_qwen.trace import atell, tell

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Ask:
    """Judge these; the answer is a decision or a `GuardError` for each."""

    asked: Sequence[Asked]


@dataclass(frozen=True, slots=True, repr=False)
class Forward:
    """Hand this request on; the answer is what the handler returns."""

    request: Any


Steps = Generator[Ask | Forward, Any, _Result]
"""A hook in progress. It knows neither threads nor event loops; what a step raises, it gets."""


def _no_handler(_request: Any) -> Any:
    raise TypeError("this hook has nothing to hand a request on to")


def judge(guard: Guard, asked: Sequence[Asked]) -> Results:
    """A result for each that is asked, in order."""
    conversations = _judgeable(asked)
    results = guard.check_many(conversations, return_exceptions=True) if conversations else []
    return _in_order(asked, results)


async def ajudge(guard: Guard, asked: Sequence[Asked]) -> Results:
    """`judge`, without blocking the event loop."""
    conversations = _judgeable(asked)
    results = (
        await guard.acheck_many(conversations, return_exceptions=True) if conversations else []
    )
    return _in_order(asked, results)


def _judgeable(asked: Sequence[Asked]) -> list[Conversation]:
    return [item for item in asked if isinstance(item, Conversation)]


def _in_order(asked: Sequence[Asked], results: Results) -> Results:
    found = iter(results)
    return [next(found) if isinstance(item, Conversation) else item for item in asked]


def run(
    steps: Steps[_Result], guard: Guard, handler: Callable[[Any], Any] = _no_handler
) -> _Result:
    """Run a hook to its end. The run around it is told what is decided."""
    resume: Callable[[], Ask | Forward] = partial(next, steps)
    while True:
        try:
            step = resume()
        except StopIteration as done:
            return done.value
        try:
            if isinstance(step, Ask):
                answer = judge(guard, step.asked)
                tell(answer)
            else:
                answer = handler(step.request)
        except Exception as error:  # noqa: BLE001 - the hook decides what it makes of it
            resume = partial(steps.throw, error)
        else:
            resume = partial(steps.send, answer)


async def arun(
    steps: Steps[_Result], guard: Guard, handler: Callable[[Any], Awaitable[Any]] = _no_handler
) -> _Result:
    """`run`, without blocking the event loop."""
    resume: Callable[[], Ask | Forward] = partial(next, steps)
    while True:
        try:
            step = resume()
        except StopIteration as done:
            return done.value
        try:
            if isinstance(step, Ask):
                answer = await ajudge(guard, step.asked)
                await atell(answer)
            else:
                answer = await handler(step.request)
        except Exception as error:  # noqa: BLE001 - the hook decides what it makes of it
            resume = partial(steps.throw, error)
        else:
            resume = partial(steps.send, answer)
