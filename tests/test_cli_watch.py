"""`guardrails-qwen watch`, run as a program that is written to while it runs."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen import Severity, Verdict
from guardrails_qwen.cli.live import RecordingJudge
from guardrails_qwen.cli.standard_input import InputError, Utf8
from guardrails_qwen.cli.terminal import Output, printable
from guardrails_qwen.testing import ScriptedSession
from guardrails_qwen.token_verdict import TokenVerdict

SCRIPTED = [sys.executable, str(Path(__file__).with_name("scripted_watch.py")), "watch"]
REAL = [sys.executable, "-m", "guardrails_qwen", "watch"]
RED, YELLOW, MAGENTA, BOLD, END = "\x1b[31m", "\x1b[33m", "\x1b[35m", "\x1b[1m", "\x1b[0m"

Finished = subprocess.CompletedProcess[bytes]


class _Bytes(ScriptedSession):
    """Its first character has three tokens, which are not alike."""

    def feed(self, text: str) -> list[TokenVerdict]:
        [token] = super().feed(text[0] + " ")
        levels = (Severity.CONTROVERSIAL, Severity.UNSAFE, Severity.SAFE)
        return [replace(token, severity=level) for level in levels]


def _interruptible() -> None:
    """Background jobs of a shell ignore interruptions, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Watching:
    """A program that is running, and what it has shown so far."""

    def __init__(self, *arguments: str, program: Sequence[str] = SCRIPTED) -> None:
        self.process = subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            preexec_fn=_interruptible,  # noqa: PLW1509  nothing but a system call
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def write(self, data: bytes) -> None:
        self.stdin.write(data)

    def shows(self, expected: bytes) -> None:
        """Wait until it has shown this, and nothing else, since the last time."""
        shown = b""
        while len(shown) < len(expected) and (more := self.stdout.read(len(expected))):
            shown += more
        assert shown == expected

    def finish(self) -> Finished:
        """End its input; all that it shows from here on."""
        out, err = self.process.communicate(timeout=300)
        return subprocess.CompletedProcess([], self.process.returncode, out, err)


@pytest.fixture
def watching() -> Generator[list[Watching]]:
    """Programs to be ended, whatever happens."""
    started = list[Watching]()
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


def watch(*arguments: str, stdin: bytes = b"", program: Sequence[str] = SCRIPTED) -> Finished:
    return subprocess.run(
        [*program, *arguments], input=stdin, capture_output=True, check=False, timeout=300
    )


def test_it_is_shown_before_the_input_ends(watching: list[Watching]) -> None:
    one = Watching()
    watching.append(one)
    one.write(b"Mix flo")
    one.write(b"ur and")
    one.shows(b"Mix flour")
    one.write(b" water.")
    one.shows(b" and")
    finished = one.finish()
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b" water.", b"")


def test_a_block_ends_it_and_stops_who_writes(watching: list[Watching]) -> None:
    one = Watching("--policy", "strict")
    watching.append(one)
    one.write(b"First buy a bomb")
    one.shows(b"First buy a")
    one.write(b" bombshell then more ")
    assert one.process.wait(60) == 1
    with pytest.raises(BrokenPipeError):
        one.write(b"more")
    assert one.process.stderr
    said = one.process.stderr.read().decode()
    assert one.stdout.read() == b""
    assert said == "output blocked: Unsafe (Violent), rule «Controversial: block», policy strict\n"


def test_who_writes_is_stopped_before_it_is_told(watching: list[Watching]) -> None:
    """Where nobody reads the closing text yet, the language model is stopped all the same."""
    reading, writing = os.pipe()
    unread, shown = os.pipe()
    closing = "x" * 100_000  # more than a pipe holds
    program = subprocess.Popen([*SCRIPTED, "--closing", closing], stdin=reading, stdout=shown)
    os.close(reading)
    os.close(shown)
    with pytest.raises(BrokenPipeError):
        _write_forever(writing, b"bomb bomb bomb ")
    os.close(writing)
    with os.fdopen(unread, "rb") as left:
        assert left.read().decode() == closing
    assert program.wait(60) == 1


def _write_forever(number: int, data: bytes) -> None:
    while True:
        os.write(number, data)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        pytest.param([], b"One. two", id="tokens"),
        pytest.param(["--keep", "2"], b"One.", id="another token"),
        pytest.param(["--hold-back", "sentence"], b"One. ", id="sentence"),
        pytest.param(["--hold-back", "reply"], b"", id="reply"),
        pytest.param(["--debounce", "off"], b"One. two", id="at once"),
        pytest.param(["--closing", "[enough]"], b"One. two[enough]", id="a closing text"),
    ],
)
def test_what_is_held_back_is_not_shown(arguments: list[str], shown: bytes) -> None:
    finished = watch(*arguments, stdin=b"One. two bomb bombs")
    assert finished.returncode == 1
    assert finished.stdout == shown


def test_severities_of_a_kind_or_any() -> None:
    mixed = b"hm bomb then"
    assert watch("--debounce", "report", stdin=mixed).returncode == 1
    assert watch("--debounce", "evaluation", stdin=mixed).stdout == mixed


def test_one_verdict_on_a_whole_text_counts() -> None:
    finished = watch("--model", "whole", stdin=b"Have tea. A bomb needs nails.")
    assert (finished.returncode, finished.stdout) == (1, b"")
    finished = watch("--model", "whole", stdin=b"Have tea. A cake needs flour.")
    assert (finished.returncode, finished.stdout) == (0, b"Have tea. A cake needs flour.")


def test_of_tokens_that_share_a_character_the_worst_colours_it() -> None:
    judge = RecordingJudge(_Bytes(lambda _: Verdict(severity=Severity.SAFE), None))
    judge.feed("水a")
    assert list(judge.runs("水a")) == [(Severity.UNSAFE, "水"), (None, "a")]


def test_colours_are_those_of_the_risk() -> None:
    shown = watch("--color", "always", stdin=b"A hm b bomb c").stdout.decode()
    assert shown == f"A{YELLOW} hm{END} b{RED} bomb{END} c"


def test_colours_stay_with_their_words_after_a_redaction(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    rules = "rules: [{severity: unsafe, action: redact}]\n    marker: '[gone]'\n"
    policy.write_text(f"name: mine\nstages:\n  default:\n    {rules}")
    reply = b"Well. Take a bomb and bombs bombs. Then hm rest. Some bomb bomb. A hm b."
    finished = watch("--policy", str(policy), "--color", "always", stdin=reply)
    gone = f"{BOLD}[gone]{END}"
    after = f"{YELLOW} hm{END}"
    assert finished.stdout.decode() == f"Well. {gone} Then{after} rest. {gone} A{after} b."
    assert finished.returncode == 1
    assert b"output redacted" in finished.stderr


UNJUDGED = """
name: mine
stages:
  default:
    rules: [{{severity: unsafe, action: block}}]
    on_error: {}
"""


@pytest.mark.parametrize(
    ("on_error", "shown"),
    [
        pytest.param("block", "", id="block"),
        pytest.param("raise", "", id="raise"),
        pytest.param("allow", f"{MAGENTA} fail c{END}", id="allow"),
    ],
)
def test_what_cannot_be_judged(
    on_error: str, shown: str, tmp_path: Path, watching: list[Watching]
) -> None:
    """It is not shown, or in a colour of its own."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(UNJUDGED.format(on_error))
    one = Watching("--policy", str(policy), "--color", "always")
    watching.append(one)
    one.write(b"A b ")
    one.shows(b"A b")
    one.write(b"fail c")
    finished = one.finish()
    assert (finished.stdout.decode(), finished.returncode) == (shown, 3)
    assert b"the engine is out of order" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "colours"),
    [
        pytest.param([], {}, True, id="a terminal"),
        pytest.param([], {"NO_COLOR": "1"}, False, id="NO_COLOR"),
        pytest.param(["--color", "never"], {}, False, id="never"),
    ],
)
def test_a_terminal(arguments: list[str], variables: dict[str, str], colours: bool) -> None:
    terminal, its = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [*SCRIPTED, "One hm two", *arguments], stdout=its, env={**environment, **variables}
    ) as program:
        assert program.wait(60) == 0
        os.close(its)
        shown = os.read(terminal, 1000).decode()
        os.close(terminal)
    assert shown == (f"One{YELLOW} hm{END} two\r\n" if colours else "One hm two\r\n")


REPLIES = {
    "nothing": "",
    "emoji": "Brot 🥖 und 👩‍👩‍👧 und 🏳️‍🌈.",
    "scripts": "把面粉和水混合。 مرحبا بك. می‌خواهم  wide　space\u00a0there.",
    "CR LF": "One.\r\nTwo.\r\n\r\nThree.",
    "line breaks": "One.\n\n\tTwo.\n",
    "white space": " \n ",
    "a mark of byte order": "\ufeffOne two.",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_reply_that_may_be_read_is_shown_as_it_is(reply: str, watching: list[Watching]) -> None:
    """… also where pipes cut its bytes."""
    one = Watching()
    watching.append(one)
    for byte in reply.encode():
        one.write(bytes([byte]))
    finished = one.finish()
    assert (finished.stdout.decode(), finished.returncode) == (reply, 0)


def test_a_megabyte() -> None:
    reply = (b"abcdefg " + b"x" * 1991 + b"\n") * 500
    finished = watch(stdin=reply)
    assert (finished.returncode, finished.stdout) == (0, reply)


def test_control_characters_do_nothing() -> None:
    finished = watch(stdin=b"a\0b \x1b[2J\x1b]0;title\x07 c\rd \xc2\x9b31m \xe2\x80\xaee.\r")
    assert finished.stdout.decode() == "a�b �[2J�]0;title� c�d �31m �e.�"
    finished = watch("--json", stdin=b"\x1b[2J \xc2\x9b31m \xe2\x80\xaee.")
    assert re.fullmatch(rb"[\n\x20-\x7e]*", finished.stdout)
    texts = [json.loads(line).get("text", "") for line in finished.stdout.splitlines()]
    assert "".join(texts) == "\x1b[2J \x9b31m \u202ee."


@pytest.mark.parametrize(
    ("stdin", "shown", "message"),
    [
        pytest.param(b"\xff", b"", "at byte 0", id="at once"),
        pytest.param(b"One two three\xff four", b"One two", "at byte 13", id="in the middle"),
        pytest.param("One two 🥖".encode()[:-1], b"One two", "at byte 8", id="cut off"),
    ],
)
def test_bytes_that_are_no_text(stdin: bytes, shown: bytes, message: str) -> None:
    finished = watch(stdin=stdin)
    assert finished.returncode == 2
    assert finished.stdout == shown
    assert f"standard input is not UTF-8 {message}" in finished.stderr.decode()


def test_an_input_that_does_not_block(watching: list[Watching]) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with subprocess.Popen(SCRIPTED, stdin=reading, stdout=subprocess.PIPE, bufsize=0) as program:
        os.close(reading)
        assert program.stdout
        os.write(writing, b"One two ")
        shown = program.stdout.read(7)
        os.write(writing, b"three")
        os.close(writing)
        while more := program.stdout.read(100):
            shown += more
        assert program.wait(60) == 0
    assert shown == b"One two three"


def test_an_interruption_shows_nothing_more(watching: list[Watching]) -> None:
    one = Watching()
    watching.append(one)
    one.write(b"One two bo")
    one.shows(b"One two")
    one.process.send_signal(signal.SIGINT)
    finished = one.finish()
    assert (finished.returncode, finished.stdout, finished.stderr) == (130, b"", b"")


def test_nobody_reads(watching: list[Watching]) -> None:
    one = Watching()
    watching.append(one)
    one.write(b"One two ")
    one.shows(b"One two")
    one.stdout.close()
    one.write(b"three four")
    assert one.process.wait(60) == 141
    assert one.process.stderr
    assert one.process.stderr.read() == b""


def test_events_as_json() -> None:
    reply = b"All is hm well. Then bomb bombs away."
    lines = watch("--json", "--hold-back", "sentence", stdin=reply).stdout.decode()
    assert "Then" not in lines
    release, block, end = map(json.loads, lines.splitlines())
    assert release == {
        "event": "release",
        "start": 0,
        "end": 16,
        "text": "All is hm well. ",
        "risks": [{"start": 6, "end": 9, "severity": "Controversial"}],
    }
    assert block == {"event": "block", "closing": None}
    assert end["event"] == "end"
    assert end["decision"]["action"] == "block"
    assert end["decision"]["verdict"]["severity"] == "Unsafe"
    assert "text" not in end["decision"]
    assert end["demonstration"] is False


def test_what_waits_as_json(watching: list[Watching]) -> None:
    one = Watching("--json", "--hold-back", "reply")
    watching.append(one)
    one.write(b"One two")
    one.shows(b'{"event": "hold", "characters": 7}\n')
    last = one.finish().stdout.splitlines()
    assert [json.loads(line)["event"] for line in last] == ["release", "end"]


def test_a_table_of_tokens() -> None:
    finished = watch("--tokens", "--prompt", "Hello", stdin=b"One \x1bhm bomb two")
    assert finished.returncode == 1
    heading, *rows = finished.stdout.decode().splitlines()
    assert heading.split() == ["token", "characters", "severity", "category", "flagged"]
    cells = [re.split(r"\s{2,}", row) for row in rows]
    assert [row[0] for row in cells] == ["'One'", r"' \x1bhm'", "' bomb'", "' two'"]
    assert [row[1] for row in cells] == ["0–3", "3–7", "7–12", "12–16"]
    assert [row[2].split()[0] for row in cells] == ["Safe", "Controversial", "Unsafe", "Safe"]
    assert [row[3] for row in cells] == ["Violent 1.000"] * 4
    assert [row[4:] for row in cells] == [[], [], ["block"], []]


def test_a_table_as_json() -> None:
    finished = watch("One bomb bombs", "--tokens", "--json")
    assert finished.returncode == 1
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["One", " bomb", " bombs"]
    assert [row["flagged"] for row in rows] == [None, None, "block"]
    assert rows[2]["severity_scores"]["Unsafe"] > 0.9
    assert (rows[1]["start"], rows[1]["end"]) == (3, 8)


def test_a_table_of_what_may_pass() -> None:
    finished = watch("One bomb two", "--tokens", "--color", "always")
    assert finished.returncode == 0
    assert RED in finished.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--policy", "no.yaml"], "cannot be read", id="no policy"),
        pytest.param(["--hold-back", "much"], "hold-back", id="an unknown hold-back"),
        pytest.param(["--keep", "-1"], "keep", id="a negative number"),
        pytest.param(["--color", "green"], "color", id="an unknown colour"),
        pytest.param(["--url", "localhost:8000"], "base URL", id="no URL"),
        pytest.param(["--model", "whole", "--tokens"], "judges tokens", id="no tokens"),
    ],
)
def test_usage_errors_have_a_status_of_their_own(arguments: list[str], message: str) -> None:
    finished = watch(*arguments, stdin=b"One two")
    assert finished.returncode == 2
    assert message in finished.stderr.decode()
    assert b"Traceback" not in finished.stderr
    assert finished.stdout == b""


def test_no_input_at_all() -> None:
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *SCRIPTED]
    finished = subprocess.run(closed, capture_output=True, check=False)
    assert finished.returncode == 2
    assert b"it is closed" in finished.stderr


def test_an_input_that_cannot_be_read(tmp_path: Path) -> None:
    with (tmp_path / "written").open("wb") as written:
        finished = subprocess.run(SCRIPTED, stdin=written, capture_output=True, check=False)
    assert finished.returncode == 2
    assert b"cannot be read" in finished.stderr


def test_no_such_checkpoint() -> None:
    finished = watch("Hello", "--model", "./nowhere", program=REAL)
    assert finished.returncode == 3
    assert b"no checkpoint folder" in finished.stderr


@pytest.mark.parametrize("model", ["tiny-stream", "tiny"])
def test_the_bundled_checkpoints(model: str) -> None:
    reply = b"Kill him tonight and hide the body. Kill them all and burn the bodies.\n" * 3
    finished = watch("--model", model, "--hold-back", "reply", stdin=reply, program=REAL)
    said = " ".join(finished.stderr.decode().split())
    assert finished.returncode == 1
    assert finished.stdout == b""
    assert "output blocked: " in said
    assert f"{model} is a demonstration and protects nobody" in said
    kind = "Stream" if model == "tiny-stream" else "Gen"
    assert f"--model Qwen/Qwen3Guard-{kind}-0.6B" in said


def test_tokens_of_the_bundled_checkpoint() -> None:
    reply = "Mix flour and 水 👩‍👩‍👧."
    finished = watch(reply, "--tokens", "--json", "--prompt", "How?", program=REAL)
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    assert "".join(row["text"] for row in rows if row["start"] == 0).startswith("M")
    assert {at for row in rows for at in range(row["start"], row["end"])} == set(range(len(reply)))
    for row in rows:
        assert row["text"] == reply[row["start"] : row["end"]]
        assert sum(row["severity_scores"].values()) == pytest.approx(1)
        assert row["severity"] == max(row["severity_scores"], key=row["severity_scores"].get)


@given(st.binary(max_size=30), st.lists(st.integers(1, 4), max_size=30))
def test_bytes_become_the_same_text_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert _text(_cut(data, cuts)) == _text([data])


@given(st.text(max_size=20), st.lists(st.integers(1, 4), max_size=80))
def test_text_survives_its_bytes(text: str, cuts: list[int]) -> None:
    assert _text(_cut(text.encode(), cuts)) == (text, None)


def _cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces = list[bytes]()
    for size in sizes:
        pieces, data = [*pieces, data[:size]], data[size:]
    return [*pieces, data]


def _text(pieces: Sequence[bytes]) -> tuple[str, str | None]:
    utf8, text = Utf8(), ""
    try:
        for index, piece in enumerate([*pieces, b""]):
            for decoded in utf8.feed(piece, final=index == len(pieces)):
                text += decoded
    except InputError as error:
        return text, str(error)
    return text, None


@pytest.mark.parametrize("cut", range(5))
def test_a_line_break_that_is_cut(cut: int, capsys: pytest.CaptureFixture[str]) -> None:
    output, text = Output(coloured=False), "a\r\n\rb\r"
    output.write(text[:cut])
    output.write(text[cut:])
    output.end_line()
    assert capsys.readouterr().out == printable(text) == "a\r\n�b�"
