"""Unsafe text as LlamaIndex meets it: who says it, in which arrangement, and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.schema import TextNode
from pydantic import BaseModel

from integrations.llama_index.tests.doubles import call

UNSAFE_WORD = "kabl"
"""What every unsafe text contains, and no other text does: judges look for it."""


class Threat(Enum):
    """Who says the unsafe text. The value is the word that must not be observed."""

    OUTPUT = "kablout"
    ARGUMENTS = "kablarg"
    RESULT = "kablres"
    INPUT = "kablin"
    CHUNK = "kablchunk"


class Place(Enum):
    """What runs."""

    FUNCTION = "FunctionAgent"
    REACT = "ReActAgent"
    WORKFLOW = "AgentWorkflow"
    QUERY = "query engine"
    CHAT = "chat engine"


AGENT_PLACES = frozenset({Place.FUNCTION, Place.REACT, Place.WORKFLOW})


class Recipe(BaseModel):
    """A recipe."""

    title: str


Reply = str | list[Any]
"""What a model writes: a text, word by word, or pieces of any kind."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """One conversation with one unsafe text in it.

    Args:
        name: What stands where.
        threat: Who says it.
        place: What runs.
        replies: What the model writes, call by call; the last reply is repeated.
        question: What the user asks.
        history: What was said before, as the caller brings it along.
        mode: Of a query engine how it makes its answer, of a chat engine what it does first.
        structured: Whether a `Recipe` is wanted.
        chats: Whether the model is a chat model, and not one that completes prompts.
        node: What is retrieved, beside something harmless.
        harmless: A word that may be observed, for scenarios in which nothing is unsafe.
    """

    name: str
    threat: Threat
    place: Place
    replies: Sequence[Reply]
    question: str = "A word?"
    history: Sequence[ChatMessage] = ()
    mode: str = ""
    structured: bool = False
    chats: bool = True
    node: TextNode = field(default_factory=lambda: TextNode(text="A word is some letters."))
    harmless: str | None = None

    @property
    def word(self) -> str:
        """What is looked for."""
        return self.harmless or self.threat.value

    @property
    def later(self) -> list[Reply]:
        """What the model writes in a later turn, whatever it is asked: something harmless."""
        recipe: list[Reply] = [[call("Recipe", title="Tea")]] if self.structured else []
        if self.place is Place.QUERY and recipe:
            return recipe
        return [_answer(HARMLESS) if self.place is Place.REACT else HARMLESS, *recipe]

    def __str__(self) -> str:
        return f"{self.place.value}: {self.threat.name.lower()}, {self.name}"


def _answer(text: str) -> str:
    """An answer as a ReAct agent reads it."""
    return f"Thought: I can answer.\nAnswer: {text}"


def _acting(tool: str, text: str) -> str:
    return f'Thought: I need a tool.\nAction: {tool}\nAction Input: {{"text": "{text}"}}'


def _thinking(thought: str, text: str) -> list[ChatResponse]:
    """A reply with thoughts before it, as models with such blocks stream it."""
    begun = ThinkingBlock(content=thought)
    told = [TextBlock(text=text)]
    return [
        ChatResponse(
            message=_said(begun), delta="", additional_kwargs={"thinking_delta": thought}, raw={}
        ),
        ChatResponse(message=_said(begun, *told), delta=text, raw={"thinking": thought}),
    ]


def _said(*blocks: Any, **fields: Any) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks], additional_kwargs=fields)


def _beside(tool: ToolCallBlock, arguments: str) -> list[ChatResponse]:
    """A call, and its arguments in another form, as models of OpenAI keep it beside the message."""
    form = {"id": "call-1", "type": "function"}
    named = {**form, "function": {"name": tool.tool_name, "arguments": arguments}}
    return [ChatResponse(message=_said(tool, tool_calls=[named]), delta="", raw={})]


HARMLESS = "All is well now."
_OUTPUT = f"Sure. Take a {Threat.OUTPUT.value} and light it. Then rest."
_ARGUMENTS = f"take a {Threat.ARGUMENTS.value} now"
_INPUT = f"Where is a {Threat.INPUT.value} to be had?"
_CHUNK = f"A word: get a {Threat.CHUNK.value} tonight."
_EARLIER = [
    ChatMessage(role=MessageRole.USER, content=_INPUT),
    ChatMessage(role=MessageRole.ASSISTANT, content="Nowhere."),
]
_BEFORE = [
    ChatMessage(role=MessageRole.USER, content="What is tea?"),
    ChatMessage(role=MessageRole.ASSISTANT, content="A word."),
]
_TEA = call("shout", text="tea")
_HANDOFF = call("handoff", to_agent="second", reason="It knows more.")


def _output(name: str, place: Place, *replies: Reply, **fields: Any) -> Scenario:
    return Scenario(name=name, threat=Threat.OUTPUT, place=place, replies=replies, **fields)


def _arguments(name: str, place: Place, *replies: Reply) -> Scenario:
    return Scenario(name=name, threat=Threat.ARGUMENTS, place=place, replies=replies)


def _result(name: str, place: Place, *replies: Reply) -> Scenario:
    return Scenario(name=name, threat=Threat.RESULT, place=place, replies=replies)


def _input(name: str, place: Place, *replies: Reply, **fields: Any) -> Scenario:
    fields.setdefault("question", _INPUT)
    replies = replies or (HARMLESS,)
    return Scenario(name=name, threat=Threat.INPUT, place=place, replies=replies, **fields)


def _chunk(name: str, place: Place, mode: str, text: str = "", **fields: Any) -> Scenario:
    node = TextNode(text=text or "A word is some letters.", **fields)
    about: dict[str, Any] = {"threat": Threat.CHUNK, "place": place, "mode": mode, "node": node}
    return Scenario(name=name, replies=[HARMLESS], **about)


_F, _R, _W, _Q, _C = Place

SCENARIOS = [
    _output("text", _F, _OUTPUT),
    _output("thoughts", _F, _thinking(_OUTPUT, "Fine.")),
    _output("text before a call", _F, [_OUTPUT, _TEA], HARMLESS),
    _output("text behind a tool", _F, [_TEA], _OUTPUT),
    _output("structured", _F, HARMLESS, [call("Recipe", title=_OUTPUT)], structured=True),
    _output("answer", _R, _answer(_OUTPUT)),
    _output("thought", _R, f"Thought: {_OUTPUT}\nAnswer: Fine."),
    _output("text of the second agent", _W, [_HANDOFF], _OUTPUT),
    _arguments("one call", _F, [call("shout", text=_ARGUMENTS)], HARMLESS),
    _arguments("parallel", _F, [_TEA, call("shout", "call-2", text=_ARGUMENTS)], HARMLESS),
    _arguments("beside the message", _F, _beside(_TEA, f'{{"text": "{_ARGUMENTS}"}}'), HARMLESS),
    _arguments("action", _R, _acting("shout", _ARGUMENTS), _answer(HARMLESS)),
    _arguments("handoff", _W, [call("handoff", to_agent="second", reason=_ARGUMENTS)], HARMLESS),
    _result("text", _F, [call("fetch", text="tea")], HARMLESS),
    _result("parallel", _F, [_TEA, call("fetch", "call-2", text="tea")], HARMLESS),
    _result("beside the text", _F, [call("keep", text="tea")], HARMLESS),
    _result("nodes behind an answer", _F, [call("look_up", input="tea")], HARMLESS),
    _result("error", _F, [call("fail", text="tea")], HARMLESS),
    _result("returned directly", _F, [call("fetch_directly", text="tea")], HARMLESS),
    _result("observation", _R, _acting("fetch", "tea"), _answer(HARMLESS)),
    _result("second agent", _W, [_HANDOFF], [call("fetch", text="tea")], HARMLESS),
    _input("text", _F),
    _input("earlier turn", _F, question="Well?", history=_EARLIER),
    _input("text", _R, _answer(HARMLESS)),
    _input("text", _W, [_HANDOFF], HARMLESS),
    _output("compact", _Q, _OUTPUT, mode="compact"),
    _output("tree_summarize", _Q, _OUTPUT, mode="tree_summarize"),
    _output("structured", _Q, [call("Recipe", title=_OUTPUT)], mode="compact", structured=True),
    _output("completed", _Q, _OUTPUT, mode="compact", chats=False),
    _input("compact", _Q, mode="compact"),
    _output("simple", _C, _OUTPUT, mode="simple"),
    _output("context", _C, _OUTPUT, mode="context"),
    _output("condense_question", _C, _OUTPUT, mode="condense_question"),
    _output("condense_plus_context", _C, _OUTPUT, mode="condense_plus_context"),
    _output("condensed question", _C, _OUTPUT, HARMLESS, mode="condense_question", history=_BEFORE),
    _input("simple", _C, mode="simple"),
    _input("context", _C, mode="context"),
    _input("condense_question", _C, mode="condense_question"),
    _input("condense_plus_context", _C, mode="condense_plus_context"),
    _input("earlier turn", _C, question="Well?", history=_EARLIER, mode="simple"),
    _chunk("text, compact", _Q, "compact", _CHUNK),
    _chunk("text, tree_summarize", _Q, "tree_summarize", _CHUNK),
    _chunk("metadata", _Q, "compact", metadata={"note": _CHUNK}),
    _chunk(
        *("metadata that the model is not shown", _Q, "compact"),
        metadata={"note": _CHUNK},
        excluded_llm_metadata_keys=["note"],
    ),
    _chunk("text, context", _C, "context", _CHUNK),
]

HARMLESS_SCENARIOS = [
    _output("harmless text", _F, "Take some mint and rest. It helps.", harmless="mint"),
    _output(
        *("harmless call", _F, ["Let me see.", call("shout", text="some mint")], HARMLESS),
        harmless="mint",
    ),
    _output(
        "harmless action", _R, _acting("shout", "some mint"), _answer("Fine."), harmless="mint"
    ),
    _output("harmless answer", _Q, "Take some mint.", mode="compact", harmless="mint"),
    _output("harmless reply", _C, "Take some mint.", mode="context", harmless="mint"),
    _output("harmless chunk", _Q, HARMLESS, mode="compact", harmless="letters"),
]
