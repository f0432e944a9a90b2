"""What can go wrong, and whose fault it is.

```text
GuardError
├── GuardViolation       the policy blocked a text: the guard works as it should
├── PolicyError          a policy, in code or in a file, is wrong              (ValueError)
├── ConversationError    what was handed in cannot be judged as it is          (ValueError)
│   └── TextTooLong      more tokens than are judged
├── CheckpointError      a model folder cannot be used
├── RequestRejected      a server will not judge this text
└── EngineError          no judgement could be had
    ├── UnreadableVerdict  the model answered outside its documented format
    ├── EngineUnavailable  the server cannot be reached, or is out of order
    │   └── EngineTimeout    … or took too long
    ├── EngineOverloaded   too many requests wait for it already
    ├── WrongServer        the server is not the guard that it was taken for
    └── EngineClosed       the engine was closed before it was asked
```

No message of these ever contains moderated text: messages end up in logs, in tool results and in
what a framework shows to a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrails_qwen.decision import Decision


class GuardError(Exception):
    """The base of everything that this library raises on purpose."""


class GuardViolation(GuardError):
    """The policy blocked a text.

    `decision` says why: verdict, rule, stage, fingerprint. It does not hold the text.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.summary)
        self.decision = decision

    def __reduce__(self) -> tuple[type[GuardViolation], tuple[Decision]]:
        return type(self), (self.decision,)


class PolicyError(GuardError, ValueError):
    """A policy is wrong; the message names the line or the path."""


class ConversationError(GuardError, ValueError):
    """What was handed in cannot be judged as it is; the message says what to change."""


class TextTooLong(ConversationError):
    """A text has more tokens than may be judged. Nothing was truncated.

    Args:
        tokens: Its length in tokens, as far as it was measured.
        limit: The most that is judged: what the model's context holds, or the limit of the windows
            that a long text is cut into.
    """

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"the text takes {tokens} tokens or more, and no more than {limit} are judged: shorten "
            "it, or split it and judge the parts"
        )
        self.tokens = tokens
        self.limit = limit

    def __reduce__(self) -> tuple[type[TextTooLong], tuple[int, int]]:
        return type(self), (self.tokens, self.limit)


class CheckpointError(GuardError):
    """A checkpoint cannot be used; the message names what is missing or wrong."""


class RequestRejected(GuardError):
    """A server will not judge a text, and the text itself may be why.

    It is too long for the server, makes it fail, or is kept from it by a firewall. So this is no
    `EngineError`: nothing that `on_error: allow` should wave through.

    `status` is what the server answered, if that is why.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[RequestRejected], tuple[str, int | None]]:
        return type(self), (str(self), self.status)


class EngineError(GuardError):
    """An engine could not judge. Never to be read as safe."""


class UnreadableVerdict(EngineError):
    """The model answered outside its documented format. Never to be read as safe.

    The answer may quote the moderated text, so it stays off the message.
    """

    def __init__(self, answer: str, reason: str = "not in the documented format") -> None:
        where = f" in an answer of {len(answer)} characters" if answer else ""
        super().__init__(f"no verdict{where}: {reason}")
        self.answer = answer
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableVerdict], tuple[str, str]]:
        return type(self), (self.answer, self.reason)


class EngineUnavailable(EngineError):
    """A server cannot be reached, or is out of order; what was asked does not matter."""


class EngineTimeout(EngineUnavailable):
    """No answer within the deadline."""


class EngineOverloaded(EngineError):
    """Too many requests wait for an engine already; nothing of this one was judged."""


class WrongServer(EngineError):
    """A server answers, but not as the guard that it was taken for; the message says what to do."""


class EngineClosed(EngineError):
    """An engine was asked after `close()`."""


def unavailable(error: object) -> bool:
    """Whether nobody could have been judged, whatever the text: what a policy may wave through.

    What is unreadable is not among it, because its author chose what the model was to read.
    """
    return isinstance(error, EngineError) and not isinstance(error, UnreadableVerdict)
