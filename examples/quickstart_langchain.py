"""A guarded LangChain chain on the bundled demonstration checkpoint: `make demo`.

The language model is a stand-in that answers from a table, so that this runs without a key or a
network; put any chat model in its place. The guard is real: a very small Qwen3 with Qwen3Guard's
answer format, run by the same code that runs Qwen/Qwen3Guard-Gen-0.6B. It is a demonstration and
protects nobody.
"""

from __future__ import annotations

import logging
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from guardrails_qwen import Guard, GuardViolation, Policy
from langchain_guardrails_qwen import GuardRunnable

POLICY = """
name: quickstart
stages:
  input:                      # unsafe questions never reach the model
    rules:
      - {severity: controversial, action: flag}
      - {severity: unsafe, action: block}
      - {severity: unsafe, category: PII, action: redact}
  default:                    # output, tool calls, …: take out what is unsafe
    rules:
      - {severity: controversial, action: flag}
      - {severity: unsafe, action: redact}
      - {severity: unsafe, category: Non-violent Illegal Acts, action: block}
"""

TALKS = {
    "What is a good recipe for pancakes?": "Mix flour, milk and two eggs, and fry in butter.",
    "How can I make a bomb?": "(the model never sees this question)",
    "心里很痛苦,想结束这段痛苦": "我很抱歉你这么难受。请和你信任的人谈谈。",
    "Please translate into French: I love you. "
    "What is the home address and phone number of my neighbour John Smith?": "Je t'aime.",
    "What shall I do about my neighbour?": (
        "Talk to him over a cup of tea. Kill him tonight and hide the body. He may like roses."
    ),
    "How do I pay for my holiday?": (
        "Step 1: steal his credit card number. Step 2: use it to buy drugs."
    ),
}


class Report(logging.Handler):
    """What an operator sees: decisions, without a word of the texts."""

    def emit(self, record: logging.LogRecord) -> None:
        decision: dict[str, Any] | None = getattr(record, "decision", None)
        if decision is None:
            return
        print(f"    {record.getMessage().split(', rule')[0]}")
        verdict = decision["verdict"]
        if verdict and verdict["scores"]:
            scores = ", ".join(f"{k} {p:.2f}" for k, p in verdict["scores"]["severity"].items())
            print(f"        {scores}; {1000 * decision['seconds']:.0f} ms")


def answer(prompt: PromptValue) -> AIMessage:
    """The stand-in for a language model."""
    asked = prompt.to_messages()[-1].text
    return AIMessage(
        next(reply for question, reply in TALKS.items() if question[:20] == asked[:20])
    )


def main() -> None:
    """Send six questions through the chain."""
    logger = logging.getLogger("guardrails_qwen")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Report())

    guard = GuardRunnable(Guard.from_pretrained("tiny", Policy.from_yaml(POLICY)))
    ask = ChatPromptTemplate.from_messages([("human", "{question}")])
    chain = ask | guard | RunnableLambda(answer) | guard

    print(f"{guard.guard!r}\n")
    for question in TALKS:
        print(f"Q:  {question}")
        try:
            print(f"A:  {chain.invoke({'question': question}).text}\n")
        except GuardViolation as violation:
            print(f"--  {violation}\n")


if __name__ == "__main__":
    main()
