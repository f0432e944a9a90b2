"""The servers that other tests rely on do what they are said to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engines.recipe import Recipe
from tests.servers.asking import ASK, REFUSED, TALK, Messages, chat, complete, content
from tests.servers.exchange import Reply, Request, Response
from tests.servers.loopback import LoopbackServer
from tests.servers.processes import running_tiny
from tests.servers.quirks import (
    CHATTING,
    LLAMA_CPP,
    NO_LOGPROBS,
    SGLANG,
    TRANSFORMERS_SERVE,
    VLLM,
    WRONG_TEMPLATE,
    Quirks,
    truncating,
)
from tests.servers.tiny import TinyServer

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

FORMAT = r"Safety: (?:Safe|Unsafe)\nCategories: None"

THREE = pytest.mark.parametrize("messages", [ASK, REFUSED, TALK], ids=["ask", "refused", "talk"])


@pytest.fixture(scope="module")
def vllm() -> Iterator[TinyServer]:
    with TinyServer(VLLM) as server:
        yield server


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe()


async def echo(request: Request) -> Reply:
    return Response.of({"path": request.path, "length": len(request.body)})


class TestLoopback:
    def test_it_counts_and_remembers(self) -> None:
        with LoopbackServer(echo) as server, httpx.Client(base_url=server.url) as client:
            client.post("/a", json={"x": 1}, headers={"X-Key": "secret"})
            client.get("/b")
        assert [(r.method, r.path) for r in server.requests] == [("POST", "/a"), ("GET", "/b")]
        assert server.requests[0].json == {"x": 1}
        assert server.requests[0].headers["x-key"] == "secret"
        assert (server.traffic.opened, server.traffic.requests) == (1, 2)

    def test_it_comes_back_on_the_same_port(self) -> None:
        with LoopbackServer(echo) as server:
            url = server.url
            with server.paused(), pytest.raises(httpx.ConnectError):
                httpx.get(url)
            assert httpx.get(url).status_code == 200
            assert server.url == url

    def test_stopping_breaks_open_connections(self) -> None:
        with LoopbackServer(echo) as server, httpx.Client(base_url=server.url) as client:
            client.get("/")
            with server.paused():
                pass
            assert client.get("/").status_code == 200
            assert server.traffic.opened == 2

    async def test_it_holds_300_connections(self) -> None:
        everyone_is_here = asyncio.Event()

        async def answer(request: Request) -> Reply:
            if server.traffic.in_flight == 300:
                everyone_is_here.set()
            await everyone_is_here.wait()
            return Response()

        with LoopbackServer(answer) as server:
            limits = httpx.Limits(max_connections=300)
            async with httpx.AsyncClient(limits=limits, timeout=60) as client:
                replies = await asyncio.gather(*(client.get(server.url) for _ in range(300)))
        assert {reply.status_code for reply in replies} == {200}
        assert server.traffic.most_open == server.traffic.most_in_flight == 300

    def test_its_own_mistakes_are_not_hidden(self) -> None:
        async def answer(request: Request) -> Reply:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), LoopbackServer(answer) as server:
            assert httpx.get(server.url).status_code == 500


class TestTiny:
    @THREE
    def test_it_answers_as_the_model_card_has_it(
        self, vllm: TinyServer, recipe: Recipe, messages: Messages
    ) -> None:
        prompt = recipe.rendered(messages)
        reply = chat(vllm.url, messages)
        assert content(reply) == recipe.answers([prompt])[0]
        assert reply.json()["usage"]["prompt_tokens"] == len(prompt)
        assert complete(vllm.url, prompt).json()["choices"][0]["text"] == content(reply)

    @THREE
    def test_tokenize_renders_messages(
        self, vllm: TinyServer, recipe: Recipe, messages: Messages
    ) -> None:
        told = httpx.post(f"{vllm.url}/tokenize", json={"messages": messages}).json()
        assert told["tokens"] == recipe.rendered(messages)
        text = httpx.post(f"{vllm.url}/detokenize", json={"tokens": told["tokens"]}).json()
        assert text["prompt"] == recipe.tokenizer.apply_chat_template(messages, tokenize=False)

    def test_labels_get_the_log_probabilities_of_the_model(
        self, vllm: TinyServer, recipe: Recipe
    ) -> None:
        prompt, labels = recipe.rendered(ASK), [435, 25, 740]
        reply = complete(
            vllm.url,
            prompt,
            max_tokens=1,
            logprobs=0,
            logprob_token_ids=labels,
            return_tokens_as_token_ids=True,
        )
        told = reply.json()["choices"][0]["logprobs"]["top_logprobs"][0]
        torch = pytest.importorskip("torch")
        with torch.inference_mode():
            logits = recipe.model(torch.tensor([prompt])).logits[0, -1]
        expected = {f"token_id:{label}": float(logits.log_softmax(-1)[label]) for label in labels}
        assert told == pytest.approx(expected, abs=1e-3)

    def test_top_logprobs_begin_with_the_chosen_token(self, vllm: TinyServer) -> None:
        steps = chat(vllm.url, ASK, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]
        assert [step["token"] for step in steps["content"]][:3] == ["Safety", ":", " Unsafe"]
        for step in steps["content"]:
            values = [top["logprob"] for top in step["top_logprobs"]]
            assert values == sorted(values, reverse=True)
            assert step["top_logprobs"][0]["token"] == step["token"]
            assert len(values) == 3

    def test_a_regex_constrains(self, vllm: TinyServer) -> None:
        reply = chat(vllm.url, ASK, structured_outputs={"regex": "(?:AB|CD)12"})
        assert content(reply) in {"AB12", "CD12"}
        assert content(chat(vllm.url, ASK, guided_regex="AB")).startswith("Safety:")

    @pytest.mark.parametrize(
        ("options", "status", "words"),
        [
            ({"model": "nope"}, 404, "`nope` does not exist"),
            ({"logprobs": True, "top_logprobs": 21}, 400, "max allowed: 20"),
            (
                {"messages": [{"role": "user", "content": "x " * 3000}]},
                400,
                "length is 2048 tokens",
            ),
            ({"messages": []}, 400, "at least one message"),
            ({"structured_outputs": {"regex": "((("}}, 400, "invalid regex"),
            ({"temperature": 1}, 400, "greedily"),
        ],
        ids=["model", "top", "long", "empty", "regex", "temperature"],
    )
    def test_it_refuses(
        self, vllm: TinyServer, options: dict[str, Any], status: int, words: str
    ) -> None:
        reply = chat(vllm.url, **{"messages": ASK, **options})
        assert reply.status_code == status
        assert words in reply.json()["error"]["message"]

    def test_a_key_is_asked_for(self) -> None:
        with TinyServer(key="k") as server:
            assert httpx.get(f"{server.base_url}/models").status_code == 401
            headers = {"Authorization": "Bearer k"}
            assert httpx.get(f"{server.base_url}/models", headers=headers).status_code == 200

    def test_it_runs_as_a_process(self) -> None:
        with running_tiny("SGLANG") as server:
            models = httpx.get(f"{server.base_url}/models").json()["data"]
        assert [model["owned_by"] for model in models] == ["sglang"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)


class TestQuirks:
    def test_sglang_judges_a_reply_as_a_prompt(self) -> None:
        with TinyServer(SGLANG) as server:
            assert "Refusal" not in content(chat(server.url, REFUSED))

    def test_sglang_continues_behind_the_generation_prompt(self, vllm: TinyServer) -> None:
        messages = [*REFUSED, {"role": "assistant", "content": "Safety:"}]
        with TinyServer(SGLANG) as server:
            written = content(chat(server.url, messages, continue_final_message=True))
        assert f"Safety:{written}" == content(chat(vllm.url, REFUSED))

    def test_sglang_ignores_what_vllm_calls_it(self) -> None:
        with TinyServer(SGLANG) as server:
            free = chat(server.url, ASK, structured_outputs={"regex": "AB"}, model="any")
            held = chat(server.url, ASK, regex="AB")
            labels = complete(server.url, [5], max_tokens=1, logprobs=2, logprob_token_ids=[1])
            tokens = httpx.post(f"{server.url}/tokenize", json={"messages": ASK})
        assert (content(free)[:7], content(held)) == ("Safety:", "AB")
        assert len(labels.json()["choices"][0]["logprobs"]["top_logprobs"][0]) == 2
        assert tokens.status_code == 400

    @pytest.mark.parametrize("quirks", [TRANSFORMERS_SERVE, LLAMA_CPP], ids=["serve", "llama.cpp"])
    def test_some_take_no_token_ids(self, quirks: Quirks) -> None:
        with TinyServer(quirks) as server:
            assert complete(server.url, [5, 6]).status_code == 400
            assert complete(server.url, "Hello", max_tokens=2).status_code == 200

    def test_transformers_serve_refuses_unknown_fields(self) -> None:
        with TinyServer(TRANSFORMERS_SERVE) as server:
            assert chat(server.url, ASK, structured_outputs={"regex": "AB"}).status_code == 422
            reply = chat(server.url, ASK, logprobs=True, top_logprobs=3)
        assert "logprobs" not in reply.json()["choices"][0]

    def test_without_the_template_it_chats(self) -> None:
        with TinyServer(CHATTING) as server:
            assert content(chat(server.url, ASK)).startswith("That's a great question!")
            assert content(
                chat(server.url, ASK, max_tokens=40, structured_outputs={"regex": FORMAT})
            ).startswith("Safety:")

    def test_no_logprobs(self) -> None:
        with TinyServer(NO_LOGPROBS) as server:
            reply = chat(server.url, ASK, logprobs=True, top_logprobs=3)
        assert reply.json()["choices"][0]["logprobs"] is None

    def test_a_wrong_template_judges_a_reply_as_a_prompt(self) -> None:
        with TinyServer(WRONG_TEMPLATE) as server:
            assert "Refusal" not in content(chat(server.url, REFUSED))

    def test_truncation_shows_in_the_usage_only(self, vllm: TinyServer) -> None:
        with TinyServer(truncating(50)) as server:
            reply = chat(server.url, ASK)
        assert reply.status_code == 200
        assert reply.json()["usage"]["prompt_tokens"] == 50
        assert chat(vllm.url, ASK).json()["usage"]["prompt_tokens"] > 50
