"""What the remote engine relies on in transformers serve; the tests' double does the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.servers.asking import ASK, REFUSED, TALK, Messages, chat, complete, content
from tests.servers.processes import RealServer
from tests.servers.quirks import TRANSFORMERS_SERVE
from tests.servers.tiny import TinyServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

VARIES = ("id", "created", "model")


@pytest.fixture(scope="module")
def double(transformers_serve: RealServer) -> Iterator[TinyServer]:
    with TinyServer(TRANSFORMERS_SERVE, name=transformers_serve.model) as server:
        yield server


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (ASK, {}),
        (REFUSED, {}),
        (TALK, {}),
        (ASK, {"max_tokens": 3}),
        (ASK, {"logprobs": True, "top_logprobs": 3}),
        (ASK, {"response_format": {"type": "json_object"}}),
        ([{"role": "user", "content": "word " * 2100}], {"max_tokens": 2}),
    ],
    ids=["prompt", "reply", "history", "cut", "logprobs", "json", "long"],
)
def test_the_double_answers_alike(
    transformers_serve: RealServer, double: TinyServer, messages: Messages, options: dict[str, Any]
) -> None:
    model = transformers_serve.model
    real = chat(transformers_serve.url, messages, model=model, **options).json()
    assert _constant(real) == _constant(chat(double.url, messages, model=model, **options).json())


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"structured_outputs": {"regex": "AB"}}, 422),
        ({"guided_regex": "AB"}, 422),
        ({"continue_final_message": True}, 422),
        ({"model": "nope"}, 400),
    ],
    ids=["structured", "guided", "continue", "model"],
)
def test_what_is_refused(
    transformers_serve: RealServer, double: TinyServer, options: dict[str, Any], status: int
) -> None:
    asked = {"model": transformers_serve.model, **options}
    real = chat(transformers_serve.url, ASK, **asked)
    assert real.status_code == status
    assert real.json() == chat(double.url, ASK, **asked).json()


def test_prompts_are_strings(transformers_serve: RealServer, double: TinyServer) -> None:
    for server in (transformers_serve, double):
        model = transformers_serve.model
        assert complete(server.url, [5, 6], model=model).status_code == 400
        assert complete(server.url, "Hello", model=model, max_tokens=2).status_code == 200


def test_it_lists_no_model(transformers_serve: RealServer, double: TinyServer) -> None:
    for server in (transformers_serve, double):
        assert httpx.get(f"{server.base_url}/models").json()["data"] == []


def test_a_reply_is_judged_as_a_reply(transformers_serve: RealServer) -> None:
    judged = content(chat(transformers_serve.url, REFUSED, model=transformers_serve.model))
    assert judged.splitlines()[-1] == "Refusal: Yes"


def _constant(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in VARIES}
