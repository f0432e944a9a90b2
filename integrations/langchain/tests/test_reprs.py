"""What a guard has at hand while it judges shows no text where it is written to a log."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage

from guardrails_qwen import ConversationError, Guard, Policy, Stage
from guardrails_qwen.testing import ScriptedEngine
from langchain_guardrails_qwen.document_passage import DocumentPassage
from langchain_guardrails_qwen.documents_gate import DocumentGate
from langchain_guardrails_qwen.gate import Gate
from langchain_guardrails_qwen.messages import read_message
from langchain_guardrails_qwen.passage import Passage
from langchain_guardrails_qwen.prompts import Place
from langchain_guardrails_qwen.turn import Turn
from langchain_guardrails_qwen.values import read

TEXT = "plugh"
GUARD = Guard(ScriptedEngine({}), Policy.strict())


def passage() -> Any:
    return Passage.of(TEXT, Place(), None, None, None)


def documents() -> Any:
    return DocumentPassage.of([Document(page_content=TEXT)], GUARD, Stage.CONTEXT)


def sheets() -> Any:
    return DocumentGate(guard=GUARD).read([Document(page_content=TEXT)])


def turn() -> Any:
    return Turn.begun(Gate(guard=GUARD), [HumanMessage(TEXT)])


def reading() -> Any:
    return read({"messages": [HumanMessage(TEXT)]})


@pytest.mark.parametrize(
    "made", [passage, documents, sheets, turn, reading], ids=lambda made: made.__name__
)
def test_no_text_is_in_a_repr(made: Callable[[], Any]) -> None:
    value = made()
    assert value
    assert TEXT not in repr(value)


class Quoting:
    """An argument that cannot be written, and says so in its own words."""

    def __str__(self) -> str:
        raise ValueError(TEXT)


def test_an_error_about_arguments_brings_no_other_error_along() -> None:
    call = {"function": {"name": "f", "arguments": {"query": Quoting()}}}
    with pytest.raises(ConversationError, match=r"JSON \(ValueError\)") as caught:
        read_message(AIMessage("", additional_kwargs={"tool_calls": [call]}))
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
