"""What OpenAI-compatible servers answer, narrowed to what is used of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from guardrails_qwen.dialects.base import Step
from guardrails_qwen.errors import UnreadableVerdict

_TOKEN_ID = "token_id:"  # noqa: S105  how vLLM names a token by its number

Model = TypeVar("Model", bound=BaseModel)
_Logprob = Annotated[float, Field(le=1e-3)]
"""Natural logarithm of a probability; not NaN, which compares with nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An answer that a server wrote."""

    text: str = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    """Empty where the server gave no log-probabilities."""
    read: int | None
    """Tokens of the prompt, as the server counted them; None where it does not say."""
    tokens: int
    """Tokens that it computed, prompt included, but for those that it says were cached."""
    model: str | None
    """Who answered, as the server says; None where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """The token that a server held likeliest behind a prompt, and others."""

    likeliest: str
    logprobs: Mapping[str, float]
    read: int | None
    """Tokens of the prompt, as the server counted them."""
    model: str | None
    """Who answered, as the server says."""

    def by_id(self, texts: Mapping[str, int]) -> tuple[dict[int, float], int]:
        """Log-probabilities by token id, and the id of the likeliest; -1 for an unknown one."""
        ids = {_id(token, texts): logprob for token, logprob in self.logprobs.items()}
        return ids, _id(self.likeliest, texts)


class ServedModel(BaseModel):
    """One of the models that a server offers."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class Models(BaseModel):
    """The answer of `GET /models`."""

    data: list[ServedModel]


class Tokens(BaseModel):
    """The answer of `POST /tokenize`."""

    tokens: list[int]
    max_model_len: int | None = None


def narrowed(kind: type[Model], data: object) -> Model:
    """JSON as a model of it.

    Raises:
        UnreadableVerdict: It is of another shape. It is not quoted: it may repeat the text.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        reason = f"the server's JSON is not of the documented shape, at {where or 'its top'}"
    raise UnreadableVerdict("", reason)


def read_chat(data: object) -> Written:
    """The answer of `POST /chat/completions`.

    Raises:
        UnreadableVerdict: It is none, or was cut off.
    """
    completion = narrowed(_Chat, data)
    choice = completion.choices[0]
    text = choice.message.content
    if text is None or choice.finish_reason not in {"stop", "eos", None}:
        raise UnreadableVerdict(text or "", f"the answer ended by {_short(choice.finish_reason)}")
    steps = tuple(
        Step(text=one.token, logprobs={top.token: top.logprob for top in one.top_logprobs})
        for one in (choice.logprobs.content or () if choice.logprobs else ())
    )
    usage = completion.usage
    return Written(
        text=text,
        steps=steps,
        read=usage.prompt_tokens,
        tokens=usage.computed,
        model=completion.model,
    )


def read_next(data: object) -> Following:
    """The answer of `POST /completions` for one token with its log-probabilities.

    Raises:
        UnreadableVerdict: It is none, or has no log-probabilities.
    """
    completion = narrowed(_Completion, data)
    found = completion.choices[0].logprobs
    return Following(
        likeliest=found.tokens[0],
        logprobs=found.top_logprobs[0],
        read=completion.usage.prompt_tokens,
        model=completion.model,
    )


def read_text(data: object) -> Written:
    """The answer of `POST /completions` as text.

    Raises:
        UnreadableVerdict: It is none.
    """
    completion = narrowed(_Text, data)
    usage = completion.usage
    return Written(
        text=completion.choices[0].text,
        steps=(),
        read=usage.prompt_tokens,
        tokens=usage.computed,
        model=completion.model,
    )


def prompt_tokens(data: object) -> int | None:
    """The length of a prompt, as a server counted it in whatever it answered.

    Raises:
        UnreadableVerdict: It is no answer at all.
    """
    return narrowed(_Counted, data).usage.prompt_tokens


def _id(token: str, texts: Mapping[str, int]) -> int:
    number = token.removeprefix(_TOKEN_ID)
    return int(number) if number != token and number.isdigit() else texts.get(token, -1)


def _short(reason: str | None) -> str:
    return reason if reason in {"length", "content_filter", "tool_calls"} else "other means"


class _Cached(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None

    @property
    def computed(self) -> int:
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0
        return max(0, (self.prompt_tokens or 0) - (cached or 0)) + (self.completion_tokens or 0)


class _Counted(BaseModel):
    usage: _Usage = _Usage()


class _Top(BaseModel):
    token: str
    logprob: _Logprob


class _Token(BaseModel):
    token: str
    top_logprobs: list[_Top] = []


class _ChatLogprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None


class _Chat(BaseModel):
    model: str | None = None
    choices: Annotated[list[_ChatChoice], Field(min_length=1, max_length=1)]
    usage: _Usage = _Usage()


class _Logprobs(BaseModel):
    tokens: Annotated[list[str], Field(min_length=1)]
    top_logprobs: Annotated[list[dict[str, _Logprob]], Field(min_length=1)]


class _Choice(BaseModel):
    logprobs: _Logprobs


class _Completion(BaseModel):
    model: str | None = None
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    usage: _Usage = _Usage()


class _TextChoice(BaseModel):
    text: str


class _Text(BaseModel):
    model: str | None = None
    choices: Annotated[list[_TextChoice], Field(min_length=1, max_length=1)]
    usage: _Usage = _Usage()
