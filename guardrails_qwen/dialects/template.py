"""A checkpoint's chat template, rendered so that content stays content."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from guardrails_qwen.conversation import Conversation, Role
from guardrails_qwen.dialects.neutral import Markers
from guardrails_qwen.dialects.turns import turns
from guardrails_qwen.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a prompt. Only in `scaffold` do special tokens mean what they say."""

    text: str = field(repr=False)
    scaffold: bool


Render = Callable[[list[dict[str, str]]], str]
"""A checkpoint's chat template: role/content messages to a prompt."""

_PADDED = " \ue000 "
_SLOT = "\ue000{index}\ue001"
_SLOTS = re.compile(r"\ue000(\d+)\ue001")


class Scaffold:
    """A template's own text around and between alternating turns, a user's first.

    The template is run on placeholders, so the boundaries are known instead of searched for.
    """

    def __init__(self, render: Render) -> None:
        self.render = render
        self._of = lru_cache(maxsize=256)(self._found)

    def __call__(self, count: int) -> tuple[str, ...]:
        """The pieces for so many turns, one more than there are turns.

        Raises:
            CheckpointError: The template does not render each turn exactly once, in order.
        """
        return self._of(count)

    def _found(self, count: int) -> tuple[str, ...]:
        roles = [(Role.USER, Role.ASSISTANT)[index % 2] for index in range(count)]
        messages = [
            {"role": role.value, "content": _SLOT.format(index=index)}
            for index, role in enumerate(roles)
        ]
        parts = _SLOTS.split(self.render(messages))
        if parts[1::2] != [str(index) for index in range(count)]:
            raise CheckpointError(
                f"the chat template does not render each of {count} alternating user and "
                "assistant messages exactly once, in order: it is not a guard's"
            )
        return tuple(parts[::2])


class GuardTemplate:
    """A checkpoint's own chat template, rendered so that content stays content.

    The template is run on placeholders and the content put in afterwards, so the template can
    neither lose nor change it, and the boundaries are known instead of searched for. Section
    markers and speaker labels of the template lose their force in content: `<END CONVERSATION>`
    becomes `(END CONVERSATION)`. White space around content goes where the template strips it.

    Raises:
        CheckpointError: The template is not one of a guard: it loses messages, adds none of its own
            words, or does not distinguish prompts from responses.
    """

    def __init__(self, render: Render) -> None:
        self.render = render
        self._strips = _PADDED not in render([{"role": Role.USER.value, "content": _PADDED}])
        self.scaffold = Scaffold(render)
        prompt, response = self.scaffold(1), self.scaffold(2)
        if prompt[0] == response[0] and prompt[-1] == response[-1]:
            raise CheckpointError(
                "the chat template treats prompts and responses alike: it is not a guard's; "
                "use the one that comes with the guard's checkpoint"
            )
        self.defanged = Markers.of([*prompt, *response]).defanged

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """The prompt that asks for a verdict on the last message of a conversation."""
        said = turns(conversation)
        first, *others = self.scaffold(len(said))
        pieces = [Piece(text=first, scaffold=True)]
        for (_, text), after in zip(said, others, strict=True):
            pieces.append(Piece(text=self._content(text), scaffold=False))
            pieces.append(Piece(text=after, scaffold=True))
        return pieces

    def _content(self, text: str) -> str:
        text = self.defanged(text)
        return text.strip() if self._strips else text
