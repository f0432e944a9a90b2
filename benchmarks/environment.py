"""any-guardrail in a virtual environment of its own, since it brings dependencies of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = ("any-guardrail[huggingface]==0.7.7", "torch==2.13.0")

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def any_guardrail(folder: Path) -> Path:
    """The environment's interpreter; makes the environment in `folder` if there is none.

    torch is installed from the index and in the version that pip is set up for, as for this
    project.

    Raises:
        RuntimeError: It cannot be installed.
    """
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if complete.exists() and complete.read_text() == "\n".join(REQUIREMENTS):
        return python
    print("Installing any-guardrail into an environment of its own …", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
    done = subprocess.run(
        [*command, "--constraint", str(_CONSTRAINTS)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line), "")
        raise RuntimeError(f"it cannot be installed: {reason or done.stderr[-200:]}")
    complete.write_text("\n".join(REQUIREMENTS))
    return python
