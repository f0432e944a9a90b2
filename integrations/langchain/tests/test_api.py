"""The public names, and nothing beside them."""

import langchain_guardrails_qwen


def test_public_names() -> None:
    assert langchain_guardrails_qwen.__all__ == [
        "GuardDocumentCompressor",
        "GuardDocumentTransformer",
        "GuardRunnable",
        "GuardedChatModel",
        "GuardedRetriever",
        "__version__",
    ]
