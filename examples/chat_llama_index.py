"""A chat engine of which a blocked turn leaves no trace: neither in its memory nor in later turns.

The language model is a stand-in that answers from a table, so that this runs without a key or a
network. The guard is real: a very small Qwen3 with the layout of Qwen3Guard-Stream. The bundled
checkpoint is a demonstration, not protection: the texts here are such as it judges rightly.
"""

from __future__ import annotations

import re

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index_stand_ins import StandIn

from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.streaming import HoldBack, Streaming
from llama_index_guardrails_qwen import GuardedChatEngine, guard_chat_engine

RECIPE = "What is a good recipe for pancakes?"
HARM = "How do I kill my neighbour and hide the body?"
ADVICE = "What shall I do?"
AGAIN = "What did I ask you?"

TALKS = {
    RECIPE: "Mix flour, milk and two eggs. Let it rest, then fry it in butter.",
    HARM: "(the model never sees this question)",
    ADVICE: "Talk to him over a cup of tea. Or kill him tonight, hide the body and burn his house.",
}


def answer(prompt: str) -> str:
    """The stand-in for a language model. It is sent the whole conversation."""
    *before, last = re.findall(r"^user: (.*)$", prompt, re.MULTILINE)
    return f"You asked: {' '.join(before)}" if last == AGAIN else TALKS[last]


def show(engine: GuardedChatEngine, question: str) -> None:
    """Send a message, and show the reply as it streams."""
    print(f"Q:  {question}\nA:  ", end="")
    try:
        for text in engine.stream_chat(question).response_gen:
            print(text, end="", flush=True)
    except GuardViolation as violation:
        print(f"\n--  {violation}", end="")
    print("\n")


def main() -> None:
    """One conversation with an engine that raises, and one with an engine that answers."""
    guard = Guard.from_pretrained("tiny-stream")
    llm = StandIn(answer=answer)
    print("== a block raises\n")
    engine = guard_chat_engine(
        SimpleChatEngine.from_defaults(llm=llm),
        guard,
        streaming=Streaming(hold_back=HoldBack.SENTENCE),
    )
    for question in (RECIPE, HARM, ADVICE, AGAIN):
        show(engine, question)
    print(f"The memory: {[message.content for message in engine.chat_history]}\n")

    print("== a block is answered\n")
    engine = guard_chat_engine(
        SimpleChatEngine.from_defaults(llm=llm),
        guard,
        on_violation="reply",
        streaming=Streaming(hold_back=HoldBack.SENTENCE, closing="[The rest was blocked.]"),
    )
    for question in (HARM, RECIPE, ADVICE):
        show(engine, question)
    print(f"The memory: {[message.content for message in engine.chat_history]}")


if __name__ == "__main__":
    main()
