"""The prompts of running chains, so that a guard on the right finds what one on the left let in.

In a sequence all steps are children of one run, and all of them hold that run's id: the very same
object. A prompt is kept under it, weakly, and so lives exactly as long as the run, however it ends.
"""

from __future__ import annotations

import re
import threading
from typing import NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

from langchain_core.callbacks import BaseCallbackManager, BaseRunManager

from guardrails_qwen import Message

Prompt = tuple[Message, ...]

_STEP = re.compile(r"seq:step:(\d+)")
_lock = threading.Lock()
_prompts: WeakKeyDictionary[UUID, dict[int, Prompt]] = WeakKeyDictionary()


class Place(NamedTuple):
    """A step of a running sequence; outside of sequences, `run` is None and nothing is kept.

    Only sequences have a left and a right: two guards that a function or a parallel calls share a
    run as well, but need not belong together.
    """

    run: UUID | None = None
    step: int = 0

    @classmethod
    def of(cls, run_manager: BaseRunManager | BaseCallbackManager) -> Place:
        """Where a run is taking place. The tag is how sequences number their steps in traces.

        Args:
            run_manager: That of the run, or the one that is about to begin it.

        Raises:
            TypeError: The config gave the run an id that is not a `uuid.UUID`.
        """
        steps = [int(found[1]) for tag in run_manager.tags if (found := _STEP.fullmatch(tag))]
        run = run_manager.parent_run_id
        if not steps or run is None:
            return cls()
        if not isinstance(run, UUID):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the run_id of a config is {type(run).__name__}: use a uuid.UUID")
        return cls(run, steps[0])


def remember(place: Place, prompt: Prompt) -> None:
    """Keep what was passed on at a place, for as long as its run goes on."""
    if place.run is None:
        return
    with _lock:
        _prompts.setdefault(place.run, {})[place.step] = prompt


def recall(place: Place) -> Prompt | None:
    """What was passed on by the nearest guard to the left in the same run; None if there is none.

    A guard that let a reply through keeps nothing, so the prompt of the reply is still found.
    """
    if place.run is None:
        return None
    with _lock:
        steps = dict(_prompts.get(place.run, {}))
    nearest = max((step for step in steps if step < place.step), default=None)
    return None if nearest is None else steps[nearest]
