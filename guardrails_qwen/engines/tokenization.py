"""Prompts as token ids, with special tokens where the template has them and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from guardrails_qwen.dialects.template import Piece

_PROBES = (
    "a",
    "Hello there",
    " ",
    "\n",
    "\n\n",
    "  x",
    "中文",
    "1",
    ":",
    "'s",
    "\u0301",
    "<",
    "\x00",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids: the policy prefix that many prompts share, and what is a prompt's own."""

    prefix: tuple[int, ...] = field(repr=False)
    rest: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.prefix) + len(self.rest)

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return [*self.prefix, *self.rest]


class PromptEncoder:
    """Encodes prompts piece by piece with a checkpoint's tokenizer.

    A second copy of the tokenizer that knows no special tokens encodes all text, so that
    `<|im_end|>` in content becomes five or so ordinary tokens; special tokens of the scaffold are
    put in by id. Text between two special tokens is encoded in one go, content and scaffold
    together: what encoding the whole rendered prompt would give, if content has no special token.

    Args:
        tokenizer_json: A tokenizer in the format of the `tokenizers` library.
    """

    def __init__(self, tokenizer_json: str) -> None:
        state: dict[str, Any] = json.loads(tokenizer_json)
        self._special: dict[str, int] = {
            token["content"]: token["id"] for token in state["added_tokens"]
        }
        plain: dict[str, object] = {
            **state,
            "added_tokens": [],
            "truncation": None,
            "padding": None,
        }
        self.plain = Tokenizer.from_str(json.dumps(plain))
        """The copy that knows no special tokens. It is not to be changed."""
        longest_first = sorted(self._special, key=len, reverse=True)
        self.specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        """Finds special tokens in scaffold."""
        self._heads: dict[str, tuple[tuple[int, ...], str]] = {}
        self._constants: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Token ids of ordinary text; no special token can be among them."""
        return self.plain.encode(text, add_special_tokens=False).ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has by itself."""
        encodings = self.plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def token(self, id_: int) -> str:
        """The text of an ordinary token, as servers name it."""
        return self.plain.decode([id_])

    def special(self, token: str) -> int | None:
        """The id of a special token, or None if the tokenizer has none of that name."""
        return self._special.get(token)

    def prompts(self, batch: Sequence[Sequence[Piece]]) -> list[Prompt]:
        """Prompts from pieces that start with a piece of scaffold."""
        heads = [self._head(pieces[0].text) for pieces in batch]
        parts = [
            self._parts([Piece(text=tail, scaffold=True), *pieces[1:]])
            for (_, tail), pieces in zip(heads, batch, strict=True)
        ]
        texts = [part for own in parts for part in own if isinstance(part, str)]
        encodings = iter(self.plain.encode_batch_fast(texts, add_special_tokens=False))
        return [
            Prompt(
                prefix=prefix,
                rest=[
                    token
                    for part in own
                    for token in ([part] if isinstance(part, int) else next(encodings).ids)
                ],
            )
            for (prefix, _), own in zip(heads, parts, strict=True)
        ]

    def _parts(self, pieces: Sequence[Piece]) -> list[int | str]:
        """Token ids of what has no content in it, and the stretches of text that have."""
        parts: list[int | str] = []
        run, content = "", False
        for piece in pieces:
            position = 0
            for match in self.specials.finditer(piece.text) if piece.scaffold else ():
                run += piece.text[position : match.start()]
                parts += [*([run] if content else self._constant(run)), self._special[match[0]]]
                run, content, position = "", False, match.end()
            run += piece.text[position:]
            content = content or not piece.scaffold
        return [*parts, *([run] if content else self._constant(run))]

    def _constant(self, text: str) -> list[int]:
        """Token ids of a stretch of the template's own text, of which there are few."""
        if text not in self._constants:
            self._constants[text] = self.text(text)
        return self._constants[text]

    def _head(self, scaffold: str) -> tuple[tuple[int, ...], str]:
        """The part of a prompt's first piece that content cannot change, as ids; and the rest."""
        if scaffold not in self._heads:
            line = scaffold.rfind("\n") + 1
            after_special = max((m.end() for m in self.specials.finditer(scaffold)), default=0)
            cut = line if line > after_special and self._stable(scaffold, line) else after_special
            ids = tuple(self._ids(scaffold[:cut]))
            self._heads[scaffold] = ids, scaffold[cut:]
        return self._heads[scaffold]

    def _stable(self, scaffold: str, cut: int) -> bool:
        """Whether encoding may be split at `cut`, whatever follows the scaffold."""
        head = self._ids(scaffold[:cut])
        return all(
            [*head, *self.text(scaffold[cut:] + probe)] == self._ids(scaffold + probe)
            for probe in _PROBES
        )

    def _ids(self, scaffold: str) -> list[int]:
        parts = self._parts([Piece(text=scaffold, scaffold=True)])
        return [t for part in parts for t in ([part] if isinstance(part, int) else self.text(part))]
