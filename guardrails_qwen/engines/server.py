"""What an OpenAI-compatible server can do, found out by trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects.base import Dialect
from guardrails_qwen.dialects.qwen3guard import Qwen3Guard
from guardrails_qwen.dialects.turns import judges_response
from guardrails_qwen.engines.asking import (
    Asker,
    ChatAsker,
    ChatForm,
    TokensAsker,
    Way,
    constraint,
)
from guardrails_qwen.engines.completions import (
    Models,
    ServedModel,
    Written,
    narrowed,
    read_chat,
    read_text,
)
from guardrails_qwen.engines.prompting import Prompting
from guardrails_qwen.engines.remote_prompts import (
    LocalPrompts,
    Prompts,
    ServerPrompts,
    tokenized,
    words,
)
from guardrails_qwen.engines.transport import Deadline, Transport
from guardrails_qwen.errors import (
    EngineUnavailable,
    GuardError,
    RequestRejected,
    UnreadableVerdict,
    WrongServer,
)

_TEMPLATE = (
    "it does not apply the guard's chat template, or serves another model: serve the checkpoint "
    "with its own chat_template.jinja, and name its family by `dialect`"
)
_REPLIES = (
    "it judges a reply as if it were a prompt, because it changes the roles of messages or has "
    "another template: give the engine a `tokenizer`, so that prompts are made here"
)
_LOSES_TEXT = (
    "it does not show the model all of a message: its chat template wants another form of content, "
    "or the prompt is truncated"
)
_CONSTRAINTS = ("structured_outputs", "regex", "guided_regex")
"""Fields for a regular expression: of vLLM, of SGLang, and of vLLM before 0.12."""
_UNLIKELY = "aubergine"
"""An answer that no model gives unless it must."""
_SAMPLE = "Hello, World! 你好。 naïve 1234 😀\n\tSafety: Unsafe"
"""A text that different tokenizers cut differently."""
_TIMES = 8
_MOST = 20
"""Alternatives of a token that are asked for first."""
_CANNOT = (RequestRejected, UnreadableVerdict, WrongServer)
"""What says that a server does not do something, rather than that it is out of order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is known of a server."""

    model: str
    """The name under which it serves the guard."""
    software: str
    """As far as it tells: `vllm 0.32.0`, `sglang`; empty where it does not."""
    way: Way
    """How it is asked."""
    context: int | None
    """The longest prompt and answer together, in tokens; None where it does not say."""
    overheads: Mapping[bool, int]
    """Tokens of a prompt beside its text, at least, for responses and for prompts; empty where the
    server does not count."""
    logprobs: int = 0
    """Alternatives of each token that it tells in a chat; 0 for none, so verdicts lack scores."""
    continued: bool = False
    """Whether it takes a last assistant message for a user's unless another follows it."""
    refused: str = ""
    """Why a faster way is not taken."""
    ask: Asker = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an engine would like of a server."""

    model: str | None
    dialect: Dialect
    way: Way | None
    """None for the best there is."""
    prompting: Prompting | None


async def explore(transport: Transport, wanted: Wanted, deadline: Deadline) -> Server:
    """Try what a server can do, with harmless texts, and how it can be asked.

    Nothing is taken from its name or its version, and no option counts as understood that has had
    no effect. The first way that works is taken: tokens, then chat. An answer under a constraint
    cannot show that a model has lost its way, so that is taken only where it is asked for.

    Raises:
        WrongServer: It does not serve the guard, or not in the way that is asked for.
        EngineError: It cannot be asked at all.
    """
    return await _Explorer(transport, wanted, deadline).server()


@dataclass(frozen=True, slots=True)
class _Explorer:
    transport: Transport
    wanted: Wanted
    deadline: Deadline

    async def server(self) -> Server:
        model = await self._model()
        software = await self._software(model)
        refused = ""
        if self._may_use_tokens:
            try:
                return await self._by_tokens(model, software)
            except EngineUnavailable:
                raise
            except _CANNOT as error:
                if self.wanted.way is Way.TOKENS:
                    raise WrongServer(f"the server cannot be asked by tokens: {error}") from error
                refused = str(error)
        try:
            return replace(await self._by_chat(model, software), refused=refused)
        except WrongServer as error:
            told = isinstance(error.__cause__, RequestRejected) and model.max_model_len
            context = f", of {model.max_model_len} tokens" if told else ""
            tokens = f"; nor by tokens: {refused}" if refused else ""
            raise WrongServer(f"{error}{context}{tokens}") from error.__cause__

    @property
    def _may_use_tokens(self) -> bool:
        qwen = isinstance(self.wanted.dialect, Qwen3Guard)
        return qwen and self.wanted.way in {None, Way.TOKENS}

    async def _model(self) -> ServedModel:
        """The model to ask for, as the server lists it; as it was named where it lists none."""
        try:
            served = narrowed(Models, await self.transport.get("/models", self.deadline)).data
        except (WrongServer, RequestRejected, UnreadableVerdict):
            if self.wanted.model is None:
                raise
            return ServedModel(id=self.wanted.model)
        if self.wanted.model is None and len(served) == 1:
            return served[0]
        if self.wanted.model is not None and not served:  # as transformers serve does
            return ServedModel(id=self.wanted.model)
        named = [one for one in served if one.id == self.wanted.model]
        if not named:
            names = ", ".join(ascii(one.id[:80])[1:-1] for one in served[:8]) or "none"
            raise WrongServer(f"the server serves {names}: say which by `model`")
        return named[0]

    async def _software(self, model: ServedModel) -> str:
        if model.owned_by != "vllm":
            return (model.owned_by or "")[:40]
        try:
            version = await self.transport.get("//version", self.deadline)
        except GuardError:
            return model.owned_by
        found = version.get("version") if isinstance(version, dict) else None  # pyright: ignore
        return f"vllm {found}"[:40] if isinstance(found, str) else model.owned_by

    async def _by_tokens(self, model: ServedModel, software: str) -> Server:
        overheads: dict[bool, int] = {}
        answering = None
        prompts = await self._prompts(model.id)
        for probe in self.wanted.dialect.probes:
            ids = await prompts.ids(probe, self.deadline)
            longer = await prompts.ids(_longer(probe), self.deadline)
            _require_all_text(probe, len(ids), len(longer))
            answering = await self._require_guard(model.id, probe, ids)
            overheads[judges_response(probe)] = len(ids) - _bytes(probe)
        if isinstance(prompts, ServerPrompts):
            prompts.least = overheads
        ask = TokensAsker(
            transport=self.transport, model=model.id, prompts=prompts, answering=answering
        )
        for probe in self.wanted.dialect.probes:
            await ask(probe, self.deadline)
        return Server(
            model=model.id,
            software=software,
            way=Way.TOKENS,
            context=model.max_model_len,
            overheads=overheads,
            logprobs=_MOST,
            ask=ask,
        )

    async def _prompts(self, model: str) -> Prompts:
        if self.wanted.prompting is None:
            return await ServerPrompts.connect(
                self.transport, model, self.wanted.dialect, self.deadline
            )
        theirs: list[int] | None = None
        with suppress(*_CANNOT):  # not every server tells
            theirs = await tokenized(self.transport, model, _SAMPLE, self.deadline)
        if theirs is not None and theirs != self.wanted.prompting.encoder.text(_SAMPLE):
            raise WrongServer("its tokenizer is another one than the `tokenizer` given")
        return LocalPrompts(self.wanted.prompting)

    async def _require_guard(self, model: str, probe: Conversation, ids: list[int]) -> str | None:
        """Have a whole answer written, unforced: a model that is no guard writes something else.

        Returns who wrote it, as the server says.
        """
        body = {
            "model": model,
            "prompt": ids,
            "max_tokens": self.wanted.dialect.answer_tokens,
            "temperature": 0,
        }
        written = read_text(await self.transport.post("/completions", body, self.deadline))
        if written.read != len(ids):
            raise WrongServer(f"it read {written.read} tokens where {len(ids)} were sent")
        try:
            self.wanted.dialect.read(written.text, probe)
        except UnreadableVerdict:
            raise WrongServer(
                "the model does not answer as the guard does: it is another one, or it has another "
                "tokenizer than the one that prompts are made with"
            ) from None
        return written.model

    async def _by_chat(self, model: ServedModel, software: str) -> Server:
        form, answers = await self._chat_form(ChatForm(model=model.id), software)
        if self.wanted.way is Way.CONSTRAINED:
            form = await self._constrained(form)
        overheads, least = dict[bool, int](), dict[bool, int]()
        for probe, answer in answers.items():
            if answer.read is not None:
                response, body = judges_response(probe), form.body(self.wanted.dialect, probe)
                overheads[response] = answer.read - _bytes(probe)
                least[response] = overheads[response] - (words(body) - _words(probe))
                longer = await self._chat(form.body(self.wanted.dialect, _longer(probe)))
                _require_all_text(probe, answer.read, longer.read or 0)
        ask = ChatAsker(
            transport=self.transport,
            dialect=self.wanted.dialect,
            form=form,
            least=least,
            model=next(iter(answers.values())).model,
        )
        return Server(
            model=model.id,
            software=software,
            way=Way.CONSTRAINED if form.constraint else Way.CHAT,
            context=model.max_model_len,
            overheads=overheads,
            logprobs=form.logprobs,
            continued=form.continued,
            ask=ask,
        )

    async def _chat_form(
        self, form: ChatForm, software: str
    ) -> tuple[ChatForm, dict[Conversation, Written]]:
        """How chats have to be asked for so that every probe is answered readably."""
        answers: dict[Conversation, Written] = {}
        for probe in self.wanted.dialect.probes:
            forms = _variants(form, probe, software)
            form, answers[probe] = await self._first_readable(forms, probe)
        return form, answers

    async def _first_readable(
        self, forms: Sequence[ChatForm], probe: Conversation
    ) -> tuple[ChatForm, Written]:
        refusals = list[GuardError]()
        for form in forms:
            body = form.body(self.wanted.dialect, probe)
            try:
                written = await self._chat(body)
            except _CANNOT as error:
                cut_off = isinstance(error, UnreadableVerdict) and error.answer
                refusals += [] if cut_off else [error]
                continue
            if self._reads(written, probe):
                return replace(form, logprobs=form.logprobs if written.steps else 0), written
        if len(refusals) == len(forms):
            last = refusals[-1]
            raise WrongServer(f"the server cannot be asked by chat: {last}") from last
        raise WrongServer(_REPLIES if judges_response(probe) else _TEMPLATE)

    async def _chat(self, body: Mapping[str, Any]) -> Written:
        return read_chat(await self.transport.post("/chat/completions", body, self.deadline))

    def _reads(self, written: Written, probe: Conversation) -> bool:
        try:
            self.wanted.dialect.read(written.text, probe, written.steps)
        except UnreadableVerdict:
            return False
        return True

    async def _constrained(self, form: ChatForm) -> ChatForm:
        """With the field that has an effect: it makes a model write what none does by itself."""
        probe = self.wanted.dialect.probes[0]
        if self.wanted.dialect.regex(probe) is None:
            raise WrongServer(f"{self.wanted.dialect.name} has no regular expression of answers")
        for kind in _CONSTRAINTS:
            body = form.body(self.wanted.dialect, probe) | constraint(kind, _UNLIKELY)
            with suppress(*_CANNOT):
                if (await self._chat(body)).text.strip() == _UNLIKELY:
                    return replace(form, constraint=kind)
        raise WrongServer(
            "the server takes no regular expression, or ignores it: let `way` be chat or tokens"
        )


def _variants(form: ChatForm, probe: Conversation, software: str) -> list[ChatForm]:
    """Ways to ask for a probe: replies as they are, or continued; else log-probabilities first.

    Not every family's answer shows whether a reply was judged as one, so what calls itself SGLang
    is asked for replies in the way that is right there.
    """
    if judges_response(probe):
        forms = [form, replace(form, continued=True)]
        return forms[::-1] if software.startswith("sglang") else forms
    return [replace(form, logprobs=logprobs) for logprobs in (_MOST, 5, 0)]


def _longer(probe: Conversation) -> Conversation:
    """The same, with more to say."""
    return probe.with_last_text(" ".join([probe.last.text] * _TIMES))


def _require_all_text(probe: Conversation, tokens: int, longer: int) -> None:
    """Refuse a server for which a longer text makes no longer prompt. A word is a token at least.

    Raises:
        WrongServer: It loses text.
    """
    if longer - tokens < (_TIMES - 1) * len(probe.last.text.split()):
        raise WrongServer(_LOSES_TEXT)


def _words(probe: Conversation) -> int:
    return sum(len(message.judged_text.split()) for message in probe.messages)


def _bytes(probe: Conversation) -> int:
    """More tokens than the text of a conversation can have."""
    return sum(len(message.judged_text.encode()) for message in probe.messages)
