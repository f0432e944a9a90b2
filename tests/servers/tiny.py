"""An OpenAI-compatible server on loopback around the bundled checkpoint.

It renders with the checkpoint's own chat template and runs the model, so its answers are those of a
real server. Bodies and errors are vLLM 0.32's, which tests/serving compares it with; `Quirks` make
it behave like others. It decodes greedily and does not stream.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import regex

from tests.servers import formats
from tests.servers.exchange import Request, Response
from tests.servers.formats import Generated, Refused, Wanted
from tests.servers.loopback import LoopbackServer
from tests.servers.quirks import VLLM, Errors, Quirks, Regex, Reply
from tests.servers.tiny_model import CHECKPOINT, Wish, tiny_model, worker

Body = dict[str, Any]
Route = Callable[[Body], Response]

_MOST_LOGPROBS = 20
_MOST_LABELS = 128
_OPENAI_FIELDS = re.compile(
    "audio|best_of|chat_template_kwargs|echo|frequency_penalty|function_call|functions|"
    "generation_config|logit_bias|logprobs|max_completion_tokens|max_tokens|messages|metadata|"
    "modalities|model|n|parallel_tool_calls|prediction|presence_penalty|prompt|reasoning_effort|"
    "response_format|seed|service_tier|stop|store|stream|stream_options|suffix|temperature|"
    "tool_choice|tools|top_logprobs|top_p|user|web_search_options"
)


class TinyApi:
    """Answers requests; what a `TinyServer` serves, and a `FaultyServer` when it behaves.

    Args:
        quirks: The kind of server.
        name: The model's name on the server.
        context: The most tokens of prompt and answer together.
        key: The API key that every request has to bring, if any.
    """

    def __init__(
        self,
        quirks: Quirks = VLLM,
        *,
        name: str = "tiny",
        context: int = 2048,
        key: str | None = None,
    ) -> None:
        self.quirks = quirks
        self.name = name
        self.context = context
        self._key = key

    async def __call__(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(worker(), self.respond, request)

    def respond(self, request: Request) -> Response:
        """The answer to a request. On the model's thread only."""
        if self._key and request.headers.get("authorization") != f"Bearer {self._key}":
            return Response.of({"error": "Unauthorized"}, 401)
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = any(path == request.path for _, path in self._routes)
            missing = (405, "Method Not Allowed") if known else (404, "Not Found")
            return Response.of({"detail": missing[1]}, missing[0])
        try:
            return route(_body(request) if request.method == "POST" else {})
        except Refused as refused:
            return Response.of(refused.body(self.quirks.errors), refused.status)

    @property
    def _routes(self) -> Mapping[tuple[str, str], Route]:
        quirks = self.quirks
        routes: dict[tuple[str, str], Route] = {
            ("GET", "/health"): lambda _: Response(),
            ("GET", "/v1/models"): lambda _: Response.of(self._models()),
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
        }
        if quirks.owned_by == "vllm":
            routes["GET", "/version"] = lambda _: Response.of({"version": "0.32.0"})
        if quirks.tokenizes:
            routes["POST", "/tokenize"] = self._tokenize
            routes["POST", "/detokenize"] = _detokenize
        if quirks.model_info:
            routes["GET", "/get_model_info"] = lambda _: Response.of({"model_path": self.name})
        return routes

    def _models(self) -> Body:
        model: Body = {
            "id": self.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": self.quirks.owned_by,
            "root": str(CHECKPOINT),
            "parent": None,
        }
        context = {"max_model_len": self.context} if self.quirks.tells_context else {}
        models = [{**model, **context}] if self.quirks.lists_models else []
        return {"object": "list", "data": models}

    def _chat(self, body: Body) -> Response:
        self._check(body)
        top, asked = body.get("top_logprobs"), bool(body.get("logprobs"))
        if top and not asked:
            raise Refused(
                400, "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs"
            )
        wanted = self._wanted(body, (top or 0) if asked else None)
        answer = self._generated(self._cut(self._prompt(body)), body, self._chat_wish(body))
        choice = formats.chat_choice(answer, wanted)
        whole = formats.body("chat.completion", self.name, [choice], [answer])
        ids = list(answer.prompt) if wanted.ids else None
        return self._told({**whole, "prompt_logprobs": None, "prompt_token_ids": ids})

    def _completions(self, body: Body) -> Response:
        self._check(body)
        prompts = self._prompts(body.get("prompt"))
        wanted = self._wanted(body, body.get("logprobs"))
        wish = self._wish(body)
        answers = [self._generated(prompt, body, wish) for prompt in prompts]
        choices = [formats.completion_choice(i, answer, wanted) for i, answer in enumerate(answers)]
        return self._told(formats.body("text_completion", self.name, choices, answers))

    def _told(self, body: Body) -> Response:
        return Response.of(_without_null(body) if self.quirks.terse else body)

    def _tokenize(self, body: Body) -> Response:
        self._check_model(body)
        model = tiny_model()
        if isinstance(body.get("prompt"), str):
            ids = model.encode(body["prompt"])
        elif self.quirks.tokenizes_messages and "messages" in body:
            ids = self._prompt(body)
        else:
            raise Refused(400, "1 validation error: body.prompt: Field required", "body.prompt")
        strings = model.tokenizer.convert_ids_to_tokens(ids)
        return Response.of(
            {
                "count": len(ids),
                "max_model_len": self.context,
                "tokens": ids,
                "token_strs": strings if body.get("return_token_strs") else None,
            }
        )

    def _prompt(self, body: Body) -> list[int]:
        """What a chat request's messages are rendered to."""
        messages, model = _messages(body), tiny_model()
        continued = bool(body.get("continue_final_message"))
        behind = ""
        if self.quirks.reply is Reply.USER and messages[-1]["role"] == "assistant":
            last = messages.pop()
            if continued:
                behind = last["content"]
            else:
                messages.append({**last, "role": "user"})
            continued = False
        elif continued and body.get("add_generation_prompt", True):
            raise Refused(
                400, "continue_final_message and add_generation_prompt are not compatible."
            )
        ids = model.render(messages, template=self.quirks.template, continued=continued)
        return [*ids, *model.encode(behind)]

    def _prompts(self, prompt: Any) -> list[list[int]]:
        """One prompt or several, as text or token ids."""
        items = cast("list[Any]", prompt) if isinstance(prompt, list) else [prompt]
        if items and all(isinstance(item, int) for item in items):
            items = [items]
        if not items or not all(items):
            raise Refused(400, "You must pass at least one prompt")
        if not self.quirks.id_prompts and not isinstance(prompt, str):
            raise Refused(400, "prompt must be a string.")
        return [self._ids(item) for item in items]

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return self._cut(tiny_model().encode(prompt))
        ids: list[int] = prompt
        for token in ids:
            if not 0 <= token < tiny_model().vocabulary:
                raise Refused(400, f"Token id {token} is out of vocabulary")
        return ids

    def _generated(self, prompt: list[int], body: Body, wish: Wish) -> Generated:
        if self.quirks.keeps is not None:
            prompt = prompt[-self.quirks.keeps :]
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        room = self.context - len(prompt) if self.quirks.checks_length else 64
        if room < 0:
            raise Refused(400, self._too_long(len(prompt)), "input_tokens", len(prompt))
        most = room if most is None else min(most, room)
        if most < 1:
            message = f"max_tokens must be at least 1, got {most}."
            raise Refused(400, message, "max_tokens", most)
        try:
            steps = tiny_model().generate(tuple(prompt), most, wish)
        except regex.error as error:
            raise Refused(400, "Grammar error: invalid regex") from error
        return Generated(model=tiny_model(), prompt=prompt, steps=steps)

    def _cut(self, ids: list[int]) -> list[int]:
        """Text is not tokenized further than to see that it is too long."""
        return ids[: self.context + 1] if self.quirks.errors is Errors.VLLM else ids

    def _too_long(self, tokens: int) -> str:
        if self.quirks.errors is Errors.SGLANG:
            return (
                f"The input ({tokens} tokens) is longer than the model's context length "
                f"({self.context} tokens)."
            )
        bound = "at least " if tokens == self.context + 1 else ""
        return (
            f"This model's maximum context length is {self.context} tokens. However, your prompt "
            f"contains {bound}{tokens} input tokens, which exceeds this limit even without any "
            "output tokens. Please reduce the length of the input prompt."
        )

    def _wish(self, body: Body) -> Wish:
        if self.quirks.regex is Regex.REGEX:
            return Wish(pattern=body.get("regex"))
        if self.quirks.regex is Regex.STRUCTURED_OUTPUTS:
            outputs: Body = body.get("structured_outputs") or {}
            choices: list[str] = outputs.get("choice") or []
            return Wish(pattern=outputs.get("regex") or "|".join(map(re.escape, choices)) or None)
        return Wish()

    def _chat_wish(self, body: Body) -> Wish:
        wish, says = self._wish(body), self.quirks.says
        if says is None or wish.pattern is not None:
            return wish
        return Wish(script=tuple(tiny_model().encode(says)))

    def _wanted(self, body: Body, top: int | None) -> Wanted:
        if not self.quirks.logprobs:
            return Wanted()
        if not self.quirks.by_token_id:
            return Wanted(top=top)
        if top is not None and not 0 <= top <= _MOST_LOGPROBS:
            message = _greater("sample logprobs of", top, _MOST_LOGPROBS)
            raise Refused(400, message, "logprobs", top)
        labels = body.get("logprob_token_ids")
        if labels is not None and top is None:
            raise Refused(
                400, "when using `logprob_token_ids`, `logprobs` must be set.", "logprob_token_ids"
            )
        if labels is not None and len(labels) > _MOST_LABELS:
            message = _greater("logprob_token_ids of length", len(labels), _MOST_LABELS)
            raise Refused(400, message, "logprob_token_ids", len(labels))
        unknown = [label for label in labels or () if not 0 <= label < tiny_model().vocabulary]
        if unknown:
            message = (
                f"token_id(s) {unknown} in logprob_token_ids contain out-of-vocab token ids. "
                f"Vocabulary size: {tiny_model().vocabulary}"
            )
            raise Refused(400, message, "logprob_token_ids", unknown)
        return Wanted(
            top=top,
            labels=None if labels is None else tuple(labels),
            as_ids=bool(body.get("return_tokens_as_token_ids")),
            ids=bool(body.get("return_token_ids")),
        )

    def _check(self, body: Body) -> None:
        unknown = {name for name in body if not _OPENAI_FIELDS.fullmatch(name)}
        if self.quirks.checks_fields and unknown:
            raise Refused(422, f"Unexpected fields in the request: {unknown}")
        self._check_model(body)
        sampled = 0 if self.quirks.errors is Errors.DETAIL else 1
        if body.get("temperature", sampled) != 0 or body.get("stream") or body.get("echo"):
            raise Refused(400, "this server decodes greedily; it neither streams nor echoes")
        if body.get("n", 1) != 1:
            raise Refused(400, f"n must be 1 when using greedy sampling, got {body['n']}.")

    def _check_model(self, body: Body) -> None:
        model = body.get("model", self.name)
        if not self.quirks.checks_model or model == self.name:
            return
        if self.quirks.errors is Errors.DETAIL:
            raise Refused(400, f"Server is pinned to '{self.name}'; requested '{model}'.")
        message = f"The model `{model}` does not exist. Valid aliases: {self.name}."
        raise Refused(404, message, "model")


class TinyServer(LoopbackServer):
    """Serves the bundled checkpoint; `with TinyServer(SGLANG) as server: server.base_url`."""

    def __init__(
        self,
        quirks: Quirks = VLLM,
        *,
        name: str = "tiny",
        context: int = 2048,
        key: str | None = None,
    ) -> None:
        self.api = TinyApi(quirks, name=name, context=context, key=key)
        super().__init__(self.api)


def _detokenize(body: Body) -> Response:
    return Response.of({"prompt": tiny_model().decode(body["tokens"], special=True)})


def _body(request: Request) -> Body:
    try:
        body: object = request.json
    except ValueError as error:
        raise Refused(400, "1 validation error: JSON decode error", "body") from error
    if not isinstance(body, dict):
        raise Refused(400, "1 validation error: Input should be an object", "body")
    return cast("Body", body)


def _messages(body: Body) -> list[dict[str, Any]]:
    """Messages with the text of their parts joined.

    Raises:
        Refused: There are none, or one has no text.
    """
    messages: list[dict[str, Any]] = body.get("messages") or []
    if not messages:
        raise Refused(400, "Provide at least one message.")
    return [{**message, "content": _text(message.get("content"))} for message in messages]


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = cast("list[dict[str, Any]]", content)
        return "\n".join(part["text"] for part in parts if part.get("type") == "text")
    if not isinstance(content, str):
        raise Refused(400, "1 validation error: Input should be a valid string", "body.messages")
    return content


def _without_null(value: Any) -> Any:
    """JSON without the fields that are null."""
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value).items()
        return {name: _without_null(entry) for name, entry in entries if entry is not None}
    if isinstance(value, list):
        return [_without_null(entry) for entry in cast("list[Any]", value)]
    return value


def _greater(what: str, asked: int, most: int) -> str:
    return f"Requested {what} {asked}, which is greater than max allowed: {most}"
