"""What of a guarded model can be sent to another process."""

from __future__ import annotations

import pickle


def require_portable(name: str, part: object) -> None:
    """See that a part of a model can be pickled: LlamaIndex leaves out what cannot, guards too.

    Raises:
        PicklingError: It cannot be.
    """
    try:
        pickle.dumps(part)
    except Exception as error:  # noqa: BLE001 - pickling raises anything
        cause = type(error).__name__
    else:
        return
    raise pickle.PicklingError(
        f"the {name} of a GuardedLLM cannot be sent to another process ({cause}): make the model "
        "there"
    )
