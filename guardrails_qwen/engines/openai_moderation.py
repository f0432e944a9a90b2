"""OpenAI's moderation endpoint as an engine; it judges images as well."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from guardrails_qwen.conversation import Conversation, Message, Role
from guardrails_qwen.dialects.openai_moderation import OpenAIModeration
from guardrails_qwen.dialects.turns import turns
from guardrails_qwen.engines.base import Outcome, failure
from guardrails_qwen.engines.estimate import estimated
from guardrails_qwen.engines.health import Health
from guardrails_qwen.engines.reliability import Reliability
from guardrails_qwen.engines.remote import RemoteEngine, cut_aside
from guardrails_qwen.engines.request import Request
from guardrails_qwen.engines.transport import Address, Deadline, Transport
from guardrails_qwen.errors import EngineError, GuardError, RequestRejected, UnreadableVerdict
from guardrails_qwen.longtext import Window, Windows, windows
from guardrails_qwen.verdict import Severity, Verdict

if TYPE_CHECKING:
    from typing_extensions import Self

_HARMLESS = "What is the capital of France?"
_CHARACTERS = 50_000
"""Most text in one request; a single text may be longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """What is asked, and how its answer is read."""

    model: str
    dialect: OpenAIModeration
    windows: Windows
    batch: int


class OpenAIModerationEngine(RemoteEngine):
    """Asks `POST /moderations`, OpenAI's or that of a server that does as OpenAI documents.

    What is judged is the last turn, without what was said before: the endpoint takes no context. An
    image is asked about together with the text of its turn, one a request, since more are answered
    with `too_many_images`; a text that has to be cut is judged apart from them. The worst counts. A
    turn without a word or an image is Safe: there is nothing to ask about.

    A name that ends in `latest` is whatever model OpenAI means by it at the time. To keep verdicts
    in a cache, name one with a date.

    Args:
        api_key: OpenAI's; `from_env` reads it from the environment.
        model: One for moderation, by its name.
        base_url: With the version: `http://localhost:8000/v1`.
        headers: Sent along with every request.
        controversial: Score in 0 … 1 from which on what is not flagged is Controversial, or None.
        windows: How a long text is cut; lengths are estimated. Its history is not used.
        batch: Most texts in one request; 1 for servers that take no list of texts.
        deadline: Seconds that a call may take in all, retries included; None for any.
        max_concurrency: Requests that may be under way at once.
        reliability: Retries, circuit breaker, hedging.
        http_client: Makes the HTTP client that openai's is to use, for proxies or certificates.

    Raises:
        ValueError: A setting cannot be.
    """

    def __init__(  # noqa: PLR0913
        self,
        api_key: str | None = None,
        *,
        model: str = "omni-moderation-latest",
        base_url: str = "https://api.openai.com/v1",
        headers: Mapping[str, str] | None = None,
        controversial: float | None = None,
        windows: Windows = Windows(),
        batch: int = 32,
        deadline: float | None = 30.0,
        max_concurrency: int = 8,
        reliability: Reliability = Reliability(),
        http_client: Callable[[], Any] | None = None,
    ) -> None:
        if batch < 1 or max_concurrency < 1:
            raise ValueError("batch and max_concurrency are whole numbers from 1 on")
        address = Address(base_url=base_url, api_key=api_key, headers=dict(headers or {}))
        asking = _Asking(
            model=model,
            dialect=OpenAIModeration(controversial=controversial),
            windows=windows,
            batch=batch,
        )
        transport = partial(
            Transport, address, reliability, concurrency=max_concurrency, http_client=http_client
        )
        self.base_url = base_url
        super().__init__(
            partial(_Session, transport, reliability, asking),
            name=model,
            fingerprint=_fingerprint(base_url, asking),
            deadline=deadline,
        )

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """An engine with the key in `OPENAI_API_KEY`; other options are those of the constructor.

        Raises:
            EngineError: There is no such variable.
        """
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise EngineError("OPENAI_API_KEY is not set: set it, or give an api_key")
        return cls(key, **options)

    def __repr__(self) -> str:
        return f"OpenAIModerationEngine({self.name!r}, {self.base_url!r})"


class _Session:
    """Connections to the endpoint. Fits `Session`."""

    def __init__(
        self, transport: Callable[[], Transport], reliability: Reliability, asking: _Asking
    ) -> None:
        self._transport = transport()
        self._health = Health(reliability)
        self._asking = asking

    async def judge(
        self, conversations: Sequence[Conversation], deadline: Deadline
    ) -> list[Outcome]:
        """One outcome for each conversation, in order."""
        started = time.perf_counter()
        cut = partial(_cut, settings=self._asking.windows)
        found = [await cut_aside(cut, one) for one in conversations]
        every = (window for item in found if not isinstance(item, GuardError) for window in item)
        tried = [_Question.of(window.conversation) for window in every]
        request = Request[_Question](found=found, tried=tried)
        answers = await self._answers(request.jobs, deadline)
        return request.outcomes([answers[question] for question in request.jobs], started)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _answers(
        self, questions: Sequence[_Question], deadline: Deadline
    ) -> dict[_Question, Outcome]:
        """Outcomes for questions: texts in requests of several, images one by one."""
        said = [one for one in questions if not one.image and one.text.strip()]
        requests = [
            *(self._texts(some, deadline) for some in _packed(said, self._asking.batch)),
            *(self._image(one, deadline) for one in questions if one.image),
        ]
        empty = [one for one in questions if not one.image and not one.text.strip()]
        nothing = dict.fromkeys(empty, Verdict(severity=Severity.SAFE))
        answered = [pair for pairs in await asyncio.gather(*requests) for pair in pairs]
        return {**nothing, **dict(answered)}

    async def _texts(self, asked: Sequence[_Question], deadline: Deadline) -> _Answers:
        """Answers of one request or, where that is refused, of two halves, until one is alone.

        So a text that the server, or a firewall before it, cannot bear spares its neighbours.
        """
        try:
            results = await self._results([one.text for one in asked], len(asked), deadline)
        except (RequestRejected, UnreadableVerdict) as error:
            if len(asked) == 1:
                return [(asked[0], error)]
            half = len(asked) // 2
            parts = [self._texts(part, deadline) for part in (asked[:half], asked[half:])]
            return [answer for part in await asyncio.gather(*parts) for answer in part]
        except Exception as error:  # noqa: BLE001  whatever it is, nothing was judged
            return [(one, failure(error)) for one in asked]
        return [(one, self._read(result)) for one, result in zip(asked, results, strict=True)]

    async def _image(self, asked: _Question, deadline: Deadline) -> _Answers:
        """The answer to an image, and to the text beside it."""
        try:
            [result] = await self._results(asked.parts, 1, deadline)
        except Exception as error:  # noqa: BLE001  whatever it is, nothing was judged
            return [(asked, failure(error))]
        return [(asked, self._read(result, images=True))]

    def _read(self, result: object, *, images: bool = False) -> Outcome:
        try:
            return self._asking.dialect.read(result, images=images)
        except GuardError as error:
            return error

    async def _results(self, asked: Sequence[Any], count: int, deadline: Deadline) -> list[object]:
        """So many results, in the order of what was asked, if it is not that which fails."""
        ask = partial(self._asked, asked, count)
        return await self._health.ask(ask, partial(self._asked, [_HARMLESS], 1), deadline)

    async def _asked(self, asked: Sequence[Any], count: int, deadline: Deadline) -> list[object]:
        body = {"model": self._asking.model, "input": asked}
        answer = await self._transport.post("/moderations", body, deadline)
        results: object = None
        if isinstance(answer, dict):
            results = cast("dict[str, object]", answer).get("results")
        if not isinstance(results, list):
            raise UnreadableVerdict("", "the answer has no list of results")
        results = cast("list[object]", results)
        if len(results) != count:
            raise UnreadableVerdict("", f"{len(results)} results for {count} inputs")
        return results


@dataclass(frozen=True, slots=True)
class _Question:
    """What one result is about."""

    text: str = field(repr=False)
    image: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, window: Conversation) -> _Question:
        """What is asked about a window, which has one image at most."""
        images = [url for message in window.messages for url in message.images]
        return cls(_text(window.messages), images[0] if images else None)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """As a list of parts."""
        said = [{"type": "text", "text": self.text}] if self.text.strip() else []
        return [*said, {"type": "image_url", "image_url": {"url": self.image}}]


_Answers = list[tuple[_Question, Outcome]]


def _text(turn: Sequence[Message]) -> str:
    """A turn as it is judged, without its images."""
    spoken = tuple(replace(message, images=()) for message in turn)
    return turns(Conversation(spoken))[-1][1]


def _cut(conversation: Conversation, settings: Windows) -> list[Window]:
    """The last turn in windows: each image with the text, or alone where the text had to be cut.

    Raises:
        TextTooLong: The text has more tokens than the limit.
    """
    *_, last = [list(group) for _, group in groupby(conversation.messages, key=_side)]
    images = [url for message in last for url in message.images]
    spoken = Conversation(tuple(replace(message, images=()) for message in last))
    found = windows(spoken, estimated, settings)
    if not images:
        return found
    text = _text(last) if len(found) == 1 else ""
    shown = [Message(role=last[-1].role, text=text, images=(url,)) for url in images]
    beside = [Window(conversation=Conversation((message,))) for message in shown]
    return beside if len(found) == 1 else [*found, *beside]


def _side(message: Message) -> bool:
    return message.role is Role.ASSISTANT


def _packed(asked: Sequence[_Question], most: int) -> list[list[_Question]]:
    """Questions in requests of so many, and of not too much text."""
    packed, size = list[list[_Question]](), 0
    for one in asked:
        size += len(one.text)
        if not packed or len(packed[-1]) >= most or size > _CHARACTERS:
            packed.append([])
            size = len(one.text)
        packed[-1].append(one)
    return packed


def _fingerprint(base_url: str, asking: _Asking) -> str:
    """The model, by name and place, and how it is asked and read."""
    parts = [base_url, asking.model, asking.dialect.fingerprint]
    plain = f"openai_moderation {parts} {asking.windows!r}"
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
