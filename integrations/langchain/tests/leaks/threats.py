"""Unsafe text as an agent meets it: who says it, and where in a message it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, ToolCallChunk
from pydantic import BaseModel

from integrations.langchain.tests.leaks.tools import TOOLS

UNSAFE_WORD = "kabl"
"""What every unsafe text contains, and no other text does: judges look for it."""


class Threat(Enum):
    """Who says the unsafe text. The value is the word that must not be observed."""

    OUTPUT = "kablout"
    ARGUMENTS = "kablarg"
    RESULT = "kablres"
    INPUT = "kablin"

    @property
    def word(self) -> str:
        """What must not be observed."""
        return self.value


class Recipe(BaseModel):
    """A recipe."""

    title: str


Reply = list[AIMessageChunk]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """One conversation with one unsafe text in it.

    Args:
        name: What stands where.
        threat: Who says it.
        replies: What the model writes, call by call; a last reply is repeated.
        question: The messages of the user.
        response_format: Whether the output is structured: "tool", "provider" or not.
        native: Whether the model has events of the newest protocol itself.
        streams: Whether the model streams.
        harmless: A word that may be observed, for scenarios in which nothing is unsafe.
    """

    name: str
    threat: Threat
    replies: Sequence[Reply]
    question: Sequence[BaseMessage] = field(default_factory=lambda: [HumanMessage("A word?")])
    response_format: str | None = None
    native: bool = False
    streams: bool = True
    harmless: str | None = None

    @property
    def word(self) -> str:
        """What is looked for."""
        return self.harmless or self.threat.word

    @property
    def tools(self) -> list[Any]:
        """All tools, also where none is called."""
        return [] if self.response_format else TOOLS

    def __str__(self) -> str:
        return f"{self.threat.name.lower()}: {self.name}"


def words(text: str) -> list[str]:
    """A text as pieces of one word each, which add up to it."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]


def said(text: str) -> Reply:
    """A reply, word by word."""
    return [AIMessageChunk(content=piece) for piece in words(text)]


def in_blocks(kind: str, text: str, index: int = 0) -> Reply:
    """A reply in content blocks of one kind, word by word."""
    return [
        AIMessageChunk(content=[{"type": kind, kind: piece, "index": index}])
        for piece in words(text)
    ]


def call(
    tool: str, text: str, *, number: int = 0, broken: bool = False, key: str = "text"
) -> Reply:
    """The call of a tool, its arguments word by word."""
    end = '"' if broken else '"}'
    pieces = words(f'{{"{key}": "{text}{end}')
    begin = ToolCallChunk(name=tool, id=f"call-{number}", args="", index=number)
    rest = [ToolCallChunk(name=None, id=None, args=piece, index=number) for piece in pieces]
    return [AIMessageChunk(content="", tool_call_chunks=[chunk]) for chunk in [begin, *rest]]


HARMLESS = said("All is well now.")
_OUTPUT = f"Sure. Take a {Threat.OUTPUT.word} and light it. Then rest."
_ARGUMENTS = f"take a {Threat.ARGUMENTS.word} now"
_INPUT = f"Where is a {Threat.INPUT.word} to be had?"


def _output(name: str, *replies: Reply, **fields: Any) -> Scenario:
    return Scenario(name=name, threat=Threat.OUTPUT, replies=replies, **fields)


def _arguments(name: str, *calls: Reply) -> Scenario:
    reply = [chunk for one in calls for chunk in one]
    return Scenario(name=name, threat=Threat.ARGUMENTS, replies=[reply, HARMLESS])


def _result(name: str, *tools: str) -> Scenario:
    calls = [call(tool, "some tea", number=number) for number, tool in enumerate(tools)]
    reply = [chunk for one in calls for chunk in one]
    return Scenario(name=name, threat=Threat.RESULT, replies=[reply, HARMLESS])


def _input(name: str, *question: BaseMessage) -> Scenario:
    return Scenario(name=name, threat=Threat.INPUT, replies=[HARMLESS], question=question)


SCENARIOS = [
    _output("text", said(_OUTPUT)),
    _output("text of a model that does not stream", said(_OUTPUT), streams=False),
    _output("text of a model with events of its own", said(_OUTPUT), native=True),
    _output("text blocks", in_blocks("text", _OUTPUT)),
    _output("reasoning", [*in_blocks("reasoning", _OUTPUT), *in_blocks("text", "Fine.", 1)]),
    _output("text before a call", [*said(_OUTPUT), *call("shout", "tea")], HARMLESS),
    _output("text behind a tool", call("shout", "some tea"), said(_OUTPUT)),
    _output("structured, by a tool", call("Recipe", _OUTPUT, key="title"), response_format="tool"),
    _output(
        "structured, by the provider", said(f'{{"title": "{_OUTPUT}"}}'), response_format="provider"
    ),
    _arguments("one call", call("shout", _ARGUMENTS)),
    _arguments("parallel", call("shout", "tea"), call("shout", _ARGUMENTS, number=1)),
    _arguments("not JSON", call("shout", _ARGUMENTS, broken=True)),
    _result("text", "fetch"),
    _result("parallel", "shout", "fetch"),
    _result("blocks", "fetch_blocks"),
    _result("handled error", "fail"),
    _result("command", "command"),
    _result("returned directly", "fetch_directly"),
    _input("text", HumanMessage(_INPUT)),
    _input("earlier of two turns", HumanMessage(_INPUT), HumanMessage("Well?")),
    _input("blocks", HumanMessage([{"type": "text", "text": _INPUT}])),
]

HARMLESS_SCENARIOS = [
    _output("harmless text", said("Take some mint and rest. It helps."), harmless="mint"),
    _output(
        "harmless call",
        [*said("Let me see."), *call("shout", "some mint")],
        HARMLESS,
        harmless="mint",
    ),
    _output("harmless result", call("shout", "tea"), HARMLESS, harmless="tea"),
    _output(
        "harmless recipe",
        call("Recipe", "Hot mint", key="title"),
        response_format="tool",
        harmless="mint",
    ),
    _output(
        "harmless JSON", said('{"title": "Mint"}'), response_format="provider", harmless="mint"
    ),
]
ARTIFACT = _result("artifact", "fetch_artifact")
"""What a tool keeps beside its message: no model reads it, and no guard judges it."""


def structured(scenario: Scenario, text: str) -> Reply:
    """A reply in the form that the scenario asks for."""
    if scenario.response_format == "tool":
        return call("Recipe", text, key="title")
    return said(f'{{"title": "{text}"}}' if scenario.response_format else text)
