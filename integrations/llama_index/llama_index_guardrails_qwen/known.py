"""What a guard has decided before, so that a conversation is not judged anew at each turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from guardrails_qwen import Decision, Guard, Message
from llama_index_guardrails_qwen.remembered import Remembered

_FIRST = b"first"


class Known:
    """Digests of messages, and whether they were allowed. Copies share them.

    Digests are of two kinds, both over the guard's policy and model as well. That of a `Prefix` is
    over everything before a message: what is judged now is known by that alone, since what came
    before may be what makes it harmful, and so is what was refused. That of `digests_of` is over
    the message before it only: what was allowed in the past is known by that too, so that it is not
    judged anew where the beginning of a conversation was cut off.

    No text is kept but what a redaction has left.

    Args:
        most: How many are kept; those go first that were not looked for the longest.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._found = Remembered[Decision | bool](most)

    def __contains__(self, digest: bytes) -> bool:
        """Whether this was allowed."""
        return self._found.get(digest) is True

    def refused(self, digest: bytes) -> Decision | None:
        """What was decided about something that was not allowed; None: nothing, or it was."""
        found = self._found.get(digest)
        return found if isinstance(found, Decision) else None

    def add(self, digest: bytes, refused: Decision | None = None) -> None:
        """This was allowed, or refused."""
        self._found.put(digest, refused or True)


class Prefix:
    """Everything before a message, as a digest that grows."""

    def __init__(self, guard: Guard, messages: Sequence[Message] = ()) -> None:
        self._digest = sha256(f"prefix {guard.fingerprint}".encode()).digest()
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        """One more message, of which pictures do not matter to what follows."""
        self._digest = self.then(replace(message, images=()))

    def then(self, message: Message) -> bytes:
        """The digest of a message that follows."""
        return sha256(self._digest + _mark(message)).digest()


def digests_of(messages: Sequence[Message], guard: Guard) -> list[bytes]:
    """The digest of each message of a conversation, behind the words of the one before it."""
    marks = [_mark(message) for message in messages]
    before = [_mark(replace(message, images=())) for message in messages]
    fingerprint = sha256(guard.fingerprint.encode()).digest()
    return [
        sha256(fingerprint + behind + mark).digest()
        for behind, mark in zip([_FIRST, *before], marks, strict=False)
    ]


def _mark(message: Message) -> bytes:
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    parts = [message.role.value, message.name, message.text, calls, message.images]
    return sha256(json.dumps(parts).encode()).digest()
