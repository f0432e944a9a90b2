"""LangChain's own tests of retrievers, on a guarded one."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests

from guardrails_qwen import Guard, Policy
from guardrails_qwen.testing import ScriptedEngine
from integrations.langchain.tests.doubles import SCRIPT
from langchain_guardrails_qwen.retriever import GuardedRetriever


class StoreRetriever(GuardedRetriever):
    """A guarded vector store, made with the number of documents to find."""

    def __init__(self, k: int = 4, **fields: Any) -> None:
        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        store.add_documents([Document(f"Note {number} about tea.") for number in range(5)])
        guard = Guard(ScriptedEngine(SCRIPT), Policy.strict())
        super().__init__(inner=store.as_retriever(search_kwargs={"k": k}), guard=guard, **fields)


@pytest.mark.parametrize("check_query", [False, True], ids=["", "query too"], scope="class")
class TestGuardedRetriever(RetrieversIntegrationTests):
    """All of LangChain's own tests of retrievers."""

    @pytest.fixture(autouse=True)
    def settings(self, check_query: bool) -> None:
        self.check_query = check_query

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return StoreRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"k": 2, "check_query": self.check_query, "with_query": self.check_query}

    @property
    def retriever_query_example(self) -> str:
        return "What do the notes say about tea?"
