"""`guardrails-qwen watch`: show a reply while it is written, as far as it may be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from guardrails_qwen import (
    Action,
    Conversation,
    ConversationError,
    Decision,
    Engine,
    GuardError,
    PolicyError,
)
from guardrails_qwen.cli.common import (
    ApiKey,
    Device,
    Dtype,
    Exit,
    PolicyName,
    Tokenizer,
    Url,
    Way,
    fail,
    is_demonstration,
    policy_of,
    say,
    status_of,
    warn_of_demonstration,
)
from guardrails_qwen.cli.live import ColouredText, Display, JsonLines, RecordingJudge
from guardrails_qwen.cli.standard_input import InputError, pieces, require_input
from guardrails_qwen.cli.terminal import Output
from guardrails_qwen.cli.token_rows import print_json, print_rows, token_rows
from guardrails_qwen.engines.families import from_pretrained, from_url
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.streaming import (
    Debounce,
    GuardedStream,
    HoldBack,
    Streaming,
    StreamModerator,
    judge_for,
)


class Color(str, Enum):
    """When to colour."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def watch(  # noqa: PLR0913, PLR0917
    text: Annotated[
        str, typer.Argument(help="A reply; - reads it from standard input, as it comes.")
    ] = "-",
    prompt: Annotated[str | None, typer.Option(help="What it replies to.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="tiny-stream (the bundled demonstration), a folder, a hub id, or a server's. One "
            "that judges no tokens judges the reply so far, where sentences end."
        ),
    ] = None,
    url: Url = None,
    tokenizer: Tokenizer = None,
    way: Way = "auto",
    api_key: ApiKey = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    policy: PolicyName = "strict",
    hold_back: Annotated[
        HoldBack, typer.Option(help="What is kept back although it was judged.")
    ] = HoldBack.TOKENS,
    keep: Annotated[
        int, typer.Option(min=0, help="With --hold-back tokens: how many judged tokens.")
    ] = 0,
    debounce: Annotated[
        Debounce,
        typer.Option(
            help="When a token that is not safe counts: after another one (report), after one of "
            "the same severity (evaluation), or at once (off)."
        ),
    ] = Debounce.REPORT,
    end: Annotated[
        str | None, typer.Option("--closing", help="Shown in place of what is blocked.")
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens",
            help="Print what the model thinks at each token instead. This shows the whole text, "
            "harmful parts included.",
        ),
    ] = False,
    color: Annotated[
        Color, typer.Option(help="Controversial is yellow, unsafe red, unjudged magenta.")
    ] = Color.AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object an event, or with --tokens a token.")
    ] = False,
) -> None:
    """Show a reply while it is written, as far as it may be read, coloured by risk.

    A block ends it and closes standard input, so that whoever writes the reply stops.

    Exit status: 0 allowed, 1 not allowed, 2 usage, 3 engine failure, 130 interrupted, 141 nobody
    reads the output.
    """
    errors = Console(stderr=True)
    try:
        if text == "-":
            require_input()
        rules = policy_of(policy)
        asked = None if prompt is None else Conversation.of(prompt)
    except (InputError, PolicyError, ConversationError) as error:
        fail(errors, error, Exit.USAGE)
    output = Output(coloured=_coloured(color))
    settings = Streaming(hold_back=hold_back, tokens=keep, debounce=debounce, closing=end)
    with _endings(errors):
        engine = (
            from_url(url, model=model, api_key=api_key, tokenizer=tokenizer, way=way)
            if url
            else from_pretrained(model or "tiny-stream", device=device, dtype=dtype)
        )
        source = pieces() if text == "-" else _one(text)
        with engine, closing(source):
            demonstration = is_demonstration(engine)
            if demonstration:
                _warn(errors, engine)
            if tokens:
                rows = token_rows(_judging_tokens(engine), asked, source, rules, debounce)
                passes = print_json(rows) if as_json else print_rows(rows, output)
                raise typer.Exit(Exit.ALLOWED if passes else Exit.NOT_ALLOWED)
            judge = RecordingJudge(judge_for(engine, asked, settings))
            per_token = isinstance(engine, SessionEngine)
            stream = GuardedStream(StreamModerator(rules, settings, per_token=per_token), judge)
            display: Display = ColouredText(output, judge)
            if as_json:
                display = JsonLines(judge, demonstration=demonstration)
            decision = _moderated(stream, source, display)
    if decision and (decision.degraded or decision.action is not Action.ALLOW):
        say(errors, decision.summary)
    raise typer.Exit(status_of(decision) if decision else Exit.ENGINE_FAILURE)


def _moderated(stream: GuardedStream, source: Generator[str], display: Display) -> Decision | None:
    """Show a reply as it comes."""
    try:
        for piece in source:
            events = stream.feed(piece)
            if stream.over:
                source.close()  # first of all, so that whoever writes it stops
            display.show(events)
            if stream.over:
                break
        display.show(stream.finish())
    finally:
        stream.close()
        display.end(stream.decision)
    return stream.decision


def _one(text: str) -> Generator[str]:
    yield text


def _judging_tokens(engine: Engine) -> SessionEngine:
    if not isinstance(engine, SessionEngine):
        raise ValueError(  # noqa: TRY004  of the command, not of the program
            "--tokens needs a model that judges tokens, as Qwen3Guard-Stream does"
        )
    return engine


def _coloured(color: Color) -> bool:
    if color is Color.AUTO:
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return color is Color.ALWAYS


def _warn(errors: Console, engine: Engine) -> None:
    if isinstance(engine, StreamEngine):
        warn_of_demonstration(errors, name=engine.name, instead="Qwen/Qwen3Guard-Stream-0.6B")
    else:
        warn_of_demonstration(errors)


@contextmanager
def _endings(errors: Console) -> Generator[None]:
    """What ends the command before its time, as exit statuses."""
    try:
        yield
    except (GuardError, ImportError) as error:
        fail(errors, error, Exit.ENGINE_FAILURE)
    except ValueError as error:
        fail(errors, error, Exit.USAGE)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())  # for what is flushed at the end
        raise typer.Exit(Exit.NOBODY_READS) from None
