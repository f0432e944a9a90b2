"""Bodies of the OpenAI interface as vLLM 0.32 writes them, from what a model generated."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.servers.quirks import Errors
from tests.servers.tiny_model import Step, TinyModel


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        message: What went wrong.
        param: The field of the request that is at fault.
        value: What that field held.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, value: object = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.value = value

    def body(self, style: Errors) -> object:
        """The error as a server words it."""
        if style is Errors.DETAIL:
            return {"detail": self.message}
        error = {
            "message": self.message + self._place if style is Errors.VLLM else self.message,
            "type": "NotFoundError" if self.status == 404 else "BadRequestError",
            "param": self.param,
            "code": self.status,
        }
        return {"object": "error", **error} if style is Errors.SGLANG else {"error": error}

    @property
    def _place(self) -> str:
        if self.param is None or self.status != 400:
            return ""
        value = "" if self.value is None else f", value={self.value}"
        return f" (parameter={self.param}{value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request wants to be told about the tokens of an answer."""

    top: int | None = None
    """How many log-probabilities a token; None for none at all."""
    labels: tuple[int, ...] | None = None
    """The tokens whose log-probabilities are told in place of the likeliest ones."""
    as_ids: bool = False
    """Whether tokens are called `token_id:N`."""
    ids: bool = False
    """Whether the ids of prompt and answer are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """An answer, and what it answers."""

    model: TinyModel = field(repr=False)
    prompt: Sequence[int]
    steps: Sequence[Step]

    @property
    def tokens(self) -> list[int]:
        return [step.token for step in self.steps]

    @property
    def text(self) -> str:
        return self.model.decode(self.tokens)

    @property
    def finish_reason(self) -> str:
        ended = bool(self.steps) and self.steps[-1].token == self.model.end
        return "stop" if ended else "length"


def chat_choice(answer: Generated, wanted: Wanted) -> dict[str, Any]:
    message = {
        "role": "assistant",
        "content": answer.text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    return {
        "index": 0,
        "message": message,
        "logprobs": None if wanted.top is None else {"content": _chat_logprobs(answer, wanted)},
        "finish_reason": answer.finish_reason,
        "stop_reason": None,
        "token_ids": answer.tokens if wanted.ids else None,
        "routed_experts": None,
    }


def completion_choice(index: int, answer: Generated, wanted: Wanted) -> dict[str, Any]:
    return {
        "index": index,
        "text": answer.text,
        "logprobs": None if wanted.top is None else _completion_logprobs(answer, wanted),
        "finish_reason": answer.finish_reason,
        "stop_reason": None,
        "token_ids": answer.tokens if wanted.ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": list(answer.prompt) if wanted.ids else None,
        "routed_experts": None,
    }


def body(
    kind: str, name: str, choices: Sequence[Mapping[str, Any]], answers: Sequence[Generated]
) -> dict[str, Any]:
    """A whole answer of `chat.completion` or `text_completion`."""
    prompt = sum(len(answer.prompt) for answer in answers)
    completion = sum(len(answer.steps) for answer in answers)
    prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
    return {
        "id": f"{prefix}-{uuid.uuid4().hex[:16]}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
        "choices": list(choices),
        "service_tier": None,
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }


def _chat_logprobs(answer: Generated, wanted: Wanted) -> list[dict[str, Any]]:
    return [
        {
            **_entry(answer.model, step.token, step, wanted),
            "bytes": list(answer.model.token(step.token).encode()),
            "top_logprobs": [
                _entry(answer.model, token, step, wanted)
                for token in _told(step, wanted)
                if wanted.top or wanted.labels
            ],
        }
        for step in answer.steps
    ]


def _entry(model: TinyModel, token: int, step: Step, wanted: Wanted) -> dict[str, Any]:
    name = _name(model, token, wanted)
    return {
        "token": name,
        "logprob": float(step.logprobs[token]),
        "bytes": list(name.encode()),  # of `token_id:N` too, where tokens are called that
    }


def _completion_logprobs(answer: Generated, wanted: Wanted) -> dict[str, Any]:
    model = answer.model
    names = [_name(model, step.token, wanted) for step in answer.steps]
    return {
        "text_offset": [sum(map(len, names[:i])) for i in range(len(names))],
        "token_logprobs": [float(step.logprobs[step.token]) for step in answer.steps],
        "tokens": names,
        "top_logprobs": [_by_name(model, step, wanted) for step in answer.steps],
    }


def _by_name(model: TinyModel, step: Step, wanted: Wanted) -> dict[str, float]:
    """By token; of several tokens that read the same the likeliest stays."""
    named: dict[str, float] = {}
    for token in _told(step, wanted):
        named.setdefault(_name(model, token, wanted), float(step.logprobs[token]))
    return named


def _told(step: Step, wanted: Wanted) -> list[int]:
    """The tokens whose log-probabilities are told: the chosen one first, then those asked for."""
    if wanted.labels is not None:
        return list(dict.fromkeys([step.token, *wanted.labels]))
    return list(dict.fromkeys([step.token, *step.likeliest[: wanted.top or 0]]))


def _name(model: TinyModel, token: int, wanted: Wanted) -> str:
    return f"token_id:{token}" if wanted.as_ids else model.token(token)
