"""The public names, and nothing beside them."""

import langchain_guardrails_qwen


def test_public_names() -> None:
    assert langchain_guardrails_qwen.__all__ == [
        "GuardRunnable",
        "GuardedChatModel",
        "__version__",
    ]
