"""What was blocked where exceptions do not get through, told by a number in a text.

Agents catch what a tool raises and hand on its text, to the model and to their memory. So what
stands in the place of a blocked text carries a number that nobody can guess. Where it comes to a
guarded model, the model raises the violation instead of an answer: `report` here, `claimed` there.

The numbers are kept by this module and not by an object, because the two who need them, a tool
and a model, know nothing of each other but texts. They are those of this process only: another
one that goes on with a thread finds a notice there that says nothing.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

from guardrails_qwen import Decision, GuardViolation

_KEPT = 1_000
"""Incidents that nobody claimed yet; then the oldest are forgotten."""

_NUMBER = re.compile(r"withheld by the guard, incident ([0-9a-f]{32})(?![0-9a-f])")

_incidents: OrderedDict[str, Decision] = OrderedDict()
_lock = Lock()


def report(decision: Decision) -> str:
    """A notice for a model to read in the place of what was blocked. It quotes nothing."""
    number = secrets.token_hex(16)
    with _lock:
        _incidents[number] = decision
        while len(_incidents) > _KEPT:
            _incidents.popitem(last=False)
    return f"[withheld by the guard, incident {number}]"


def claimed(text: str) -> Decision | None:
    """What the first notice in a text was about, to the first who asks; None where there is none.

    All notices in the text are claimed with it. Numbers that were claimed, are forgotten or never
    were given are no notices. Whoever raises over one of several texts claims those in the others
    first, or the next one who reads them raises again.
    """
    numbers = _NUMBER.findall(text)
    with _lock:
        found = [_incidents.pop(number, None) for number in numbers]
    return next((decision for decision in found if decision), None)


def raise_claimed(texts: Iterable[str]) -> None:
    """Claim the notices in all of the texts.

    Raises:
        GuardViolation: There were any; it is about the first.
    """
    found = [claimed(text) for text in texts]
    for decision in filter(None, found):
        raise GuardViolation(decision)
