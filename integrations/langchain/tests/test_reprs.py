"""What a guard has at hand while it judges shows no text where it is written to a log."""

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

TEXT = "xyzzy"
GUARD = Guard(ScriptedEngine({}), Policy.strict())
MESSAGES = [HumanMessage(TEXT)]
DOCUMENT = Document(page_content=TEXT)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Passage.of(TEXT, Place(), None, None, None), id="passage"),
        pytest.param(DocumentPassage.of([DOCUMENT], GUARD, Stage.CONTEXT), id="documents"),
        pytest.param(DocumentGate(guard=GUARD).read([DOCUMENT]), id="sheets"),
        pytest.param(Turn.begun(Gate(guard=GUARD), [*MESSAGES]), id="turn"),
        pytest.param(read({"messages": MESSAGES}), id="reading"),
    ],
)
def test_no_text_is_in_a_repr(value: Any) -> None:
    assert value is not None
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
