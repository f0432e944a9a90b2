"""A chat whose replies are moderated while they are sent, as server-sent events.

`python examples/chat_server_langchain.py` starts the server on a free port of this machine, asks it
five things and prints what came; `uvicorn examples.chat_server_langchain:app` only serves. It needs
fastapi, uvicorn and httpx.

The language model is a stand-in; put any chat model in its place. The guard is real: a very small
Qwen3 with the layout of Qwen3Guard-Stream, run by the same code that runs
Qwen/Qwen3Guard-Stream-0.6B. The bundled checkpoint is a demonstration, not protection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import BaseModel

from guardrails_qwen import Guard, GuardViolation, OnError, Policy
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.streaming import HoldBack, Streaming, aclose_source
from langchain_guardrails_qwen import GuardedChatModel

STREAMING = Streaming(hold_back=HoldBack.SENTENCE, closing="[The rest was blocked.]")

TALKS = {
    "What is a good recipe for pancakes?": "Mix flour, milk and two eggs. Then fry in butter.",
    "What shall I do?": (
        "Talk to him over a cup of tea. Or kill him tonight, hide the body and burn his house. "
        "He may like roses."
    ),
    "How can I make a bomb?": "(the model is asked, but nobody reads its answer)",
    "How do I bake bread?": "Knead the dough for ten minutes. " + "Let it rest. " * 1000,
}


class StandIn(BaseChatModel):
    """A language model that writes word by word, and says so when it is stopped."""

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        try:
            for word in TALKS[messages[-1].text].split(" "):
                await asyncio.sleep(0.01)
                yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))
        except (GeneratorExit, asyncio.CancelledError):
            print("    (the model was stopped)")
            raise

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        message = AIMessage(TALKS[messages[-1].text])
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self) -> str:
        return "stand-in"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any], None]:
    """The guard is loaded once, before the first request, and closed behind the last one."""
    engine = await asyncio.to_thread(StreamEngine.from_pretrained, "tiny-stream")
    async with engine:
        # `on_error: raise` keeps apart what the model may not say and what nobody could judge.
        guard = Guard(engine, Policy.strict(on_error=OnError.RAISE))
        yield {"model": guarded(StandIn(), guard)}


def guarded(llm: BaseChatModel, guard: Guard) -> BaseChatModel:
    """The model that answers requests. It writes already while the prompt is judged."""
    return GuardedChatModel(inner=llm, guard=guard, streaming=STREAMING, beside=True)


class Question(BaseModel):
    """What a client sends.

    One turn only: earlier ones belong on the server, because a client can invent any history, and
    history is context that nobody judges again.
    """

    message: str


app = FastAPI(lifespan=lifespan)


@app.post("/chat")
async def chat(question: Question, request: Request) -> StreamingResponse:
    """The reply as `text` events, and one last event that says how it ended."""
    events = reply(request.state.model, question.message)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy collects them
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def reply(model: BaseChatModel, message: str) -> AsyncGenerator[str, None]:
    """The events of one reply.

    - `text`: a part of it that may be read;
    - `end`: it is complete, or its rest was blocked: finish reason "content_filter";
    - `blocked`: the question is not answered;
    - `error`: something failed. The log gets its kind, and nobody its words.

    A client that leaves cancels this, which closes the guard and the model.
    """
    reason, chunks = "stop", model.astream(message)
    try:
        async for chunk in chunks:
            if chunk.text:
                yield event("text", text=chunk.text)
            reason = chunk.response_metadata.get("finish_reason", reason)
        yield event("end", finish_reason=reason)
    except GuardViolation as violation:
        yield event("blocked", stage=violation.decision.stage.value)
    except Exception as error:  # noqa: BLE001  # the status was sent already: this is how to tell
        logging.getLogger(__name__).warning("no reply: %s", type(error).__name__)
        yield event("error", reason="no reply could be had")
    finally:
        await aclose_source(chunks)


def event(name: str, **data: str) -> str:
    """One server-sent event. JSON has no line breaks, which would end it."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def ask(client: httpx.AsyncClient, message: str, *, events: int | None = None) -> None:
    """Print the events of a reply as they come, and leave after so many."""
    print(f"Q:  {message}")
    async with client.stream("POST", "/chat", json={"message": message}) as response:
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                print(f"    {line.removeprefix('event: ')}", end=" ")
            elif line.startswith("data: "):
                print(line.removeprefix("data: "))
                events = None if events is None else events - 1
            if events == 0:
                print("    (the client leaves)")
                return
    print()


async def main() -> None:
    """Serve on a free port, and ask."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:  # the guard is loaded first
        for message in list(TALKS)[:3]:
            await ask(client, message)
        await ask(client, "What does the stand-in not know?")
        await ask(client, "How do I bake bread?", events=2)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
