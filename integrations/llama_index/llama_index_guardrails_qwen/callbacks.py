"""LlamaIndex's decorators for methods of models, which tell handlers of calls, with types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llama_index.core.llms import callbacks

_Method = TypeVar("_Method", bound=Callable[..., Any])


def chat_callback(method: _Method) -> _Method:
    """Tell handlers of a chat: its messages and its reply."""
    return cast("Any", callbacks).llm_chat_callback()(method)


def completion_callback(method: _Method) -> _Method:
    """Tell handlers of a completion: its prompt and its text."""
    return cast("Any", callbacks).llm_completion_callback()(method)
