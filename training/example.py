"""A labelled conversation, and the answer that the model is taught to give for it."""

from collections.abc import Sequence
from dataclasses import dataclass

SAFE, CONTROVERSIAL, UNSAFE = "Safe", "Controversial", "Unsafe"
SEVERITIES = (SAFE, CONTROVERSIAL, UNSAFE)

VIOLENT = "Violent"
ILLEGAL = "Non-violent Illegal Acts"
SEXUAL = "Sexual Content or Sexual Acts"
PII = "PII"
SELF_HARM = "Suicide & Self-Harm"
UNETHICAL = "Unethical Acts"
POLITICAL = "Politically Sensitive Topics"
COPYRIGHT = "Copyright Violation"
JAILBREAK = "Jailbreak"
NONE = "None"
HARMS = (VIOLENT, ILLEGAL, SEXUAL, PII, SELF_HARM, UNETHICAL, POLITICAL, COPYRIGHT, JAILBREAK)
CATEGORIES = (*HARMS, NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Turns that alternate user, assistant, … and the judgement of the last one.

    `refusal` is `None` where the last turn is a prompt, or where nobody labelled the reply: the
    Refusal line then takes no part in the loss.
    """

    turns: tuple[str, ...]
    severity: str = SAFE
    category: str = NONE
    refusal: bool | None = None
    source: str = "synthetic"

    @property
    def judges_reply(self) -> bool:
        """Whether the response branch of the template is the one that renders this."""
        return len(self.turns) % 2 == 0

    @property
    def flagged(self) -> bool:
        """Whether strict mode counts this as harmful."""
        return self.severity != SAFE

    def messages(self) -> list[dict[str, str]]:
        """The turns as chat messages."""
        return messages(self.turns)

    def answer(self) -> str:
        """The lines to be written, as far as they are known."""
        lines = f"Safety: {self.severity}\nCategories: {self.category}"
        if self.refusal is None:
            return lines
        return f"{lines}\nRefusal: {'Yes' if self.refusal else 'No'}"


def messages(turns: Sequence[str]) -> list[dict[str, str]]:
    """Chat messages from turns that alternate, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
