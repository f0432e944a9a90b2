"""What a guard says about itself: the values that it takes, and how it is drawn."""

from itertools import pairwise
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import ChatPromptValueConcrete, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable
from pydantic import TypeAdapter, ValidationError

from guardrails_qwen import Stage
from integrations.langchain.tests.doubles import EchoModel, Guarding
from langchain_guardrails_qwen import GuardRunnable

PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])

Chain = Runnable[Any, Any]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("hi", id="text"),
        pytest.param(HumanMessage("hi"), id="message"),
        pytest.param([HumanMessage("hi"), AIMessage("hello")], id="list"),
        pytest.param([("human", "hi"), "hello", {"role": "user", "content": "hi"}], id="forms"),
        pytest.param(StringPromptValue(text="hi"), id="string prompt"),
        pytest.param(ChatPromptValueConcrete(messages=[HumanMessage("hi")]), id="chat prompt"),
        pytest.param({"messages": [HumanMessage("hi")]}, id="state"),
        pytest.param({"question": "hi"}, id="dict"),
    ],
)
def test_the_schemas_take_what_a_guard_takes(value: Any, guarding: Guarding) -> None:
    guard = guarding(key="question")
    for schema in (guard.get_input_schema(), guard.get_output_schema()):
        assert TypeAdapter(schema).validate_python(value)


@pytest.mark.parametrize("value", [17, None, object()])
def test_the_schemas_refuse_what_a_guard_refuses(value: Any, guarding: Guarding) -> None:
    for schema in (guarding().get_input_schema(), guarding().get_output_schema()):
        with pytest.raises(ValidationError):
            TypeAdapter(schema).validate_python(value)


def kinds(schema: dict[str, Any]) -> set[str]:
    """What a schema of alternatives consists of."""
    return {
        str(kind.get("type") or kind.get("$ref", "").rpartition("/")[2] or "message")
        for kind in schema["anyOf"]
    }


def test_a_guard_alone(guarding: Guarding) -> None:
    for schema in (guarding().get_input_jsonschema(), guarding().get_output_jsonschema()):
        assert {"string", "array", "object", "StringPromptValue"} <= kinds(schema)


def plain(guard: GuardRunnable) -> Chain:
    return PROMPT | guard | EchoModel() | guard | StrOutputParser()


def with_a_pair(guard: GuardRunnable) -> Chain:
    return PROMPT | guard.wrap(EchoModel()) | StrOutputParser()


def configurable(guard: GuardRunnable) -> Chain:
    chosen: Chain = guard.configurable_fields(policy=ConfigurableField(id="policy"))
    return PROMPT | chosen | EchoModel() | chosen | StrOutputParser()


@pytest.mark.parametrize("made", [plain, with_a_pair, configurable])
def test_a_chain_takes_and_gives_what_its_ends_do(made: Any, guarding: Guarding) -> None:
    chain = made(guarding())
    assert set(chain.get_input_jsonschema()["properties"]) == {"question"}
    assert chain.get_output_jsonschema()["type"] == "string"


def test_a_chain_that_begins_and_ends_with_guards(guarding: Guarding) -> None:
    guard = guarding()
    for chain in (guard | EchoModel() | guard, guard.wrap(EchoModel())):
        assert "object" in kinds(chain.get_input_jsonschema())
        assert "object" in kinds(chain.get_output_jsonschema())


def test_types_of_ones_own(guarding: Guarding) -> None:
    typed = guarding().with_types(input_type=str, output_type=str)
    assert typed.get_input_jsonschema()["type"] == "string"
    assert typed.invoke("hi") == "hi"


def in_stages(guard: GuardRunnable) -> Chain:
    left = guard.model_copy(update={"stage": Stage.INPUT})
    right = guard.model_copy(update={"stage": Stage.OUTPUT})
    return PROMPT | left | EchoModel() | right


def in_a_pipe(guard: GuardRunnable) -> Chain:
    return PROMPT | guard | EchoModel() | guard


def pair(guard: GuardRunnable) -> Chain:
    return guard.wrap(EchoModel())


def pair_around_a_chain(guard: GuardRunnable) -> Chain:
    return guard.wrap(PROMPT | EchoModel() | StrOutputParser())


def pair_in_a_pair(guard: GuardRunnable) -> Chain:
    return guard.wrap(guard.wrap(EchoModel()))


def pair_in_a_chain(guard: GuardRunnable) -> Chain:
    return PROMPT | guard.wrap(EchoModel(), beside=True) | StrOutputParser()


DRAWN = [
    pytest.param(
        in_a_pipe,
        ["PromptInput", "ChatPromptTemplate", "guard_1", "EchoModel", "guard_2"],
        id="pipe",
    ),
    pytest.param(
        in_stages,
        ["PromptInput", "ChatPromptTemplate", "guard-input", "EchoModel", "guard-output"],
        id="stages",
    ),
    pytest.param(pair, ["Input", "guard-input", "EchoModel", "guard-output", "Output"], id="pair"),
    pytest.param(
        pair_around_a_chain,
        [
            *["Input", "guard-input", "ChatPromptTemplate", "EchoModel", "StrOutputParser"],
            *["guard-output", "Output"],
        ],
        id="pair around a chain",
    ),
    pytest.param(
        pair_in_a_pair,
        [
            *["Input", "guard-input_1", "guard-input_2", "EchoModel"],
            *["guard-output_1", "guard-output_2", "Output"],
        ],
        id="pair in a pair",
    ),
    pytest.param(
        pair_in_a_chain,
        [
            *["PromptInput", "ChatPromptTemplate", "guard-input", "EchoModel", "guard-output"],
            *["StrOutputParser", "StrOutputParserOutput"],
        ],
        id="pair in a chain",
    ),
]


@pytest.mark.parametrize(("made", "nodes"), DRAWN)
def test_a_drawing_shows_every_step_in_its_order(
    made: Any, nodes: list[str], guarding: Guarding
) -> None:
    drawn = made(guarding()).get_graph().draw_mermaid()
    edges = [line.strip(" \t;") for line in drawn.splitlines() if "-->" in line]
    expected = {f"{left} --> {right}" for left, right in pairwise(nodes)}
    assert set(edges) == expected
    assert "guard" in drawn


@pytest.mark.parametrize(("made", "nodes"), DRAWN)
def test_a_drawing_for_terminals(made: Any, nodes: list[str], guarding: Guarding) -> None:
    pytest.importorskip("grandalf", reason="LangChain draws for terminals with grandalf")
    drawn = made(guarding()).get_graph().draw_ascii()
    names = [node.rstrip("_12") for node in nodes]
    places = [drawn.index(f"| {name} |") for name in dict.fromkeys(names)]
    assert places == sorted(places)
