"""Conversations as token ids, by a checkpoint's own tokenizer and chat template. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from guardrails_qwen.conversation import Conversation
from guardrails_qwen.dialects import qwen3guard
from guardrails_qwen.dialects.template import GuardTemplate
from guardrails_qwen.dialects.token_tree import TokenTree, build
from guardrails_qwen.engines.tokenization import Prompt, PromptEncoder
from guardrails_qwen.errors import CheckpointError

TINY = "tiny"
"""The name of the bundled checkpoint that judges whole texts."""
TINY_STREAM = "tiny-stream"
"""The name of the bundled checkpoint that judges replies while they grow."""

_CHECKPOINTS = Path(str(files("guardrails_qwen"))) / "checkpoints"
_BUNDLED = {TINY: _CHECKPOINTS / "tiny-gen", TINY_STREAM: _CHECKPOINTS / "tiny-stream"}


_Messages = Sequence[Mapping[str, object]]
_Apply = Callable[[_Messages], str]


class Tokenizer(Protocol):
    """What is used of the library's tokenizers, whose own types say little."""

    chat_template: object
    eos_token_id: object
    is_fast: bool
    backend_tokenizer: Any

    def apply_chat_template(self, conversation: _Messages, *, tokenize: bool) -> object: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, object]: ...


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What turns a conversation into the prompt that asks a checkpoint for a verdict on it."""

    template: GuardTemplate
    encoder: PromptEncoder
    end: int
    """Id of the token that ends a turn."""
    digest: str
    """Template and tokenizer, exactly."""
    demonstration: bool = False
    """Whether they belong to the bundled checkpoint, which protects nobody."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Prompting:
        """From a folder, a name on the model hub, or `tiny`. Loads no weights.

        Raises:
            CheckpointError: There is none, or its chat template is not a guard's.
        """
        with readable_errors(model), quiet():
            source = source_of(model, needed=("tokenizer.json",))
            options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
            auto: Any = AutoTokenizer
            return cls.of(auto.from_pretrained(source, **options), bundled=is_bundled(source))

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, bundled: bool = False) -> Prompting:
        """From a loaded tokenizer.

        Raises:
            CheckpointError: Its chat template is not a guard's, or it encodes in a way that is not
                reproduced here.
        """
        if not tokenizer.is_fast:
            raise CheckpointError("the checkpoint has no tokenizer.json, which this engine reads")
        backend = str(tokenizer.backend_tokenizer.to_str())
        described = json.dumps([str(tokenizer.chat_template), backend]).encode()
        prompting = cls(
            template=_template(tokenizer),
            encoder=PromptEncoder(backend),
            end=_end(tokenizer),
            digest=hashlib.sha256(described).hexdigest()[:16],
            demonstration=bundled,
        )
        prompting._require_same_prompt(tokenizer)
        return prompting

    def prompts(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        """The prompt for each conversation."""
        return self.encoder.prompts([self.template.pieces(one) for one in conversations])

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Lengths in tokens, as the texts will be in a prompt."""
        return self.encoder.lengths(list(map(self.template.defanged, texts)))

    def overhead(self, *, response: bool) -> int:
        """Tokens of a prompt beside its text."""
        empty = Conversation.exchange("", "") if response else Conversation.of("")
        return len(self.prompts([empty])[0])

    def tree(self, *, response: bool) -> TokenTree:
        """The answers of Qwen3Guard-Gen in this tokenizer's tokens."""
        answer = qwen3guard.answer_format(response=response)
        return build(
            {values: answer.write(values) for values in answer.answers},
            self.encoder.text,
            end=self.end,
            resolve=len(qwen3guard.EXPECTED),
            expected=qwen3guard.EXPECTED,
        )

    def _require_same_prompt(self, tokenizer: Tokenizer) -> None:
        """Compare with the model card's way of encoding, on text without special tokens."""
        for conversation in (
            Conversation.of("Hello, how are you?\n"),
            Conversation.exchange("你好。 What's 2+2?", " It's 4.\n\nBye"),
        ):
            [prompt] = self.prompts([conversation])
            messages = [
                {"role": message.role.value, "content": message.text}
                for message in conversation.messages
            ]
            rendered = self.template.render(messages)
            if tokenizer(rendered, add_special_tokens=False)["input_ids"] != prompt.ids:
                raise CheckpointError(
                    "this tokenizer encodes prompts in a way that this engine does not reproduce; "
                    "please report the checkpoint"
                )


def source_of(model: str | Path, *, needed: Sequence[str]) -> str:
    """Where a checkpoint is: a folder that has every file needed, or a name on the model hub.

    Args:
        model: A folder, a name on the hub, `tiny` or `tiny-stream`.
        needed: Patterns of files that a folder must have.

    Raises:
        CheckpointError: There is no such folder, or it lacks a file.
    """
    model = _BUNDLED.get(str(model), model)
    path = Path(model).expanduser()
    if not path.exists():
        if isinstance(model, Path) or str(model).startswith((".", "/", "~")):
            raise CheckpointError(f"there is no checkpoint folder {path}")
        return str(model)
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the folder that holds config.json")
    for pattern in needed:
        if not any(path.glob(pattern)):
            name = pattern.replace("*.", "a .") + (" file" if "*" in pattern else "")
            raise CheckpointError(f"the checkpoint folder {path} lacks {name}")
    return str(path)


def is_bundled(source: str) -> bool:
    """Whether a source is a bundled checkpoint."""
    return Path(source) in _BUNDLED.values()


@contextmanager
def readable_errors(model: str | Path) -> Generator[None]:
    """What a library finds wrong with a checkpoint, as `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the checkpoint {model} cannot be loaded: {error}") from error


@contextmanager
def quiet() -> Generator[None]:
    """Without progress bars, which are another library's idea of what belongs on a terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _template(tokenizer: Tokenizer) -> GuardTemplate:
    if not isinstance(tokenizer.chat_template, str):
        raise CheckpointError(
            "the tokenizer has no chat template: the guard's instructions are in it; use the "
            "checkpoint's own chat_template.jinja"
        )

    def applied(messages: _Messages) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except (TemplateError, TypeError, ValueError) as error:
            raise CheckpointError(f"the chat template fails: {error}") from error

    def in_parts(messages: _Messages) -> str:
        return applied(
            [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        )

    return GuardTemplate(in_parts if _wants_parts(applied, in_parts) else applied)


def _wants_parts(applied: _Apply, in_parts: _Apply) -> bool:
    """Whether a template reads content as a list of parts, and loses a text or fails on it."""
    word = "\ue000"
    asked = [{"role": "user", "content": word}]

    def shows(render: _Apply) -> bool:
        try:
            return word in render(asked)
        except CheckpointError:
            return False

    return not shows(applied) and shows(in_parts)


def _end(tokenizer: Tokenizer) -> int:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise CheckpointError("the tokenizer names no end-of-sequence token")
    return end
