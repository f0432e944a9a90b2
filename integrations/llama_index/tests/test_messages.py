"""LlamaIndex messages as a guard reads them, and as they are after its decision."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Guard,
    GuardViolation,
    Role,
)
from guardrails_qwen.testing import ScriptedEngine
from integrations.llama_index.tests.doubles import WritingLLM, call
from integrations.llama_index.tests.llm_doors import ask, text_of, user
from llama_index_guardrails_qwen import GuardedLLM
from llama_index_guardrails_qwen.gate import Gate, Unjudgeable
from llama_index_guardrails_qwen.messages import asked_about, decided_message, read_message

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001000527de"
    "fc0000000049454e44ae426082"
)


def said(*blocks: Any, **fields: Any) -> ChatMessage:
    return ChatMessage(role=fields.pop("role", MessageRole.USER), blocks=list(blocks), **fields)


def citation(content: Any) -> CitationBlock:
    return CitationBlock(
        cited_content=content, source="A book", title="Its title", additional_location_info={}
    )


@pytest.mark.parametrize(
    ("role", "read"),
    [
        (MessageRole.SYSTEM, Role.SYSTEM),
        (MessageRole.DEVELOPER, Role.DEVELOPER),
        (MessageRole.USER, Role.USER),
        (MessageRole.ASSISTANT, Role.ASSISTANT),
        (MessageRole.CHATBOT, Role.ASSISTANT),
        (MessageRole.MODEL, Role.ASSISTANT),
        (MessageRole.FUNCTION, Role.TOOL),
        (MessageRole.TOOL, Role.TOOL),
    ],
    ids=lambda role: role.value,
)
def test_who_says_it(role: MessageRole, read: Role) -> None:
    assert read_message(ChatMessage(role=role, content="Hi.")).role is read


def test_every_role_is_known() -> None:
    assert all(read_message(ChatMessage(role=role, content="Hi.")) for role in MessageRole)


READ: dict[str, tuple[ChatMessage, str]] = {
    "text": (said(TextBlock(text="Hi.")), "Hi."),
    "nothing": (said(), ""),
    "empty": (said(TextBlock(text="")), ""),
    "two-texts": (said(TextBlock(text="Hi."), TextBlock(text="Ho.")), "Hi.\nHo."),
    "thoughts": (said(ThinkingBlock(content="Hm."), TextBlock(text="Hi.")), "Hm.\nHi."),
    "more-of-thoughts": (
        said(ThinkingBlock(content=None, additional_information={"summary": "Hm."})),
        "Hm.\n",
    ),
    "signature": (
        said(ThinkingBlock(content="Hm.", additional_information={"signature": "Ab0="})),
        "Hm.\n",
    ),
    "signature-that-is-none": (
        said(ThinkingBlock(additional_information={"signature": "a text"})),
        "a text\n",
    ),
    "citation": (said(citation(TextBlock(text="Hi."))), "Its title\nA book\nHi."),
    "citable": (
        said(CitableBlock(title="Its title", source="A book", content=[TextBlock(text="Hi.")])),
        "Its title\nA book\nHi.",
    ),
    "cache": (
        said(TextBlock(text="Hi."), CachePoint(cache_control=CacheControl(type="ephemeral"))),
        "Hi.",
    ),
    "additional": (
        said(TextBlock(text="Hi."), additional_kwargs={"reasoning": ["Hm.", {"a": "So."}]}),
        "Hm.\na\nSo.\nHi.",
    ),
    "ids": (said(TextBlock(text="Hi."), additional_kwargs={"tool_call_id": "call-1"}), "Hi."),
    "ids-that-are-none": (
        said(TextBlock(text="Hi."), additional_kwargs={"tool_call_id": "a text"}),
        "a text\nHi.",
    ),
    "word-in-two": (said(TextBlock(text="bo"), TextBlock(text="mb")), "bomb\nbo\nmb"),
    "escapes": (said(TextBlock(text='{"q": "b\\u006fmb"}')), '{"q": "bomb"}\n{"q": "b\\u006fmb"}'),
    "escaped-escapes": (said(TextBlock(text="b\\\\u006fmb")), "bomb\nb\\\\u006fmb"),
    "escapes-in-halves": (said(TextBlock(text="\\ud83d\\ude00")), "\U0001f600\n\\ud83d\\ude00"),
    "special-tokens": (said(TextBlock(text="<|im_end|>")), "<|im_end|>"),
}


@pytest.mark.parametrize(("message", "text"), READ.values(), ids=READ)
def test_what_is_read(message: ChatMessage, text: str) -> None:
    assert read_message(message).text in (text, text.replace("\na\n", "\n"))


UNREADABLE: dict[str, ChatMessage] = {
    "audio": said(AudioBlock(audio=b"a bomb", format="wav")),
    "video": said(VideoBlock(video=b"a bomb", video_mimetype="video/mp4")),
    "document": said(DocumentBlock(data=b"a bomb", title="a bomb")),
    "document-inside": said(
        CitableBlock(title="a", source="b", content=[DocumentBlock(data=b"a bomb")])
    ),
    "half-a-character": said(TextBlock(text="a bomb \ud83d")),
    "media-in-fields": said(additional_kwargs={"audio": {"data": "a bomb"}}),
    "object-in-fields": said(additional_kwargs={"more": object()}),
    "calls-of-no-form": said(additional_kwargs={"tool_calls": "a bomb"}),
    "call-of-no-form": said(additional_kwargs={"tool_calls": ["a bomb"]}),
    "picture-elsewhere": said(ImageBlock(url="http://bomb.example/a.png")),
    "empty-picture": said(ImageBlock()),
    "picture-elsewhere-too": said(ImageBlock(url="file:///bomb.png", image=PIXEL)),
}


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_judged_is_blocked_and_not_quoted(
    message: ChatMessage, guard: Guard
) -> None:
    with pytest.raises(ConversationError) as caught:
        read_message(message)
    assert "bomb" not in str(caught.value)
    inner = WritingLLM(replies=["Hello."])
    with pytest.raises(GuardViolation) as blocked:
        await GuardedLLM(inner=inner, guard=guard).achat([message])
    assert "bomb" not in str(blocked.value)
    assert inner.seen == []


def test_a_picture_that_is_gone_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(PIXEL)
    message = said(ImageBlock(path=path))
    assert read_message(message).images
    path.unlink()
    with pytest.raises(ConversationError, match="cannot be read") as caught:
        read_message(message)
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize(
    "block",
    [
        ImageBlock(image=PIXEL),
        ImageBlock(image=BytesIO(PIXEL), image_mimetype="image/png"),
        ImageBlock(url="https://a.example/b.png"),
        ImageBlock(url="data:image/png;base64,iVBORw0="),
        citation(ImageBlock(url="https://a.example/b.png")),
        CitableBlock(title="a", source="b", content=[ImageBlock(url="https://a.example/b.png")]),
    ],
    ids=["bytes", "file", "link", "data", "cited", "citable"],
)
async def test_pictures_are_for_engines_that_see(block: Any, guard: Guard) -> None:
    [image] = read_message(said(TextBlock(text="Hi."), block)).images
    assert image.startswith(("https://a.example/", "data:image/png;base64,iVBORw0"))
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guard)
    with pytest.raises(GuardViolation):
        await llm.achat([said(TextBlock(text="Hi."), block)])


class Seeing(ScriptedEngine):
    """Judges pictures too."""

    def judge(self, conversations: Sequence[Conversation]) -> list[Any]:
        spoken = [
            Conversation(tuple(replace(message, images=()) for message in one.messages))
            for one in conversations
        ]
        return super().judge(spoken)


@pytest.mark.parametrize("door", ["achat", "astream_chat"])
async def test_pictures_in_files_are_read_beside_the_event_loop(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, readers = tmp_path / "a.png", set[int]()
    path.write_bytes(PIXEL)
    read = ImageBlock.resolve_image

    def noted(self: ImageBlock, *args: Any, **kwargs: Any) -> Any:
        readers.add(threading.get_ident())
        return read(self, *args, **kwargs)

    monkeypatch.setattr(ImageBlock, "resolve_image", noted)
    llm = GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=Guard(Seeing()))
    message = said(TextBlock(text="What is it?"), ImageBlock(path=path))
    assert text_of((await ask(door, llm, [message]))[-1]) == "Hello."
    assert readers
    assert threading.get_ident() not in readers


def test_calls_are_read_once_in_whatever_form() -> None:
    block = call("search", query="tea")
    again = {"function": {"name": "search", "arguments": '{"query":  "tea"}'}, "id": "call-1"}
    other = {"function": {"name": "search", "arguments": '{"query": "milk"}'}}
    message = said(
        block, role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [again, other]}
    )
    read = read_message(message)
    assert [one.arguments for one in read.tool_calls] == ['{"query": "tea"}', '{"query": "milk"}']
    assert read.text == ""


async def test_a_word_in_two_blocks_is_read_in_one_piece(
    guarding: Callable[..., Guard],
) -> None:
    message = said(TextBlock(text="Build a bo"), TextBlock(text="mb now. Hi there."))
    with pytest.raises(GuardViolation):
        await GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=guarding()).achat([message])
    inner = WritingLLM(replies=["Hello."])
    await GuardedLLM(inner=inner, guard=guarding(Action.REDACT)).achat([message])
    assert [one.content for one in inner.seen[0]] == [""]


@pytest.mark.parametrize("action", [Action.BLOCK, Action.REDACT], ids=lambda action: action.label)
async def test_a_call_in_a_text_is_read_as_agents_read_it(
    action: Action, guarding: Callable[..., Guard]
) -> None:
    """ReActAgent finds calls in replies, and reads what is escaped."""
    reply = 'Action: search\nAction Input: {"query": "a b\\u006fmb"}'
    llm = GuardedLLM(inner=WritingLLM(replies=[reply]), guard=guarding(action))
    if action is Action.BLOCK:
        with pytest.raises(GuardViolation):
            await llm.achat([user("Hi.")])
        with pytest.raises(GuardViolation):
            list(llm.stream_chat([user("Hi.")]))
    else:
        assert (await llm.achat([user("Hi.")])).message.content == ""


CHANGED: dict[str, tuple[ChatMessage, str]] = {
    "words": (said(TextBlock(text="Hi. A bomb.")), "Hi. [removed: Violent]"),
    "thoughts": (
        said(ThinkingBlock(content="A bomb."), TextBlock(text="Hi.")),
        "Hi.",
    ),
    "words-behind-thoughts": (
        said(ThinkingBlock(content="Hm."), TextBlock(text="Hi. A bomb.")),
        "Hi. [removed: Violent]",
    ),
    "words-beside-a-call": (
        said(TextBlock(text="Hi. A bomb."), call("search", query="tea")),
        "Hi. [removed: Violent]",
    ),
    "words-beside-a-name": (
        said(TextBlock(text="Hi. A bomb."), additional_kwargs={"name": "Ann"}),
        "Hi. [removed: Violent]",
    ),
}


@pytest.mark.parametrize(("message", "text"), CHANGED.values(), ids=CHANGED)
def test_what_a_redaction_leaves(
    message: ChatMessage, text: str, guarding: Callable[..., Guard]
) -> None:
    gate = Gate(guard=guarding(Action.REDACT), component="test")
    [decision] = gate.judge(asked_about([message]))
    changed = decided_message(message, decision)
    assert changed.content == text
    assert [block.block_type for block in changed.blocks] == ["text"]
    assert changed.role is message.role


def test_what_is_allowed_is_the_very_same(guarding: Callable[..., Guard]) -> None:
    message = said(ThinkingBlock(content="Hm."), TextBlock(text="A bomb."))
    gate = Gate(guard=guarding(Action.FLAG), component="test")
    [decision] = gate.judge(asked_about([message]))
    assert decided_message(message, decision) is message


def test_a_picture_in_two_places_is_judged_in_both() -> None:
    block = ImageBlock(url="https://a.example/b.png", image=PIXEL)
    assert [url[:10] for url in read_message(said(block)).images] == ["https://a.", "data:image"]


def test_a_changed_message_keeps_its_ids_and_nothing_else(guarding: Callable[..., Guard]) -> None:
    message = said(
        TextBlock(text="A bomb."),
        ToolCallBlock(tool_name="search", tool_kwargs={"query": "tea"}),
        role=MessageRole.TOOL,
        additional_kwargs={"tool_call_id": "call-1", "name": "search it", "reasoning": "Hm."},
    )
    gate = Gate(guard=guarding(Action.REPLACE), component="test")
    [decision] = gate.judge(asked_about([message]))
    changed = decided_message(message, decision)
    assert changed.additional_kwargs == {"tool_call_id": "call-1"}
    assert len(changed.blocks) == 1


def test_each_of_a_conversation_is_asked_about_behind_the_others() -> None:
    image = said(AudioBlock(audio=b"a", format="wav"))
    asked = asked_about([user("Hi."), image, user("Ho.")])
    assert isinstance(asked[1], Unjudgeable)
    lengths = [len(one.messages) for one in asked if not isinstance(one, Unjudgeable)]
    assert lengths == [1, 2]


def test_a_huge_message_is_read_whole(engine: ScriptedEngine) -> None:
    text = "tea " * 100_000 + "bomb"
    assert read_message(user(text)).text == text
    with pytest.raises(GuardViolation):
        GuardedLLM(inner=WritingLLM(replies=["Hello."]), guard=Guard(engine)).chat([user(text)])
