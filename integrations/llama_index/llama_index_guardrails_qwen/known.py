"""What a guard has let through before, so that a conversation is not judged anew at each turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from threading import Lock

from guardrails_qwen import Guard, Message

_FIRST = b"first"


class Known:
    """Digests of messages that were allowed. No text is kept.

    A digest is over a message, the one before it, and the guard's policy and model. So a reply is
    judged again behind another prompt, and everything is by another policy; a conversation of which
    the beginning was cut off is not.

    Args:
        most: How many are kept; those go first that were not looked for the longest.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._digests = OrderedDict[bytes, None]()
        self._lock = Lock()

    def __contains__(self, digest: bytes) -> bool:
        with self._lock:
            if digest not in self._digests:
                return False
            self._digests.move_to_end(digest)
            return True

    def add(self, digest: bytes) -> None:
        """This was allowed."""
        with self._lock:
            self._digests[digest] = None
            self._digests.move_to_end(digest)
            while len(self._digests) > self._most:
                self._digests.popitem(last=False)


def digests_of(messages: Sequence[Message], guard: Guard) -> list[bytes]:
    """The digest of each message of a conversation."""
    marks = [_mark(message) for message in messages]
    fingerprint = sha256(guard.fingerprint.encode()).digest()
    return [
        sha256(fingerprint + before + mark).digest()
        for before, mark in zip([_FIRST, *marks], marks, strict=False)
    ]


def _mark(message: Message) -> bytes:
    calls = [part for call in message.tool_calls for part in (call.name, call.arguments)]
    parts = [message.role.value, message.name or "", message.text, *calls, *message.images]
    return sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).digest()
