"""LangChain's own tests of chat models, on a guarded model and, to compare, on its inner one."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import SecretStr

from guardrails_qwen import Guard
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.doubles import SCRIPT
from langchain_guardrails_qwen import GuardedChatModel

pytestmark = pytest.mark.filterwarnings("ignore:.*beta")  # the third version of events

TEXT = "Hello! How are you? I can look things up."
JOKE = '{"setup": "Why do cats purr?", "punchline": "They cannot whistle."}'


class ChatPupil(BaseChatModel):
    """Does what its teachers ask: it greets, calls the first tool that fits, and writes JSON."""

    model: str = "pupil-1"
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    stop: list[str] | None = None
    max_retries: int = 2
    api_key: SecretStr | None = None
    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "chat-pupil"

    def bind_tools(self, tools: Any, *, tool_choice: str | None = None, **kwargs: Any) -> Any:
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=formatted, tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Any:
        if kwargs.get("method") != "json_mode":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        parser: Any = JsonOutputParser()
        if isinstance(schema, type):
            parser = PydanticOutputParser[Any](pydantic_object=schema)
        return self.bind(response_format={"type": "json_object"}) | parser

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        call, text = self._answer(messages, **kwargs)
        message = AIMessage(
            content=text,
            tool_calls=[{**call, "args": json.loads(call["args"])}] if call else [],
            usage_metadata=_usage(messages, text),
            response_metadata=self._named(kwargs),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages, *args, **kwargs)

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        call, text = self._answer(messages, **kwargs)
        chunks = [AIMessageChunk(content=word) for word in re.findall(r"\S+\s*", text)]
        for n, part in enumerate(call["args"] if call else ""):
            begun: Any = {**(call or {}), "args": part, "index": 0}
            later: Any = {"name": None, "id": None, "args": part, "index": 0}
            chunks.append(AIMessageChunk(content="", tool_call_chunks=[later if n else begun]))
        end = AIMessageChunk(content="", response_metadata=self._named(kwargs))
        end.usage_metadata = _usage(messages, text)
        for chunk in [*chunks, end]:
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, *args, **kwargs):
            yield chunk

    def _named(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"model_name": kwargs.get("model", self.model)}

    def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any] | None, str]:
        """A tool call, or what is said."""
        tools = [tool["function"] for tool in kwargs.get("tools") or ()]
        if tools and not isinstance(messages[-1], ToolMessage):
            choice = kwargs.get("tool_choice")
            tool = next((tool for tool in tools if tool["name"] == choice), tools[0])
            args = _arguments(tool.get("parameters", {}), messages[-1].text)
            return {"name": tool["name"], "id": "call-1", "args": json.dumps(args)}, ""
        if kwargs.get("response_format"):
            return None, JOKE
        end = "|".join(map(re.escape, stop or self.stop or ())) or "$"
        return None, re.split(end, TEXT, maxsplit=1)[0]


def _arguments(schema: dict[str, Any], text: str) -> dict[str, Any]:
    quoted = re.search("'(.+?)'", text)
    said = quoted[1] if quoted else "Pirate"
    return {
        name: 3 if field.get("type") == "integer" else said
        for name, field in schema.get("properties", {}).items()
    }


def _usage(messages: list[BaseMessage], text: str) -> UsageMetadata:
    asked, said = sum(len(m.text) for m in messages), len(text) + 1
    return UsageMetadata(input_tokens=asked, output_tokens=said, total_tokens=asked + said)


class GuardedPupil(GuardedChatModel):
    """The guarded pupil, made of what the pupil is made of. A text engine judges."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(inner=ChatPupil(**fields), guard=Guard(ScriptedEngine(SCRIPT)))


class GuardedPupilByToken(GuardedChatModel):
    """The same; an engine of tokens judges, and the prompt is judged while the pupil writes."""

    def __init__(self, **fields: Any) -> None:
        guard = Guard(ScriptedStreamEngine(SCRIPT))
        super().__init__(inner=ChatPupil(**fields), guard=guard, beside=True)


class _Unit(ChatModelUnitTests):
    """Not run: the key from the environment, and serialisation, which the pupil has not."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {}


class TestPupil(_Unit):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatPupil


class TestGuarded(_Unit):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedPupil


class TestGuardedByToken(_Unit):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedPupilByToken


class _Integration(ChatModelIntegrationTests):
    """Not run: images, audio, video and PDFs, which no text model can judge (the guard refuses
    them, see test_messages.py) and which are fetched from the network; recorded exchanges."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "pupil-2"


class TestPupilInUse(_Integration):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatPupil


class TestGuardedInUse(_Integration):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedPupil


class TestGuardedByTokenInUse(_Integration):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedPupilByToken
