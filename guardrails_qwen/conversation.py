"""What was said, and by whom: the only form in which text reaches an engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, cast

from guardrails_qwen.errors import ConversationError


class Role(str, Enum):
    """Who speaks. The names are those of the OpenAI chat format."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that an assistant asked for. `arguments` is JSON text, as the model wrote it."""

    name: str = field(repr=False)
    arguments: str = field(default="{}", repr=False)
    id: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require_text(self.name, "the name of a tool call")
        _require_text(self.arguments, "the arguments of a tool call")
        if self.id is not None and not _identifies(self.id):
            raise ConversationError(
                "the id of a tool call is not one: text would go unjudged there"
            )

    @property
    def judged_text(self) -> str:
        """The call as the safety model reads it, JSON escapes undone: none can hide a word.

        The arguments are not parsed for it: parsing loses fields that are given twice, and what it
        cannot read it would leave escaped.
        """
        return f"{self.name}({_unescaped(self.arguments)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. Its repr gives lengths only, so that a log line never quotes it."""

    role: Role
    text: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = field(default=None, repr=False)
    """The speaker, or the tool that answered."""
    images: tuple[str, ...] = field(default=(), repr=False)
    """Pictures, as `https:` or `data:image/…;base64,` URLs. Few models can judge them, and a text
    model refuses the message: see `judged_text`."""

    def __post_init__(self) -> None:
        if not isinstance(self.role, Role):  # pyright: ignore[reportUnnecessaryIsInstance]
            object.__setattr__(self, "role", _role(self.role))
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        _require_text(self.text, f"the text of a {self.role.value} message")
        if self.name is not None:
            _require_text(self.name, f"the name of a {self.role.value} message")
        object.__setattr__(self, "images", tuple(self.images))
        for url in self.images:
            _require_image(url)

    def __repr__(self) -> str:
        calls = f", {len(self.tool_calls)} tool calls" if self.tool_calls else ""
        images = f", {len(self.images)} images" if self.images else ""
        return f"Message({self.role.value}, {len(self.text)} characters{calls}{images})"

    @property
    def judged_text(self) -> str:
        """All that a safety model has to read of this turn: name, text and tool calls.

        Raises:
            ConversationError: There are images, which nobody can judge by reading.
        """
        require_text([self])
        said = f"{self.name}: {self.text}" if self.name else self.text
        return "\n".join([*([said] if said else []), *(c.judged_text for c in self.tool_calls)])

    def to_dict(self) -> dict[str, Any]:
        """The message in the OpenAI chat format; `Message.of` reads it back."""
        message: dict[str, Any] = {"role": self.role.value, "content": self._content()}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message

    def _content(self) -> str | list[dict[str, Any]]:
        if not self.images:
            return self.text
        said = [{"type": "text", "text": self.text}] if self.text else []
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        return [*said, *shown]

    @classmethod
    def of(cls, value: MessageLike) -> Message:
        """A message from a text, a `(role, content)` pair or an OpenAI chat message.

        Content may be a text, None, or a list of parts: those of text are joined by a newline,
        those of images (`image_url`, `input_image`) become `images`.

        Raises:
            ConversationError: The role is unknown, or a field or part holds something that no model
                here can judge (audio, say). Nothing is skipped silently.
        """
        if isinstance(value, Message):
            return value
        if isinstance(value, str):
            return cls(role=Role.USER, text=value)
        if isinstance(value, Mapping):
            return _from_openai(value)
        if isinstance(value, tuple) and len(value) == 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            return _from_openai({"role": value[0], "content": value[1]})
        raise ConversationError(
            f"a message cannot be made of {type(value).__name__}: pass a text, a (role, content) "
            "pair, a dict with 'role' and 'content', or a Message"
        )


MessageLike = str | Message | Mapping[str, Any] | tuple[str, Any]
"""What `Message.of` takes."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, at least one. The last is the one that is judged; the others are context."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        if not self.messages:
            raise ConversationError("a conversation needs at least one message")

    @classmethod
    def of(cls, value: ConversationLike) -> Conversation:
        """A conversation from a text, a message, or a list of messages in any form.

        A tuple whose first item is the name of a role is one message.

        Raises:
            ConversationError: See `Message.of`; the message names the position.
        """
        if isinstance(value, Conversation):
            return value
        if isinstance(value, (str, Message)) or _is_pair(value):
            return cls((Message.of(cast("MessageLike", value)),))
        if isinstance(value, Mapping):
            fields = cast("Mapping[str, Any]", value)
            if "messages" not in fields:
                return cls((Message.of(fields),))
            _require_understood(fields, {"messages"}, "a conversation")
            return cls._of_messages(fields["messages"])
        return cls._of_messages(value)

    @classmethod
    def _of_messages(cls, value: object) -> Conversation:
        if isinstance(value, (str, Mapping, Message)):
            return cls((Message.of(cast("MessageLike", value)),))
        if isinstance(value, (bytes, bytearray)) or not hasattr(value, "__iter__"):
            raise ConversationError(
                f"a conversation cannot be made of {type(value).__name__}: pass a text or a list "
                "of messages"
            )
        return cls(tuple(_numbered(cast("Iterable[MessageLike]", value))))

    @classmethod
    def exchange(cls, prompt: str, response: str) -> Conversation:
        """A prompt and the reply to it; the reply is what is judged."""
        return cls(
            (
                Message(role=Role.USER, text=prompt),
                Message(role=Role.ASSISTANT, text=response),
            )
        )

    @property
    def last(self) -> Message:
        """The message that is judged."""
        return self.messages[-1]

    def then(self, message: MessageLike) -> Conversation:
        """This conversation with one more turn."""
        return Conversation((*self.messages, Message.of(message)))

    def with_last_text(self, text: str) -> Conversation:
        """This conversation with another text in its last turn, and no tool calls there.

        Images stay, so that a text is not taken to be harmless beside a picture that is not.
        """
        return Conversation((*self.messages[:-1], replace(self.last, text=text, tool_calls=())))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back. It contains the text."""
        return {"messages": [message.to_dict() for message in self.messages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conversation:
        """The inverse of `to_dict`."""
        return cls.of(data)


ConversationLike = str | Message | Conversation | Mapping[str, Any] | Iterable[MessageLike]
"""What `Conversation.of` takes."""


def require_text(messages: Iterable[Message]) -> None:
    """Refuse images on behalf of a text model, which would judge a message as if they were none.

    Raises:
        ConversationError: A message has images.
    """
    if any(message.images for message in messages):
        raise ConversationError(
            "an image cannot be judged by a text model: take it out and judge it by other means, "
            "or use an engine that judges images, such as OpenAIModerationEngine"
        )


def _is_pair(value: object) -> bool:
    """Whether a tuple is one (role, content) message rather than two texts."""
    return (
        isinstance(value, tuple)
        and len(cast("tuple[object, ...]", value)) == 2
        and (value[0] in [role.value for role in Role])
    )


def _numbered(values: Iterable[MessageLike]) -> Iterable[Message]:
    for index, value in enumerate(values):
        try:
            yield Message.of(value)
        except ConversationError as error:
            raise ConversationError(f"message {index}: {error}") from error


def _require_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise ConversationError(f"{what} is {type(value).__name__}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        position = error.start
    else:
        return
    raise ConversationError(
        f"{what} has a lone surrogate at character {position}: decode it properly, or replace it, "
        "for example with text.encode('utf-8', 'replace').decode()"
    ) from None


_IMAGE = re.compile(r"https://[^\s/]\S*|data:image/[a-z0-9.+-]+;base64,\S+", re.IGNORECASE)


def _require_image(url: object) -> None:
    _require_text(url, "the URL of an image")
    if not _IMAGE.fullmatch(cast("str", url)):
        raise ConversationError(
            "an image is given as an https: URL, or as data:image/<type>;base64,<data>"
        )


def _role(value: object) -> Role:
    roles = {role.value: role for role in Role}
    if not isinstance(value, str) or value not in roles:
        raise ConversationError(f"unknown role {_shown(value)}: use one of {', '.join(roles)}")
    return roles[value]


def _shown(value: object) -> str:
    """A name from untrusted input, short enough that it cannot carry a moderated text."""
    one_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,24}", value)
    return repr(value) if one_word else type(value).__name__


_ESCAPES = re.compile(r"""(\\+)(u[0-9a-fA-F]{4}|["/bfnrt])?""")
_CONTROL = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def _unescaped(arguments: str) -> str:
    r"""JSON text with its escapes undone, and `\uXXXX` in JSON inside of JSON as well."""
    text = _ESCAPES.sub(_character, arguments)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(escape: re.Match[str]) -> str:
    backslashes, what = len(escape[1]), escape[2] or ""
    if what.startswith("u"):
        return "\\" * ((backslashes - 1) // 2) + chr(int(what[1:], 16))
    return "\\" * (backslashes // 2) + (_CONTROL.get(what, what) if backslashes % 2 else what)


_IDENTIFIERS = frozenset({"id", "tool_call_id", "call_id", "type", "index", "status"})
"""Fields that nobody reads as text; they have to look like it."""
_TEXT = frozenset({"role", "content", "name", "tool_calls", "function_call", "refusal"})
_REASONING = ("reasoning_content", "reasoning")
_CALL = frozenset({"function", "custom", "name", "arguments", "args", "input"})
_FUNCTION = frozenset({"name", "arguments", "args", "input"})
_PART = frozenset({"cache_control", "logprobs"})
"""Fields of a text part that add no text to it."""
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_PARTS = ("image_url", "input_image")
_DETAILS = (None, "auto", "low", "high", "original")
"""How closely a model is to look at an image; a field beside its URL."""


def _from_openai(value: Mapping[str, Any]) -> Message:
    if "role" not in value:
        raise ConversationError("a message dict needs a 'role'")
    _require_understood(value, {*_TEXT, *_REASONING}, "a message")
    content, images = _images_apart(value.get("content"))
    said = [*(value.get(key) for key in _REASONING), content, value.get("refusal")]
    return Message(
        role=_role(value["role"]),
        text="\n".join(text for content in said for text in _texts(content)),
        tool_calls=tuple(_tool_calls(value)),
        name=value.get("name") or None,
        images=tuple(images),
    )


def _require_understood(fields: Mapping[str, Any], understood: Iterable[str], what: str) -> None:
    """Refuse a field whose text would not reach the model, so that nothing is skipped silently."""
    for key, value in fields.items():
        harmless = _empty(value) or (key in _IDENTIFIERS and _identifies(value))
        if key not in understood and not harmless:
            raise ConversationError(
                f"field {_shown(key)} of {what} is not understood and would go unjudged: "
                "remove it, or put its text into 'content'"
            )


def _empty(value: object) -> bool:
    if isinstance(value, (str, list, tuple, dict)):
        return not value
    return value is None or value is False


def _identifies(value: object) -> bool:
    return isinstance(value, int) or (
        isinstance(value, str) and len(value) <= 256 and not re.search(r"\s", value)
    )


def _images_apart(content: object) -> tuple[object, list[str]]:
    """Content without its images, and their URLs."""
    if not isinstance(content, (list, tuple)):
        return content, []
    parts = cast("Sequence[object]", content)
    images = [part for part in parts if _is_image(part)]
    rest = [part for part in parts if not _is_image(part)]
    return rest, [_image_url(cast("Mapping[str, Any]", part)) for part in images]


def _is_image(part: object) -> bool:
    return isinstance(part, Mapping) and cast("Any", part).get("type") in _IMAGE_PARTS


def _image_url(part: Mapping[str, Any]) -> str:
    """The URL in an image part, which is under `image_url`, bare or in a dict."""
    _require_understood(part, {"image_url", "detail", *_PART}, "an image part")
    image = part.get("image_url")
    fields: Mapping[str, Any] = {"url": image}
    if isinstance(image, Mapping):
        fields = cast("Mapping[str, Any]", image)
        _require_understood(fields, {"url", "detail"}, "an image part")
    if any(detail not in _DETAILS for detail in (part.get("detail"), fields.get("detail"))):
        raise ConversationError("the detail of an image part is not auto, low or high")
    if not isinstance(fields.get("url"), str):
        raise ConversationError(f"a content part of type {_shown(part['type'])} has no URL")
    return fields["url"]


def _texts(content: object) -> Iterable[str]:
    if content is None:
        return
    if isinstance(content, str):
        if content:
            yield content
        return
    if not isinstance(content, (list, tuple)):
        raise ConversationError(
            f"content is {type(content).__name__}: use a text, None or a list of text parts"
        )
    for part in cast("Sequence[object]", content):
        yield _part_text(part)


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise ConversationError(f"a content part is {type(part).__name__}, not a dict")
    fields = cast("Mapping[str, Any]", part)
    kind = fields.get("type")
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None or not isinstance(fields.get(key), str):
        raise ConversationError(
            f"a content part of type {_shown(kind)} cannot be judged by a text model: "
            "take it out and judge it by other means"
        )
    _require_understood(fields, {key, *_PART}, "a content part")
    return fields[key]


def _tool_calls(message: Mapping[str, Any]) -> Iterable[ToolCall]:
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, (list, tuple)):
        raise ConversationError(f"tool_calls is {type(calls).__name__}, not a list")
    for call in cast("Sequence[object]", calls):
        yield _tool_call(call)
    if message.get("function_call"):
        yield _tool_call(message["function_call"])


def _tool_call(call: object) -> ToolCall:
    fields = _fields(call, _CALL)
    nested = [fields[key] for key in ("function", "custom") if not _empty(fields.get(key))]
    flat = {key: value for key, value in fields.items() if key in _FUNCTION}
    function, *others = [*nested, *([flat] if any(flat.values()) or not nested else [])]
    if others:
        raise ConversationError("a tool call names its function twice: give it once")
    function = _fields(function, _FUNCTION)
    given = [function[key] for key in ("arguments", "args", "input") if function.get(key)]
    if len(given) > 1:
        raise ConversationError("a tool call has its arguments twice: give them once")
    if not isinstance(function.get("name"), str):
        raise ConversationError("a tool call needs the name of a function")
    identifier = fields.get("id")
    return ToolCall(
        name=function["name"],
        arguments=_json(given[0] if given else {}),
        id=identifier if isinstance(identifier, str) else None,
    )


def _fields(value: object, understood: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConversationError(f"a tool call is {type(value).__name__}, not a dict")
    fields = cast("Mapping[str, Any]", value)
    _require_understood(fields, understood, "a tool call")
    return fields


def _json(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        raise ConversationError("the arguments of a tool call cannot be written as JSON") from None
