"""The prompts of running chains, so that a guard on the right finds what one on the left let in.

In a sequence all steps are children of one run, and all of them hold that run's id: the very same
object. A prompt is kept under it, weakly, and so lives exactly as long as the run, however it ends.
`lineage` says in which step of which run another run is; so the guard on the right may sit deeper.
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

from langchain_core.callbacks import BaseCallbackManager, BaseRunManager

from guardrails_qwen import Message
from langchain_guardrails_qwen.lineage import ALONE, UNKNOWN, lineage

Prompt = tuple[Message, ...]

_lock = threading.Lock()
_prompts: WeakKeyDictionary[UUID, dict[int, Prompt]] = WeakKeyDictionary()


class Place(NamedTuple):
    """A step of a running sequence; where `run` is None, nothing is kept or found.

    Only sequences have a left and a right: two guards that a function or a parallel calls share a
    run as well, but need not belong together. What such a run is itself a step of may be looked at,
    where it is certain that the guard was given what the run was given.
    """

    run: UUID | None = None
    step: int = 0
    """From 1 on; 0 in a run that hands on what it was given, -1 in one that does so to several."""

    @classmethod
    def of(
        cls, run_manager: BaseRunManager | BaseCallbackManager, value: object = UNKNOWN
    ) -> Place:
        """Where a run is taking place. The tags are how runs are numbered in traces.

        Args:
            run_manager: That of the run, or the one that is about to begin it.
            value: What the run is given, if that is known already.

        Raises:
            TypeError: The config gave the run an id that is not a `uuid.UUID`.
        """
        run = run_manager.parent_run_id
        if run is None:
            return cls()
        step = lineage.step(run, run_manager.tags, value)
        if step == ALONE:
            return cls()
        if not isinstance(run, UUID):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the run_id of a config is {type(run).__name__}: use a uuid.UUID")
        return cls(run, step)


def remember(place: Place, prompt: Prompt) -> None:
    """Keep what was passed on at a place, for as long as its run goes on."""
    while place.run is not None and place.step == 0:
        place = _around(place)
    if place.run is None or place.step < 0:
        return
    with _lock:
        _prompts.setdefault(place.run, {})[place.step] = prompt


def recall(place: Place, *, near: bool = False) -> Prompt | None:
    """What was passed on by the nearest guard to the left; None if there is none.

    A guard that let a reply through keeps nothing, so the prompt of the reply is still found.

    Args:
        place: Where it is looked for: in the same run, and then in those around it.
        near: Look in the same run only.
    """
    while place.run is not None:
        with _lock:
            steps = dict(_prompts.get(place.run, {}))
        nearest = max((step for step in steps if step < place.step), default=None)
        if nearest is not None:
            return steps[nearest]
        place = Place() if near else _around(place)
    return None


def _around(place: Place) -> Place:
    """Where the run of a place takes place itself."""
    parent, step = lineage.around(place.run)
    return Place() if step == ALONE else Place(parent, step)
