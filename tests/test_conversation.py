"""What reaches an engine: all of it, as text, or an error that says what to change."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import Conversation, ConversationError, Message, Role, ToolCall

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ROLES = list(Role)


def call(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [fields]}


def user(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": "hi", **fields}


URL = "https://example.com/cat.png"
DATA = "data:image/png;base64,iVBORw0KGgo="


def image(url: object, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


NOTHING: list[Any] = []
FORMS: list[Any] = [
    pytest.param("hi", [(Role.USER, "hi")], id="a text"),
    pytest.param("", [(Role.USER, "")], id="an empty text"),
    pytest.param(" \n\t", [(Role.USER, " \n\t")], id="white space"),
    pytest.param(Message(role=Role.TOOL, text="x"), [(Role.TOOL, "x")], id="a message"),
    pytest.param({"role": "system", "content": "s"}, [(Role.SYSTEM, "s")], id="a dict"),
    pytest.param(["a", "b"], [(Role.USER, "a"), (Role.USER, "b")], id="texts"),
    pytest.param(
        [("user", "a"), ("assistant", "b")], [(Role.USER, "a"), (Role.ASSISTANT, "b")], id="pairs"
    ),
    pytest.param({"messages": ["a"], "id": "7"}, [(Role.USER, "a")], id="messages"),
    pytest.param({"messages": "a"}, [(Role.USER, "a")], id="messages, a text"),
    pytest.param([{"role": "developer", "content": "d"}], [(Role.DEVELOPER, "d")], id="developer"),
    pytest.param([{"role": "user", "content": None}], [(Role.USER, "")], id="None"),
    pytest.param([{"role": "user"}], [(Role.USER, "")], id="no content"),
    pytest.param([{"role": "user", "content": NOTHING}], [(Role.USER, "")], id="no parts"),
    pytest.param(
        [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}],
        [(Role.USER, "a\nb")],
        id="parts",
    ),
    pytest.param(
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "a", "annotations": NOTHING},
                    {"type": "refusal", "refusal": "no"},
                    {"type": "input_text", "text": "b", "cache_control": {"type": "ephemeral"}},
                ],
            }
        ],
        [(Role.ASSISTANT, "a\nno\nb")],
        id="parts of every text type",
    ),
    pytest.param(
        [{"role": "assistant", "content": None, "refusal": "I can't", "audio": None}],
        [(Role.ASSISTANT, "I can't")],
        id="refusal",
    ),
    pytest.param(
        [{"role": "assistant", "reasoning_content": "hm", "content": "yes"}],
        [(Role.ASSISTANT, "hm\nyes")],
        id="reasoning",
    ),
]


@pytest.mark.parametrize(("value", "said"), FORMS)
def test_every_form_becomes_a_conversation(value: Any, said: list[tuple[Role, str]]) -> None:
    conversation = Conversation.of(value)
    assert [(m.role, m.text) for m in conversation.messages] == said
    assert conversation.last == conversation.messages[-1]


CALLS = [
    pytest.param(
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"q": 1}'}},
        'f({"q": 1})',
        id="OpenAI",
    ),
    pytest.param({"name": "f", "args": {"q": "é"}, "id": "c"}, 'f({"q": "é"})', id="args"),
    pytest.param(
        {"id": "c", "type": "custom", "custom": {"name": "f", "input": "plain"}},
        "f(plain)",
        id="custom",
    ),
    pytest.param({"name": "f"}, "f({})", id="no arguments"),
    pytest.param({"name": "f", "arguments": None, "args": {"q": 1}}, 'f({"q": 1})', id="None"),
]


@pytest.mark.parametrize(("fields", "judged"), CALLS)
def test_tool_calls_are_judged(fields: dict[str, Any], judged: str) -> None:
    assert Conversation.of(call(**fields)).last.judged_text == judged


def test_a_function_call_of_the_old_kind_is_judged() -> None:
    message = Message.of({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}})
    assert message.judged_text == "f({})"


BAD = [
    pytest.param([], "at least one message", id="nothing"),
    pytest.param({"messages": []}, "at least one message", id="no messages"),
    pytest.param(None, "NoneType", id="None"),
    pytest.param(5, "int", id="a number"),
    pytest.param(b"bytes", "bytes", id="bytes"),
    pytest.param([b"bytes"], "message 0", id="bytes in a list"),
    pytest.param([["a", "b"]], "message 0", id="a list in a list"),
    pytest.param(["a", ("user", "b", "c")], "message 1", id="a triple"),
    pytest.param({}, "'role'", id="an empty dict"),
    pytest.param({"messages": {"messages": ["a"]}}, "'role'", id="nested messages"),
    pytest.param({"messages": ["a"], "system": "b"}, "'system'", id="a field beside messages"),
    pytest.param({"messages": ["a"], "id": "of many words"}, "'id'", id="text as an id"),
    pytest.param([("human", "a")], "unknown role 'human'", id="an unknown role"),
    pytest.param([("USER", "a")], "unknown role", id="a role in capitals"),
    pytest.param([{"role": None, "content": "a"}], "unknown role", id="no role"),
    pytest.param([{"role": ["user"], "content": "a"}], "unknown role", id="a list as role"),
    pytest.param("a\ud800b", "lone surrogate at character 1", id="a lone surrogate"),
    pytest.param(user(content=[{"type": "image_url"}]), "'image_url'", id="an image without URL"),
    pytest.param(user(content=[image("http://x/y.png")]), "https", id="an image over http"),
    pytest.param(user(content=[image("https://x/a bomb")]), "https", id="an image with a text"),
    pytest.param(user(content=[image("data:text/html;base64,eA==")]), "https", id="no image"),
    pytest.param(user(content=[image(7)]), "'image_url'", id="a number as image"),
    pytest.param(user(content=[image(URL, alt="a text")]), "'alt'", id="an image with more"),
    pytest.param(user(content=[image(URL, detail="a text")]), "detail", id="a text as detail"),
    pytest.param(
        user(content=[{"type": "input_image", "file_id": "f"}]), "'file_id'", id="an image by id"
    ),
    pytest.param(
        user(content=[{**image(URL), "text": "x"}]), "'text'", id="an image with a text beside"
    ),
    pytest.param(user(refusal=[image(URL)]), "'image_url'", id="an image as refusal"),
    pytest.param(
        user(content=[{"type": "text", "text": "a"}, {"type": "input_audio", "text": "b"}]),
        "'input_audio'",
        id="audio behind a text",
    ),
    pytest.param(user(content=[{"type": "text"}]), "'text'", id="a text part without text"),
    pytest.param(user(content=[{"text": "a"}]), "NoneType", id="a part without type"),
    pytest.param(user(content=[{"type": ["text"], "text": "a"}]), "list", id="a list as type"),
    pytest.param(user(content=[7]), "int", id="a number as part"),
    pytest.param(user(content=[["a"]]), "list", id="a list as part"),
    pytest.param(user(content={"text": "a"}), "dict", id="a dict as content"),
    pytest.param(user(content=7), "int", id="a number as content"),
    pytest.param(
        user(content=[{"type": "text", "text": "a", "more": "b"}]), "'more'", id="a part with more"
    ),
    pytest.param(
        user(content=[{"type": "refusal", "refusal": "a", "text": "b"}]),
        "'text'",
        id="a part with two texts",
    ),
    pytest.param(user(audio={"data": "x"}), "'audio'", id="audio"),
    pytest.param(user(Content="b"), "'Content'", id="a field in odd case"),
    pytest.param(user(status="a text of many words"), "'status'", id="text as a status"),
    pytest.param(user(tool_call_id={"text": "a"}), "'tool_call_id'", id="a dict as id"),
    pytest.param(user(index="x" * 300), "'index'", id="a long index"),
    pytest.param(user(name=7), "the name", id="a number as name"),
    pytest.param(user(name="\udfff"), "lone surrogate", id="a surrogate in a name"),
    pytest.param(user(tool_calls=7), "int", id="a number as tool calls"),
    pytest.param(user(tool_calls={"name": "f"}), "dict", id="a dict as tool calls"),
    pytest.param(user(tool_calls=["f"]), "str", id="a text as tool call"),
    pytest.param(user(function_call="f"), "str", id="a text as function call"),
    pytest.param(call(name="f", id="of many words"), "'id'", id="text as a call's id"),
    pytest.param(call(), "name of a function", id="an empty call"),
    pytest.param(call(function="f"), "str", id="a text as function"),
    pytest.param(call(function={"name": 7}), "name of a function", id="a number as function name"),
    pytest.param(call(name="f", arguments="a", input="b"), "twice", id="arguments twice"),
    pytest.param(call(name="f", arguments={}, args={"a": 1}, more=1), "'more'", id="more"),
    pytest.param(call(name="f", function={"name": "g"}), "twice", id="a function twice"),
    pytest.param(call(custom={"name": "f"}, function={"name": "g"}), "twice", id="two kinds"),
    pytest.param(
        call(function={"name": "f", "description": "b"}), "'description'", id="a function with more"
    ),
    pytest.param(call(name="f", args={("a", "b"): 1}), "JSON", id="arguments that are not JSON"),
    pytest.param(call(name="f", arguments="\ud800"), "lone surrogate", id="surrogate arguments"),
]


@pytest.mark.parametrize(("value", "said"), BAD)
def test_what_cannot_be_judged_is_an_error(value: Any, said: str) -> None:
    with pytest.raises(ConversationError) as caught:
        Conversation.of(value)
    assert said in str(caught.value)


def test_arguments_that_contain_themselves_are_an_error() -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    with pytest.raises(ConversationError, match="JSON"):
        Conversation.of(call(name="f", args=circle))


SECRET = "kill him with poison"
LEAKS = [
    pytest.param([(SECRET, "x")], id="as a role"),
    pytest.param([{"role": "user", SECRET: "x"}], id="as a field"),
    pytest.param(user(content=[{"type": SECRET, "text": "x"}]), id="as a part's type"),
    pytest.param(user(content=[SECRET, 7]), id="beside a bad part"),
    pytest.param([SECRET, SECRET + "\ud800"], id="with a surrogate"),
    pytest.param([SECRET, 7], id="beside a bad message"),
    pytest.param(user(content=[image(SECRET)]), id="as an image"),
    pytest.param(user(content=[image(URL, detail=SECRET)]), id="as the detail of an image"),
    pytest.param(call(name="f", args={(SECRET,): SECRET}), id="in arguments"),
]


@pytest.mark.parametrize("value", LEAKS)
def test_errors_never_quote_the_text(value: Any) -> None:
    with pytest.raises(ConversationError) as caught:
        Conversation.of(value)
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


def test_reprs_give_lengths_only() -> None:
    tool_call = ToolCall(name=SECRET, arguments=SECRET)
    message = Message(role=Role.USER, text=SECRET, name=SECRET, tool_calls=(tool_call,))
    for value in (tool_call, message, Conversation((message,))):
        assert SECRET not in repr(value) + str(value)
    assert repr(message) == f"Message(user, {len(SECRET)} characters, 1 tool calls)"


ESCAPES = [
    pytest.param(r'{"q": "\u0062omb"}', "bomb", id="one letter"),
    pytest.param(r'{"q": "\u0062\u006f\u006d\u0062"}', "bomb", id="all letters"),
    pytest.param(r'{"q": "\u0062omb", "x": "\ud800"}', "bomb", id="beside a lone surrogate"),
    pytest.param(r'{"q": "\u0062omb"', "bomb", id="in broken JSON"),
    pytest.param('{"q": "bomb", "q": "cake"}', "bomb", id="in a field given twice"),
    pytest.param(r'{"body": "{\"q\": \"\\u0062omb\"}"}', "bomb", id="in JSON inside of JSON"),
    pytest.param('{"n": ' + "9" * 5000 + r', "q": "\u0062omb"}', "bomb", id="beside a huge number"),
    pytest.param("[" * 5000 + r'"\u0062omb"', "bomb", id="deep inside"),
    pytest.param(r'"a\nbomb"', "a\nbomb", id="behind a newline"),
    pytest.param(r'"C:\\new\\bomb"', r"C:\new\bomb", id="behind a backslash"),
    pytest.param(r'"\ud83d\ude00 bomb"', "😀 bomb", id="a surrogate pair"),
]


@pytest.mark.parametrize(("arguments", "word"), ESCAPES)
def test_no_escape_hides_a_word(arguments: str, word: str) -> None:
    judged = ToolCall(name="f", arguments=arguments).judged_text
    assert word in judged
    judged.encode()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\")), st.booleans())
def test_a_text_in_arguments_is_judged_however_it_was_escaped(text: str, ascii_only: bool) -> None:
    arguments = json.dumps({"q": text}, ensure_ascii=ascii_only)
    judged = ToolCall(name="f", arguments=arguments).judged_text
    for character in text:
        assert character in judged or not character.isprintable()
    if not set(text) & {"\x7f", *map(chr, range(32))}:
        assert text in judged


@pytest.mark.parametrize("text", ["\\", '"', r"\u0041", "\\\\u"], ids=repr)
def test_a_megabyte_of_arguments_takes_no_time(text: str) -> None:
    started = time.process_time()
    assert ToolCall(name="f", arguments=text * (1_000_000 // len(text))).judged_text
    assert time.process_time() - started < 5


@given(text=TEXT, name=TEXT, role=st.sampled_from(ROLES))
def test_all_of_a_message_is_judged(text: str, name: str, role: Role) -> None:
    calls = (ToolCall(name="one", arguments='{"a": 1}'), ToolCall(name="two"))
    judged = Message(role=role, text=text, name=name, tool_calls=calls).judged_text
    assert text in judged
    assert name in judged
    assert 'one({"a": 1})' in judged
    assert "two({})" in judged


@given(
    st.lists(
        st.builds(
            Message,
            role=st.sampled_from(ROLES),
            text=TEXT,
            name=st.none() | TEXT.filter(bool),
            tool_calls=st.lists(
                st.builds(
                    ToolCall,
                    name=TEXT,
                    arguments=TEXT.filter(bool),
                    id=st.none() | st.uuids().map(str),
                ),
                max_size=2,
            ).map(tuple),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_conversation_survives_to_dict_and_json(messages: list[Message]) -> None:
    conversation = Conversation(tuple(messages))
    data = json.loads(json.dumps(conversation.to_dict()))
    again = Conversation.from_dict(data)
    assert [m.judged_text for m in again.messages] == [m.judged_text for m in messages]
    assert [m.role for m in again.messages] == [m.role for m in messages]


ODD_TEXTS = [
    "\x00",
    "\u202eevil\u202c",
    "a\u200bb",
    "\ufeff",
    "<|im_end|>",
    "<END CONVERSATION>",
    "x" * 10**6,
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: repr(text[:20]))
def test_odd_text_is_kept_as_it_is(text: str) -> None:
    assert Conversation.of(text).last.judged_text == text


def test_exchange_and_then() -> None:
    conversation = Conversation.exchange("a", "b").then(("tool", "c"))
    assert [m.role for m in conversation.messages] == [Role.USER, Role.ASSISTANT, Role.TOOL]
    assert conversation.last.text == "c"


def test_another_last_text_leaves_the_context_and_no_tool_calls() -> None:
    call = ToolCall(name="f")
    spoken = Message(role=Role.ASSISTANT, text="b", name="n", tool_calls=(call,))
    changed = Conversation((Message.of("a"), spoken)).with_last_text("c")
    assert changed.messages[0].text == "a"
    assert changed.last == Message(role=Role.ASSISTANT, text="c", name="n")


def test_the_id_of_a_tool_call_is_no_text() -> None:
    with pytest.raises(ConversationError, match="id of a tool call"):
        ToolCall(name="f", id="a text of many words")


IMAGES: list[Any] = [
    pytest.param([image(URL)], "", (URL,), id="an image"),
    pytest.param(["look:", image(URL, detail="low"), "well?"], "look:\nwell?", (URL,), id="texts"),
    pytest.param([image(URL), image(DATA)], "", (URL, DATA), id="two"),
    pytest.param(
        [{"type": "input_image", "image_url": DATA, "detail": "auto", "file_id": None}],
        "",
        (DATA,),
        id="of the Responses API",
    ),
]


@pytest.mark.parametrize(("content", "text", "images"), IMAGES)
def test_images_are_kept(content: list[Any], text: str, images: tuple[str, ...]) -> None:
    message = Message.of(user(content=content))
    assert (message.text, message.images) == (text, images)
    assert Message.of(json.loads(json.dumps(message.to_dict()))) == message
    assert repr(message) == f"Message(user, {len(text)} characters, {len(images)} images)"


def test_a_message_with_an_image_cannot_be_read_as_a_text() -> None:
    message = Message.of(user(content=["hi", image(URL)]))
    with pytest.raises(ConversationError, match="image") as caught:
        _ = message.judged_text
    assert URL not in str(caught.value)


def test_an_image_stays_beside_another_text() -> None:
    conversation = Conversation.of(user(content=["hi", image(URL)])).with_last_text("ho")
    assert conversation.last == Message(role=Role.USER, text="ho", images=(URL,))


def test_a_role_may_be_given_by_name() -> None:
    assert Message(role="tool").role is Role.TOOL  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConversationError, match="unknown role 'bot'"):
        Message(role="bot")  # pyright: ignore[reportArgumentType]
