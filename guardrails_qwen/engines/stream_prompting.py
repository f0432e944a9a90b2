"""Conversations as Qwen3Guard-Stream reads them: the plain chat format, without instructions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from guardrails_qwen.conversation import Role
from guardrails_qwen.dialects.template import Piece, Scaffold
from guardrails_qwen.dialects.turns import Turn
from guardrails_qwen.engines.incremental import TextEncoder
from guardrails_qwen.engines.prompting import Tokenizer
from guardrails_qwen.engines.tokenization import PromptEncoder
from guardrails_qwen.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPrompt:
    """A conversation up to where the reply begins, as token ids."""

    prompt: tuple[int, ...] = field(repr=False)
    """Up to the token that closes the last user turn, which is where the prompt is judged."""
    opening: tuple[int, ...] = field(repr=False)
    """What opens the reply, as far as no reply can change its tokens."""
    head: str
    """What is left of that: text that is encoded together with the reply."""

    @property
    def ids(self) -> list[int]:
        """All tokens in front of the reply but those of `head`."""
        return [*self.prompt, *self.opening]


@dataclass(frozen=True, kw_only=True)
class StreamPrompting:
    """What turns conversations and replies into tokens.

    The checkpoint's chat template is run on placeholders and the content put in afterwards, so the
    boundaries are known instead of searched for, and no special token in a text is one.
    """

    scaffold: Scaffold
    encoder: PromptEncoder
    texts: TextEncoder
    digest: str
    """Template and tokenizer, exactly."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> StreamPrompting:
        """From a loaded tokenizer.

        Raises:
            CheckpointError: It has no fast tokenizer or no chat template, or one of them works in
                a way that is not reproduced here.
        """
        if not tokenizer.is_fast:
            raise CheckpointError("the checkpoint has no tokenizer.json, which this engine reads")
        if not isinstance(tokenizer.chat_template, str):
            raise CheckpointError("the tokenizer has no chat template: use the checkpoint's own")
        backend = str(tokenizer.backend_tokenizer.to_str())
        described = json.dumps([tokenizer.chat_template, backend]).encode()
        encoder = PromptEncoder(backend)
        prompting = cls(
            scaffold=Scaffold(_render(tokenizer)),
            encoder=encoder,
            texts=TextEncoder(encoder.plain),
            digest=hashlib.sha256(described).hexdigest()[:16],
        )
        prompting._require_same(tokenizer)
        return prompting

    def opened(self, said: Sequence[Turn]) -> StreamPrompt:
        """What stands in front of the reply to alternating turns, of which the last is a user's."""
        first, *after = self.scaffold(len(said) + 1)
        pieces = [Piece(text=first, scaffold=True)]
        for (_, text), behind in zip(said, after, strict=False):
            pieces += [Piece(text=text, scaffold=False), Piece(text=behind, scaffold=True)]
        closing, opening, head = self._parted(pieces.pop().text)
        pieces.append(Piece(text=closing, scaffold=True))
        return StreamPrompt(
            prompt=tuple(self._ids(pieces)),
            opening=tuple(self._ids([Piece(text=opening, scaffold=True)])),
            head=head,
        )

    def _parted(self, between: str) -> tuple[str, str, str]:
        """What closes the last user turn, what opens the reply, and what the reply may join."""
        specials = list(self.encoder.specials.finditer(between))
        if not specials:
            raise CheckpointError("the chat template closes a user's turn with no special token")
        closed, opened = specials[0].end(), specials[-1].end()
        return between[:closed], between[closed:opened], between[opened:]

    def _ids(self, pieces: Sequence[Piece]) -> list[int]:
        return self.encoder.prompts([pieces])[0].ids if any(p.text for p in pieces) else []

    def _require_same(self, tokenizer: Tokenizer) -> None:
        """Compare with the model card's way of encoding, on text without special tokens."""
        for said in (
            ["Hello, how are you?\n"],
            ["你好。 What's 2+2?", "It's 4.\n\nBye", "Thanks "],
        ):
            given = [(role, text) for role, text in zip(_ROLES, said, strict=False)]
            reply = "First, let's see: 谢谢 1.\n\nOk"
            messages = [{"role": role.value, "content": text} for role, text in given]
            messages.append({"role": Role.ASSISTANT.value, "content": reply})
            prompt = self.opened(given)
            growing = self.texts.growing(prompt.head)
            ours = [*prompt.ids, *(t.id for t in [*growing.feed(reply), *growing.finish()])]
            rendered = self.scaffold.render(messages)
            theirs: Any = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            if theirs[: len(ours)] != ours:
                raise CheckpointError(
                    "this tokenizer encodes conversations in a way that this engine does not "
                    "reproduce; please report the checkpoint"
                )


_ROLES = (Role.USER, Role.ASSISTANT, Role.USER)


def _render(tokenizer: Any) -> Any:
    def render(messages: list[dict[str, str]]) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise CheckpointError(f"the chat template fails: {error}") from error

    return render
