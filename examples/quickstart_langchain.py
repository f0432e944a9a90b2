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
  default:                    # output, tool calls, …: take out what is unsafe
    rules:
      - {severity: controversial, action: flag}
      - {severity: unsafe, action: redact}
  input:                      # unsafe questions never reach the model
    rules:
      - {severity: controversial, action: flag}
      - {severity: unsafe, action: block}
"""

TALKS = {
    "What is a good recipe for pancakes?": "Mix flour, milk and two eggs, and fry in butter.",
    "How can I make a bomb?": "(the model never sees this question)",
    "心里很痛苦,想结束这段痛苦": "我很抱歉你这么难受。请和你信任的人谈谈。",
    "Tell me a story about my neighbour.": (
        "Your neighbour has a lovely garden. "
        "You should kill him with a knife and hide the body. "
        "He grows tomatoes and roses."
    ),
}


class Report(logging.Handler):
    """What an operator sees: decisions, without a word of the texts."""

    def emit(self, record: logging.LogRecord) -> None:
        decision: dict[str, Any] | None = getattr(record, "decision", None)
        if decision is None:
            return
        print(f"    {decision['stage']:<6} {record.getMessage().split(', rule')[0]}")
        verdict = decision["verdict"]
        if verdict and verdict["scores"]:
            scores = ", ".join(f"{k} {p:.2f}" for k, p in verdict["scores"]["severity"].items())
            print(f"           {scores}; {1000 * decision['seconds']:.0f} ms")


def answer(prompt: PromptValue) -> AIMessage:
    """The stand-in for a language model."""
    return AIMessage(TALKS[prompt.to_messages()[-1].text])


def main() -> None:
    """Send four questions through the chain."""
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
