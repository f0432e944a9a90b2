"""A guarded agent in conversation: what is said, judged, sent and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain.agents import create_agent  # pyright: ignore[reportUnknownVariableType]
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver

from guardrails_qwen import Guard, Policy
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine
from integrations.langchain.tests.leaks.doors import Watch, ainvoke
from integrations.langchain.tests.leaks.models import Reply, ScriptedModel, StreamingModel, in_turn
from integrations.langchain.tests.leaks.subjects import SCRIPT
from integrations.langchain.tests.leaks.threats import HARMLESS, call
from integrations.langchain.tests.leaks.tools import TOOLS, recorded
from langchain_guardrails_qwen.agents import GuardrailMiddleware

REMOVED = "This content was removed by the safety policy."
CALLING = [call("shout", "some tea"), HARMLESS]
"""The replies of a model that calls a tool first."""


def model(*replies: Reply) -> StreamingModel:
    """A model that says these in the first turn, and something harmless later."""
    return StreamingModel(script=in_turn(replies or [HARMLESS], HARMLESS))


@dataclass(slots=True, kw_only=True)
class Talk:
    """One thread of a guarded agent, and everything that can be observed of it.

    Args:
        model: Its language model.
        before: The middleware outside of the guard.
        behind: The middleware inside of it.
        guards: The settings of the guard, or of several.
    """

    model: ScriptedModel = field(default_factory=model)
    before: Sequence[AgentMiddleware[Any, Any]] = ()
    behind: Sequence[AgentMiddleware[Any, Any]] = ()
    guards: Sequence[dict[str, Any]] = ({},)
    engine: ScriptedEngine = field(default_factory=lambda: ScriptedStreamEngine(SCRIPT))
    watch: Watch = field(default_factory=Watch)
    ran: list[str] = field(default_factory=list[str])
    saver: InMemorySaver = field(default_factory=InMemorySaver)
    agent: Any = None

    def __post_init__(self) -> None:
        guard = Guard(self.engine, Policy.strict())
        ours = [GuardrailMiddleware(guard, **settings) for settings in self.guards]
        self.agent = create_agent(
            self.model,
            TOOLS,
            middleware=[*self.before, *ours, *self.behind],
            checkpointer=self.saver,
        )

    async def say(self, *messages: Any, door: Any = ainvoke) -> None:
        """A turn of the user."""
        await self.go({"messages": [*messages]}, door=door)

    async def go(self, value: Any, *, door: Any = ainvoke) -> None:
        """A turn of any kind; what was judged before is forgotten."""
        self.engine.seen.clear()
        with recorded() as runs:
            await self.watch.run(door, self.agent, value)
        self.ran += runs

    @property
    def messages(self) -> list[BaseMessage]:
        """The thread."""
        return self.agent.get_state(self.watch.plain).values["messages"]

    @property
    def texts(self) -> list[str]:
        """Their texts."""
        return [message.text for message in self.messages]

    @property
    def judged(self) -> list[str]:
        """What was judged in the last turn."""
        return [conversation.last.judged_text for conversation in self.engine.seen]

    @property
    def sent(self) -> list[str]:
        """Everything that the model was ever sent."""
        return [message.text for messages in self.model.sent for message in messages]

    def places(self, word: str) -> set[str]:
        """Where a word was observed, and what is left behind of it."""
        self.watch.look(self.agent, self.saver)
        return set(self.watch.sink.places(word))
