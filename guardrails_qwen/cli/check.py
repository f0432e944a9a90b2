"""`guardrails-qwen check`: judge a text and say what a policy does about it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrails_qwen import (
    Conversation,
    ConversationError,
    Decision,
    Guard,
    GuardError,
    PolicyError,
    Stage,
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
    status_of,
    warn_of_demonstration,
)
from guardrails_qwen.cli.terminal import printable, write_json
from guardrails_qwen.engines.families import from_pretrained, from_url


def check(  # noqa: PLR0913, PLR0917
    text: Annotated[str, typer.Argument(help="What a user sent; - reads it from standard input.")],
    response: Annotated[
        str | None, typer.Option(help="The reply to it: this is what is judged then.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="tiny (the bundled demonstration), a folder, a hub id, or a server's."),
    ] = None,
    url: Url = None,
    tokenizer: Tokenizer = None,
    way: Way = "auto",
    api_key: ApiKey = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    calibration: Annotated[
        Path | None, typer.Option(help="Temperatures that `calibrate` wrote for this model.")
    ] = None,
    policy: PolicyName = "strict",
    stage: Annotated[
        Stage | None, typer.Option(help="Judge as this stage of an application.")
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Standard input holds one text a line.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a text.")] = False,
) -> None:
    """Judge a text. Exit status: 0 allowed, 1 not allowed, 2 usage, 3 engine failure."""
    errors = Console(stderr=True)
    try:
        rules = policy_of(policy)
        asked = [_conversation(one, response) for one in _texts(text, lines=lines)]
    except (PolicyError, ConversationError) as error:
        fail(errors, error, Exit.USAGE)
    try:
        engine = (
            from_url(url, model=model, api_key=api_key, tokenizer=tokenizer, way=way)
            if url
            else from_pretrained(
                model or "tiny", device=device, dtype=dtype, calibration=calibration
            )
        )
        guard = Guard(engine, rules)
        decisions = guard.check_many(asked, stage=stage)
    except (GuardError, ImportError) as error:
        fail(errors, error, Exit.ENGINE_FAILURE)
    except ValueError as error:
        fail(errors, error, Exit.USAGE)
    demonstration = is_demonstration(engine)
    for decision in decisions:
        if as_json:
            write_json({**decision.to_dict(), "demonstration": demonstration})
        else:
            Console().print(_table(decision))
    if demonstration:
        warn_of_demonstration(errors)
    raise typer.Exit(max(map(status_of, decisions), default=Exit.ALLOWED))


def _texts(text: str, *, lines: bool) -> list[str]:
    if text != "-":
        if lines:
            raise ConversationError("--lines goes with standard input: give - as the text")
        return [text]
    try:
        read = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
    else:
        return _nonempty(read) if lines else [read]
    raise ConversationError(f"standard input is not UTF-8 at byte {position}")


def _nonempty(text: str) -> list[str]:
    found = [line for line in text.split("\n") if line.strip()]
    if not found:
        raise ConversationError("standard input holds no text")
    return found


def _conversation(text: str, response: str | None) -> str | Conversation:
    """What is judged; a text is checked here, so that a bad one counts as wrong usage."""
    if response is not None:
        return Conversation.exchange(text, response)
    return Conversation.of(text).last.text


def _table(decision: Decision) -> Table:
    table = Table(show_header=False, title=Text(decision.summary), title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(decision):
        table.add_row(name, Text(printable(value)))
    return table


def _lines(decision: Decision) -> list[tuple[str, str]]:
    verdict, lines = decision.verdict, [("action", decision.action.label)]
    if decision.error:
        lines.append(("not judged", decision.error))
    if verdict:
        lines.append(("verdict", verdict.summary))
    if verdict and verdict.refusal is not None:
        lines.append(("refusal", "yes" if verdict.refusal else "no"))
    if verdict and verdict.scores:
        severity = verdict.scores.severity
        likely = sorted(verdict.scores.category.items(), key=lambda item: -item[1])[:3]
        lines += [
            ("P(severity)", ", ".join(f"{s.label} {p:.3f}" for s, p in severity.items())),
            ("P(category)", ", ".join(f"{c.label} {p:.3f}" for c, p in likely)),
        ]
    if decision.text is not None and not decision.allowed:
        lines.append(("passed on", decision.text))
    if verdict:
        cost = f"{verdict.tokens or '?'} tokens, {1000 * (decision.seconds or 0):.0f} ms"
        lines.append(("model", f"{verdict.model} ({cost})"))
    return lines
