"""What all local engines say when they are loaded."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

logger = logging.getLogger("guardrails_qwen")


@contextmanager
def needs_local() -> Generator[None]:
    """Around imports that need the extra `local`.

    Raises:
        ImportError: Something is not installed; the message says what to do.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a local engine needs {error.name}: pip install 'guardrails-qwen[local]'"
        ) from error


def warn_of_demonstration(name: str, real: str) -> None:
    """Say that a checkpoint is a demonstration, and what to load for real use."""
    logger.warning(
        "%s is a demonstration and protects nobody; for real use load %s or larger", name, real
    )
