"""Tools that give unsafe text in every way in which a tool can give something."""

from __future__ import annotations

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.tools import BaseTool, FunctionTool, QueryEngineTool, ToolOutput

from integrations.llama_index.tests.doubles import NGramEmbedding, WritingLLM
from integrations.llama_index.tests.leaks.probe import Sink
from integrations.llama_index.tests.leaks.threats import Threat

FOUND = f"It says: get a {Threat.RESULT.value} tonight."
_INDEX = VectorStoreIndex([TextNode(text=FOUND)], embed_model=NGramEmbedding())


def tools(sink: Sink) -> list[BaseTool]:
    """The tools; what they are run with is heard."""

    def shout(text: str) -> str:
        """Say it aloud."""
        sink.hear("tool", text)
        return text.upper()

    def fetch(text: str) -> str:
        """Find something."""
        sink.hear("tool", text)
        return FOUND

    def keep(text: str) -> ToolOutput:
        """Find something, and keep what was found beside the text."""
        sink.hear("tool", text)
        return ToolOutput(
            content="Found.", tool_name="keep", raw_input={"text": text}, raw_output={"page": FOUND}
        )

    def fail(text: str) -> str:
        """Fail and say why."""
        sink.hear("tool", text)
        raise RuntimeError(FOUND)

    def fetch_directly(text: str) -> str:
        """Find something; the result is the answer."""
        sink.hear("tool", text)
        return FOUND

    functions = [shout, fetch, keep, fail]
    direct = FunctionTool.from_defaults(fetch_directly, return_direct=True)
    return [*map(FunctionTool.from_defaults, functions), direct, _look_up()]


def _look_up() -> BaseTool:
    """A query engine whose answer is harmless; what it found is beside it."""
    llm = WritingLLM(replies=["A word."])
    engine = _INDEX.as_query_engine(llm=llm)  # pyright: ignore[reportUnknownMemberType]
    return QueryEngineTool.from_defaults(engine, "look_up", "Answer from documents.")
