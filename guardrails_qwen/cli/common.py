"""What commands have in common: how they are told of a model, and how they end."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from guardrails_qwen import CheckpointError, Decision, Engine, Policy

Model = Annotated[
    str, typer.Option(help="tiny (the bundled demonstration), a folder, or a hub id.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or int8 on a CPU.")]
Url = Annotated[
    str | None, typer.Option(help="Ask this server: http://localhost:8000/v1, for example.")
]
Tokenizer = Annotated[
    str | None, typer.Option(help="With --url: the checkpoint, for its tokenizer.")
]
Way = Annotated[str, typer.Option(help="With --url: auto, tokens, chat or constrained.")]
ApiKey = Annotated[
    str | None,
    typer.Option(help="With --url: the server's key.", envvar="GUARDRAILS_QWEN_API_KEY"),
]
PolicyName = Annotated[str, typer.Option(help="strict, loose, or a policy file (YAML or JSON).")]


class Exit(IntEnum):
    """Exit statuses. Of several texts the worst counts."""

    ALLOWED = 0
    NOT_ALLOWED = 1
    USAGE = 2
    ENGINE_FAILURE = 3
    INTERRUPTED = 130
    """As shells have it: 128 and the number of the signal."""
    NOBODY_READS = 141


def status_of(decision: Decision) -> Exit:
    """The exit status that a decision stands for."""
    if decision.degraded:
        return Exit.ENGINE_FAILURE
    return Exit.ALLOWED if decision.allowed else Exit.NOT_ALLOWED


def policy_of(name: str) -> Policy:
    """A preset, or a policy from a file.

    Raises:
        PolicyError: The file cannot be read, or is wrong.
    """
    presets = {"strict": Policy.strict, "loose": Policy.loose}
    return presets[name]() if name in presets else Policy.from_file(Path(name))


def fail(console: Console, error: Exception, status: Exit) -> NoReturn:
    """Say what is wrong and end."""
    label = "cannot load the model" if isinstance(error, CheckpointError) else "error"
    say(console, f"{label}: {error}")
    raise typer.Exit(status)


def say(console: Console, line: str) -> None:
    """Say what cannot be done, or may not be."""
    console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def warn_of_demonstration(
    console: Console, *, name: str = "tiny", instead: str = "Qwen/Qwen3Guard-Gen-0.6B"
) -> None:
    """Say that a bundled checkpoint is no protection, and what is."""
    console.print(
        f"[yellow]{name} is a demonstration and protects nobody.[/] The real model is one option "
        f"away: [bold]--model {instead}[/]"
    )


def is_demonstration(engine: Engine) -> bool:
    """Whether an engine protects nobody."""
    return bool(getattr(engine, "demonstration", False))
