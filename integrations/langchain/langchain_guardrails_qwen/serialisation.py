"""Dumping and loading chains with guards in them.

Policy, stage, key, name and settings of a guard are dumped; its engine never is. A chain is loaded
by two lines, the second of which gives all of its guards an engine:

```python
text = dumps(chain)
chain = loads(text, allowed_objects="core", **LOADING).with_config(
    configurable={ENGINE_KEY: engine}
)
```

A guard that was loaded and has no engine judges nothing: every call raises `GuardError`. One that
has an engine of its own does not look for another one.
"""

from __future__ import annotations

from typing import Any

from langchain_guardrails_qwen.chosen import ENGINE_KEY
from langchain_guardrails_qwen.configured import ConfiguredGuard
from langchain_guardrails_qwen.runnable import GuardRunnable
from langchain_guardrails_qwen.wrap import Bound, Guarded, GuardedBeside

__all__ = ["ENGINE_KEY", "LOADING"]

_PATHS = [
    tuple(kind.lc_id()) for kind in (GuardRunnable, ConfiguredGuard, Bound, Guarded, GuardedBeside)
]

LOADING: dict[str, Any] = {
    "valid_namespaces": ["langchain_guardrails_qwen"],
    "additional_import_mappings": {path: path for path in _PATHS},
}
"""Arguments of `langchain_core.load.loads` and `load`, so that they know the classes of guards."""
