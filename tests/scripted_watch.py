"""The command line on a scripted engine, which judges words by themselves: no model is loaded.

A word with "bomb" in it is unsafe, one with "hm" controversial; "fail" makes the engine fail. The
model "whole" judges whole texts, and finds those unsafe that have a bomb in them.
"""

from __future__ import annotations

import importlib

from guardrails_qwen import Category, EngineError, GuardError, Severity, Verdict
from guardrails_qwen.cli import main
from guardrails_qwen.engines.base import Engine
from guardrails_qwen.engines.closing import Closing
from guardrails_qwen.testing import ScriptedEngine, ScriptedStreamEngine

_UNSAFE = Verdict(severity=Severity.UNSAFE, categories=frozenset({Category.VIOLENT}))


class _Stream(ScriptedStreamEngine, Closing):
    def close(self) -> None: ...


class _Whole(ScriptedEngine, Closing):
    def close(self) -> None: ...


def _judged(reply: str) -> Verdict | GuardError:
    word = next(iter(reversed(reply.split())), "")
    if "fail" in word:
        return EngineError("the engine is out of order")
    if "bomb" in word:
        return _UNSAFE
    return Verdict(severity=Severity.CONTROVERSIAL if "hm" in word else Severity.SAFE)


def _engine(model: str, **_: object) -> Engine:
    return _Whole({"bomb": _UNSAFE}) if model == "whole" else _Stream(tokens=_judged)


if __name__ == "__main__":
    vars(importlib.import_module("guardrails_qwen.cli.watch"))["from_pretrained"] = _engine
    main()
