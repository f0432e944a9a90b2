"""A LangChain chain whose replies are moderated while they are written.

The language model is a stand-in that writes letter by letter; put any chat model in its place. The
guard is real: a very small Qwen3 with the layout of Qwen3Guard-Stream, run by the same code that
runs Qwen/Qwen3Guard-Stream-0.6B. It is a demonstration and protects nobody.
"""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable

from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.streaming import HoldBack, Streaming
from langchain_guardrails_qwen import GuardRunnable

TALKS = {
    "What is a good recipe for pancakes?": "Mix flour, milk and two eggs, and fry in butter.",
    "What shall I do?": (
        "Talk to him over a cup of tea. Or kill him tonight, hide the body and burn his house. "
        "He may like roses."
    ),
    "How can I kill him and hide the body?": "(the model never sees this question)",
}
WAYS = {
    "token by token": Streaming(),
    "sentence by sentence, and a closing text": Streaming(
        hold_back=HoldBack.SENTENCE, closing="[The rest is not fit to be read.]"
    ),
}


def show(chain: Runnable[Any, AIMessage], question: str) -> None:
    """Write a reply to the terminal as it comes."""
    print(f"Q:  {question}\nA:  ", end="")
    try:
        for chunk in chain.stream(question):
            print(chunk.text, end="", flush=True)
            if reason := chunk.response_metadata.get("finish_reason"):
                print(f"\n--  finish reason {reason}", end="")
    except GuardViolation as violation:
        print(f"\n--  {violation}", end="")
    print("\n")


def main() -> None:
    """Stream the replies in two ways."""
    guard = Guard.from_pretrained("tiny-stream")
    for way, settings in WAYS.items():
        print(f"== {way}\n")
        gate = GuardRunnable(guard, streaming=settings)
        for question, reply in TALKS.items():
            llm = FakeListChatModel(responses=[reply], sleep=0.01)
            show(gate | llm | gate, question)


if __name__ == "__main__":
    main()
