"""Streams that nobody reads to their end, when the event loop ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from guardrails_qwen import Guard
from integrations.langchain.tests.doubles import EchoModel, Guarding
from langchain_guardrails_qwen import GuardedChatModel, GuardRunnable

CHAINS: dict[str, Callable[[GuardRunnable, EchoModel], Any]] = {
    "pipe": lambda guard, llm: guard | llm | guard,
    "wrap": lambda guard, llm: guard.wrap(llm),
    "wrap beside": lambda guard, llm: guard.wrap(llm, beside=True),
    "model": lambda guard, llm: GuardedChatModel(inner=llm, guard=_guard(guard)),
}


def _guard(runnable: GuardRunnable) -> Guard:
    assert runnable.guard is not None
    return runnable.guard


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_a_loop_that_ends_has_nothing_to_complain_of(
    make: Callable[[GuardRunnable, EchoModel], Any], guarding: Guarding, llm: EchoModel
) -> None:
    problems, left = list[str](), list[Any]()
    chain = make(guarding(), llm)

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: problems.append(context["message"])
        )
        left.append(chain.astream("one two three four"))
        async for _ in left[0]:
            break

    asyncio.run(leave())
    assert problems == []
