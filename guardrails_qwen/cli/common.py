"""What commands have in common: how they are told of a model, and how they end."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from guardrails_qwen import CheckpointError

REAL_MODEL = "Qwen/Qwen3Guard-Gen-0.6B"


Model = Annotated[
    str, typer.Option(help="tiny (the bundled demonstration), a folder, or a hub id.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or int8 on a CPU.")]


class Exit(IntEnum):
    """Exit statuses. Of several texts the worst counts."""

    ALLOWED = 0
    NOT_ALLOWED = 1
    USAGE = 2
    ENGINE_FAILURE = 3


def fail(console: Console, error: Exception, status: Exit) -> NoReturn:
    """Say what is wrong and end."""
    label = "cannot load the model" if isinstance(error, CheckpointError) else "error"
    console.print(f"{label}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(status)


def warn_of_demonstration(console: Console) -> None:
    """Say that the bundled checkpoint is no protection, and what is."""
    console.print(
        "[yellow]tiny is a demonstration and protects nobody.[/] The real model is one option "
        f"away: [bold]--model {REAL_MODEL}[/]"
    )
