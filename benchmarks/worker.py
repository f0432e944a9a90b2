"""This side of the pipe to a contender's process."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Reply = dict[str, Any]

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """What is compared."""

    name: str
    kind: str
    """One of `contenders.KINDS`."""
    dtype: str
    python: Path
    """The interpreter of its environment."""

    @property
    def ours(self) -> bool:
        return self.kind == "ours"


class Worker:
    """A contender's process. Whatever goes wrong is a reply with `error`, to be reported."""

    def __init__(
        self, contender: Contender, checkpoint: Path, *, device: str, threads: int, log: Path
    ) -> None:
        arguments = [contender.kind, str(checkpoint), "--device", device]
        arguments += ["--dtype", contender.dtype, "--threads", str(threads)]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [contender.python, "-m", "benchmarks.contenders", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=_ROOT,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def ask(self, question: dict[str, Any], timeout: float) -> Reply:
        """Send a question and wait for the answer, at most `timeout` seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": self._ended()}
        return self.answer(timeout)

    def answer(self, timeout: float) -> Reply:
        """The next line; the first one comes unasked, when the checkpoint is loaded."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return {"error": f"no answer within {timeout:.0f} s"}
        return json.loads(line) if line else {"error": self._ended()}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _ended(self) -> str:
        return f"its process ended with {self._process.wait()}"
