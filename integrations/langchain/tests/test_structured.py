"""Structured output of a guarded model: the inner model's own ways, on what was released."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
from langchain import agents
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
)
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from guardrails_qwen import Action, Guard, GuardViolation, Policy
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import SCRIPT, WritingModel, writing
from langchain_guardrails_qwen import GuardedChatModel

GOOD = '{"flour": 500, "note": "Knead."}'
BAD = '{"flour": 500, "note": "Add a bomb."}'
_create_agent: Any = getattr(agents, "create_agent")  # noqa: B009  its type is not known
METHODS = ["json_schema", "function_calling", "json_mode"]


class Bread(BaseModel):
    """A recipe."""

    flour: int
    note: str


class OpenAI(ChatOpenAI):
    """OpenAI's model up to where a request would be sent."""

    reply: str = GOOD
    asked: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.asked.append(kwargs)
        message = AIMessage(self.reply)
        if kwargs.get("tools"):
            call = {"name": "Bread", "args": json.loads(self.reply), "id": "1"}
            message = AIMessage("", tool_calls=[call])
        elif (schema := kwargs.get("response_format")) and isinstance(schema, type):
            message.additional_kwargs["parsed"] = Bread.model_validate_json(self.reply)
        generation = ChatGeneration(message=message)
        return ChatResult(generations=[generation], llm_output={"model_provider": "openai"})

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages, **kwargs)

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self.asked.append(kwargs)
        for n, part in enumerate(self.reply):
            name = None if n else "Bread"
            call: Any = {"name": name, "args": part, "id": None if n else "1", "index": 0}
            if kwargs.get("tools"):
                yield self._chunk("", tool_call_chunks=[call])
            else:
                yield self._chunk(part)
        if isinstance(kwargs.get("response_format"), type):
            parsed = Bread.model_validate_json(self.reply)
            yield self._chunk("", additional_kwargs={"parsed": parsed})

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any):
        for chunk in self._stream(messages, **kwargs):
            yield chunk

    @staticmethod
    def _chunk(text: str, **fields: Any) -> ChatGenerationChunk:
        metadata = {"model_provider": "openai"}
        message = AIMessageChunk(content=text, response_metadata=metadata, **fields)
        return ChatGenerationChunk(message=message)


def openai(reply: str = GOOD, model: str = "gpt-4o") -> OpenAI:
    return OpenAI(model=model, api_key=SecretStr("none"), reply=reply)


def guarded(
    inner: BaseChatModel, action: Action = Action.BLOCK, closing: str | None = None
) -> GuardedChatModel:
    return GuardedChatModel(
        inner=inner,
        guard=Guard(ScriptedEngine(SCRIPT), Policy.strict(action=action)),
        streaming=Streaming(stride=1, closing=closing),
    )


Last = Callable[[Runnable[Any, Any]], Any]


@pytest.fixture(params=["invoke", "ainvoke", "stream", "astream"])
def last(request: pytest.FixtureRequest) -> Callable[[Runnable[Any, Any]], Any]:
    """The last of what a runnable gives, asynchronously; None where it gives nothing."""

    async def run(runnable: Runnable[Any, Any]) -> Any:
        if request.param == "invoke":
            return runnable.invoke("bread?")
        if request.param == "ainvoke":
            return await runnable.ainvoke("bread?")
        if request.param == "stream":
            return next(reversed(list(runnable.stream("bread?"))), None)
        return next(reversed([item async for item in runnable.astream("bread?")]), None)

    return run


def as_dict(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


@pytest.mark.parametrize("schema", [Bread, Bread.model_json_schema()], ids=["class", "dict"])
@pytest.mark.parametrize("method", METHODS)
async def test_what_is_parsed_and_asked_is_what_the_inner_model_gives(
    method: Any, schema: Any, last: Last
) -> None:
    inner = openai()
    expected = await last(_structured(inner, schema, method=method))
    out = await last(guarded(inner).with_structured_output(schema, method=method))
    assert out == expected
    assert as_dict(out) == json.loads(GOOD)
    assert [_comparable(call) for call in inner.asked[1:]] == [_comparable(inner.asked[0])]


def _structured(model: Any, *args: Any, **kwargs: Any) -> Runnable[Any, Any]:
    return model.with_structured_output(*args, **kwargs)


def _comparable(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key not in ("run_manager",)}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_strict_is_handed_on(method: Any) -> None:
    inner = openai()
    _structured(inner, Bread, method=method, strict=True).invoke("bread?")
    guarded(inner).with_structured_output(Bread, method=method, strict=True).invoke("bread?")
    assert _comparable(inner.asked[0]) == _comparable(inner.asked[1])
    assert inner.asked[1].get("response_format") is Bread or "'strict': True" in str(inner.asked[1])


@pytest.mark.parametrize("method", METHODS)
def test_the_raw_reply_comes_too(method: Any) -> None:
    structured = guarded(openai()).with_structured_output(Bread, method=method, include_raw=True)
    out = structured.invoke("bread?")
    assert out["parsed"] == Bread(flour=500, note="Knead.")
    assert out["parsing_error"] is None
    assert isinstance(out["raw"], AIMessage)


@pytest.mark.parametrize("method", METHODS)
async def test_a_blocked_reply_is_a_violation(method: Any, last: Last) -> None:
    structured = guarded(openai(BAD)).with_structured_output(Bread, method=method)
    with pytest.raises(GuardViolation) as caught:
        await last(structured)
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize("include_raw", [False, True], ids=["parsed", "raw"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("action", "closing"),
    [(Action.BLOCK, "Closed."), (Action.REPLACE, None), (Action.REDACT, None), (Action.DROP, None)],
    ids=["closed", "replaced", "redacted", "dropped"],
)
async def test_a_reply_that_was_taken_back_is_no_output(
    action: Action, closing: str | None, method: Any, include_raw: bool, last: Last
) -> None:
    model = guarded(openai(BAD), action, closing)
    structured = model.with_structured_output(Bread, method=method, include_raw=include_raw)
    out: Any = None
    error = None
    try:
        out = await last(structured)
    except Exception as raised:  # noqa: BLE001  parsers raise what they like
        error = raised
    assert "bomb" not in f"{out!r} {error!r} {error.__context__ if error else ''!r}"
    assert not isinstance(out, Bread)
    assert not isinstance(out, dict) or not cast("dict[str, Any]", out).get("parsed")


def test_while_it_is_written_what_is_parsed_was_released() -> None:
    schema = Bread.model_json_schema()
    structured = guarded(openai('{"flour": 5, "note": "Knead it. Add a bomb. Bake."}'))
    seen = list[Any]()
    with pytest.raises(GuardViolation):
        seen.extend(structured.with_structured_output(schema, method="json_mode").stream("?"))
    assert "bomb" not in str(seen)


class Odd(WritingModel):
    """A model with structured output of its own making."""

    def with_structured_output(self, schema: Any = None, **kwargs: Any) -> Any:
        return schema(self)


class Asking:
    """Something that asks a model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, value: Any) -> Any:
        return self.model.invoke(value)

    def __call__(self, value: Any) -> Any:
        return self.ask(value)


class AskingParser(JsonOutputParser):
    """Asks a model to mend what cannot be parsed."""

    model: Any = None


def closure(model: Any) -> Any:
    def ask(value: Any) -> Any:
        return model.invoke(value)

    return RunnableLambda(ask)


def method(model: Any) -> Any:
    return RunnableLambda(model.invoke)


def part(model: Any) -> Any:
    def ask(model: Any, value: Any) -> Any:
        return model.invoke(value)

    return RunnableLambda(partial(ask, model))


def object_(model: Any) -> Any:
    return model | RunnableLambda(Asking(model).ask)


def callable_(model: Any) -> Any:
    return model | RunnableLambda(Asking(Asking(model)))


def hidden(model: Any) -> Any:
    asking: Any = model
    for _ in range(30):
        asking = partial(Asking(asking).ask)
    return model | RunnableLambda(asking)


def asked_again(model: Any) -> Any:
    return model | closure(model)


def mended(model: Any) -> Any:
    return model | AskingParser(model=model)


def branch(model: Any) -> Any:
    return RunnableBranch((bool, model), model)


def no_model(_: Any) -> Any:
    return RunnableLambda(str) | JsonOutputParser()


def alternatives(model: Any) -> Any:
    return model.configurable_alternatives(ConfigurableField(id="which"), other=model)


@pytest.mark.parametrize(
    "make",
    [
        *(closure, method, part, object_, callable_, hidden, asked_again),
        *(mended, branch, no_model, alternatives),
    ],
    ids=lambda make: make.__name__,
)
def test_what_cannot_be_rebuilt_is_an_error(make: Any) -> None:
    odd = Odd(chunks=writing("Take a bomb.").chunks)
    with pytest.raises(NotImplementedError, match="cannot be guarded") as caught:
        guarded(odd).with_structured_output(make)
    assert "bomb" not in str(caught.value)


def retried(model: Any) -> Any:
    return model.with_retry() | RunnableLambda(_text)


def with_fallback(model: Any) -> Any:
    return model.with_fallbacks([model]) | RunnableLambda(_text)


def parallel(model: Any) -> Any:
    return RunnableParallel(a=model, b=model | RunnableLambda(_text))


def mapped(model: Any) -> Any:
    return RunnableLambda(_listed) | model.bind(stop=["y"]).with_config(tags=["x"]).map()


def listened(model: Any) -> Any:
    return model.with_listeners(on_end=print)


def tooled(model: Any) -> Any:
    return model.bind(tools=[Asking(model).ask])


@pytest.mark.parametrize(
    "make",
    [retried, with_fallback, parallel, mapped, listened, tooled],
    ids=lambda make: make.__name__,
)
def test_all_that_can_be_rebuilt_is_guarded(make: Any) -> None:
    odd = Odd(chunks=writing("Take a bomb.").chunks)
    structured = guarded(odd, Action.REPLACE).with_structured_output(make)
    assert "bomb" in str(make(odd).invoke("?"))
    assert "bomb" not in str(structured.invoke("?"))


def _text(message: BaseMessage) -> str:
    return message.text


def _listed(value: str) -> list[str]:
    return [value]


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-3.5-turbo"], ids=["provider", "tool"])
def test_an_agent_structures_output_as_with_the_inner_model(name: str) -> None:
    plain, inner = openai(model=name), openai(model=name)
    for model in (plain, guarded(inner)):
        agent: Any = _create_agent(model, [], response_format=Bread)
        out = agent.invoke({"messages": "bread?"})
        assert as_dict(out["structured_response"]) == json.loads(GOOD)
    assert set(inner.asked[0]) == set(plain.asked[0])


def test_a_name_that_the_inner_model_lacks_is_lacking() -> None:
    model = guarded(writing("Hello."))
    assert not hasattr(model, "model_name")
    assert not hasattr(model, "model")
    assert not hasattr(model, "model_id")
    assert (guarded(openai()).model_name, guarded(openai()).profile) == (
        "gpt-4o",
        openai().profile,
    )
