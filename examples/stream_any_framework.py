"""Replies that are moderated while they are written, without a framework.

The language model is a stand-in that writes word by word. The guard is real, if very small: a
demonstration that protects nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.streaming import Block, Hold, Redact, Release, StreamModerator, run

GOOD = "Mix flour, milk and two eggs. Let it rest, then fry it in butter."
BAD = "Talk to him over a cup of tea. Or kill him tonight, hide the body and burn his house."


def words(reply: str) -> Iterator[str]:
    """A language model that streams."""
    for word in reply.split(" "):
        yield f"{word} "


async def awords(reply: str) -> AsyncGenerator[str, None]:
    """One that does so on an event loop, and tells when it is stopped before its end."""
    try:
        for word in words(reply):
            await asyncio.sleep(0.05)
            yield word
    except (GeneratorExit, asyncio.CancelledError):
        print("\n    (the model was stopped)")
        raise


def a_generator(guard: Guard) -> None:
    """The short way: text in, text out, and an exception where the policy blocks."""
    for reply in (GOOD, BAD):
        print("A:  ", end="")
        try:
            for text in guard.stream("What shall I do?").texts(words(reply)):
                print(text, end="", flush=True)
        except GuardViolation as violation:
            print(f"\n--  {violation}", end="")
        print()


async def an_async_generator(guard: Guard) -> None:
    """The same on an event loop. A block closes the generator, and so the call of the model."""
    print("A:  ", end="")
    try:
        async for text in guard.stream("What shall I do?").atexts(awords(BAD)):
            print(text, end="", flush=True)
    except GuardViolation as violation:
        print(f"--  {violation}")


async def a_prompt_beside_its_reply(guard: Guard) -> None:
    """The model is called at once; nothing is shown before the prompt's verdict."""
    for prompt in ("What is a good recipe for pancakes?", "How can I kill him and hide the body?"):
        print(f"Q:  {prompt}\nA:  ", end="")
        try:
            async for text in guard.aanswer(prompt, lambda _: awords(GOOD), beside=True):
                print(text, end="", flush=True)
            print()
        except GuardViolation as violation:
            print(f"--  {violation}")


def without_io(engine: StreamEngine, guard: Guard) -> None:
    """For authors of frameworks: a moderator says what became of each piece; they do the rest."""
    session = engine.open(None)
    moderator = StreamModerator(guard.policy, per_token=True)
    for chunk in words(BAD):
        for event in run(moderator.feed(chunk), session):
            match event:
                case Release(text=text):
                    print(f"    release {text!r}")
                case Redact(marker=marker):
                    print(f"    redact, and show {marker!r}")
                case Hold(characters=count):
                    print(f"    hold {count} characters back")
                case Block(decision=decision):
                    print(f"    {decision.summary}")
        if moderator.over:
            break
    session.close()


def main() -> None:
    """Four ways."""
    with StreamEngine.from_pretrained("tiny-stream") as engine:
        guard = Guard(engine)
        print("== a generator\n")
        a_generator(guard)
        print("\n== an asynchronous generator\n")
        asyncio.run(an_async_generator(guard))
        print("\n== a prompt, judged while the model answers it already\n")
        asyncio.run(a_prompt_beside_its_reply(guard))
        print("\n== without input and output\n")
        without_io(engine, guard)


if __name__ == "__main__":
    main()
