"""Replies that were taken back are refusals where LangChain looks for one, and stay readable."""

import importlib.util
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.messages.block_translators import PROVIDER_TRANSLATORS
from langchain_core.messages.content import KNOWN_BLOCK_TYPES
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import OpenAIRefusalError
from pydantic import BaseModel, SecretStr

from guardrails_qwen import Action, EngineError, Guard, OnError, Policy, Severity, Verdict
from guardrails_qwen.streaming import Streaming
from guardrails_qwen.testing import FailingEngine, ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import SCRIPT, Door, WritingModel, writing
from langchain_guardrails_qwen import GuardedChatModel

HARMFUL = "Sure, here it is. Take a bomb and light it. Then run away. Goodbye."
CLOSING = "The rest was removed."

known = pytest.mark.skipif(
    "refusal" not in KNOWN_BLOCK_TYPES, reason="this langchain-core knows no refusals"
)


def guarded(
    inner: BaseChatModel, action: Action = Action.BLOCK, engine: Any = None, **policy: Any
) -> GuardedChatModel:
    return GuardedChatModel(
        inner=inner,
        guard=Guard(engine or ScriptedEngine(SCRIPT), Policy.strict(action=action, **policy)),
        streaming=Streaming(stride=1, closing=CLOSING),
    )


def provided(provider: str | None, text: str = HARMFUL) -> WritingModel:
    """A model of a provider, whose name is in every chunk, as those of partners are."""
    model = writing(text)
    metadata = {"model_provider": provider} if provider else {}
    chunks = [c.model_copy(update={"response_metadata": metadata}) for c in model.chunks]
    return WritingModel(chunks=chunks)


def added(out: list[Any]) -> Any:
    """One message of all that came."""
    total = out[0]
    for chunk in out[1:]:
        total += chunk
    return message_chunk_to_message(total) if isinstance(total, AIMessageChunk) else total


@known
@pytest.mark.parametrize(
    "action", [Action.BLOCK, Action.REPLACE, Action.DROP], ids=lambda action: action.label
)
@pytest.mark.parametrize("provider", [None, "somebody", "openai", "anthropic", "groq"])
async def test_a_refusal_ends_the_blocks(provider: str | None, action: Action, door: Door) -> None:
    message = added(await door(guarded(provided(provider), action), "how?"))
    assert "bomb" not in message.text
    assert [block["type"] for block in message.content_blocks][-1] == "refusal"
    said = [block["text"] for block in message.content_blocks if block["type"] == "text"]
    assert "".join(said) == message.text


@known
@pytest.mark.parametrize("provider", sorted({"", *PROVIDER_TRANSLATORS}))
def test_the_blocks_of_every_provider(provider: str) -> None:
    message = guarded(provided(provider), Action.REPLACE).invoke("how?")
    stored = AIMessage(**message.model_dump(exclude={"type"}))
    assert stored.content_blocks[-1]["type"] == "refusal"


@pytest.mark.parametrize("provider", [None, "openai", "anthropic"])
async def test_the_closing_text_is_what_is_read(provider: str | None, door: Door) -> None:
    model = guarded(provided(provider))
    message = added(await door(model, "how?"))
    assert isinstance(message.content, str)
    assert message.text.endswith(CLOSING)
    assert message.response_metadata["finish_reason"] == "content_filter"
    text = "".join(await door(model | StrOutputParser(), "how?"))
    assert text.endswith(CLOSING)
    assert "bomb" not in text


@pytest.mark.parametrize("provider", [None, "openai", "anthropic"])
async def test_a_reply_that_passes_is_no_refusal(provider: str | None, door: Door) -> None:
    message = added(await door(guarded(provided(provider, "Take flour.")), "bread?"))
    assert [block["type"] for block in message.content_blocks] == ["text"]
    assert "content_filter" not in str(message)


@pytest.mark.parametrize("provider", [None, "openai"])
async def test_a_reply_that_was_redacted_is_no_refusal(provider: str | None, door: Door) -> None:
    message = added(await door(guarded(provided(provider), Action.REDACT), "how?"))
    assert "bomb" not in message.text
    assert message.text.endswith("Goodbye.")
    assert [block["type"] for block in message.content_blocks] == ["text"]


async def test_parsers_say_that_there_is_nothing_to_parse(door: Door) -> None:
    errors = importlib.import_module("langchain_core.exceptions")
    structured = guarded(provided("anthropic", '{"recipe": "bomb"}')) | JsonOutputParser()
    streams = "stream" in door.__name__ or "transform" in door.__name__
    if not hasattr(errors, "ModelRefusalError") and streams:
        assert await door(structured, "how?") == []
        return
    error = getattr(errors, "ModelRefusalError", OutputParserException)
    with pytest.raises(error) as caught:
        await door(structured, "how?")
    assert "bomb" not in repr(caught.value)


class Recipe(BaseModel):
    """How to do something."""

    step: str


class OpenAI(ChatOpenAI):
    """OpenAI's model up to where a request would be sent."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        generation = ChatGeneration(message=AIMessage(HARMFUL))
        return ChatResult(generations=[generation], llm_output={"model_provider": "openai"})

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        yield from (ChatGenerationChunk(message=chunk) for chunk in provided("openai").chunks)


@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_openais_own_parser_knows_a_refusal(method: str) -> None:
    inner = OpenAI(model="gpt-4o", api_key=SecretStr("none"))
    structured = guarded(inner).with_structured_output(Recipe, method="json_schema")
    with pytest.raises(OpenAIRefusalError, match="The rest was removed"):
        list(structured.stream("how?")) if method == "stream" else structured.invoke("how?")


@known
@pytest.mark.filterwarnings("ignore:.*beta")
async def test_events_of_the_third_version_hold_the_closing_text() -> None:
    model: Any = guarded(provided("anthropic"))
    stream = model.stream_events("how?", version="v3")
    events = str(list(stream))
    assert "bomb" not in events
    assert CLOSING in events
    assert stream.output.text.endswith(CLOSING)


@pytest.mark.skipif(
    importlib.util.find_spec("langchain.agents.middleware.model_refusal") is None,
    reason="this langchain has no middleware for refusals",
)
def test_an_agent_can_treat_it_as_an_error() -> None:
    agents: Any = importlib.import_module("langchain.agents")
    middleware: Any = importlib.import_module("langchain.agents.middleware.model_refusal")
    errors: Any = importlib.import_module("langchain_core.exceptions")
    agent = agents.create_agent(
        guarded(provided(None)), [], middleware=[middleware.ModelRefusalMiddleware()]
    )
    with pytest.raises(errors.ModelRefusalError):
        agent.invoke({"messages": "how?"})


def refusing(text: str) -> Verdict:
    """What a guard's model says of a reply that refuses."""
    return Verdict(severity=Severity.SAFE, refusal="cannot" in text)


@pytest.mark.parametrize(
    ("text", "noted"),
    [("I cannot help with that.", True), ("Take flour.", False)],
    ids=["refusal", "help"],
)
async def test_a_refusal_that_the_guard_reads_is_noted(text: str, noted: bool, door: Door) -> None:
    engine = ScriptedEngine(lambda conversation: refusing(conversation.last.text))
    out = await door(guarded(writing(text), engine=engine), "how?")
    message = added(out)
    assert message.text == text
    notes = {"refusal": True} if noted else None
    assert message.response_metadata.get("guardrails_qwen") == notes


async def test_what_no_verdict_says_is_not_noted(door: Door) -> None:
    engine = ScriptedStreamEngine(SCRIPT)
    message = added(await door(guarded(writing("I cannot help."), engine=engine), "how?"))
    assert "guardrails_qwen" not in message.response_metadata


async def test_a_reply_that_nobody_judged_says_so(door: Door) -> None:
    model = guarded(writing("Hello."), engine=FailingEngine(), on_error=OnError.ALLOW)
    message = added(await door(model, "how?"))
    assert message.text == "Hello."
    assert message.response_metadata["guardrails_qwen"] == {"judged": False}


async def test_a_reply_that_was_taken_back_unjudged_says_so(door: Door) -> None:
    engine = ScriptedEngine({"Hello": EngineError("out of order")})
    message = added(await door(guarded(writing("Hello."), engine=engine), "how?"))
    assert message.text == CLOSING
    assert message.response_metadata["guardrails_qwen"] == {"judged": False}


async def test_a_reply_to_what_nobody_judged_says_so(door: Door) -> None:
    engine = ScriptedEngine({"how?": EngineError("out of order")})
    model = guarded(writing("Hello."), engine=engine, on_error=OnError.ALLOW)
    message = added(await door(model, "how?"))
    assert message.text == "Hello."
    assert message.response_metadata["guardrails_qwen"] == {"judged": False}
