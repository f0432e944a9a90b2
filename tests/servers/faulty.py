"""A server that misbehaves by script, and is honest in between.

```python
with FaultyServer(then(BROKEN["reset-mid-body"], TRANSIENT["503"])) as server:
    ...  # the third request is answered
```
"""

from __future__ import annotations

import random
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.exchange import Reply, Request
from tests.servers.faults import AtConnection, Fault
from tests.servers.loopback import Answer, LoopbackServer
from tests.servers.tiny import TinyApi

Script = Callable[[int], Fault | None]
"""What befalls the request of a number, counted from 0; None for an honest answer."""


def honest() -> Script:
    """Nothing goes wrong."""
    return lambda _: None


def always(fault: Fault) -> Script:
    """The same fault for every request."""
    return lambda _: fault


def then(*faults: Fault | None) -> Script:
    """One after another, and honest answers behind the last."""
    return lambda i: faults[i] if i < len(faults) else None


def every(n: int, fault: Fault) -> Script:
    """Each n-th request, the n-th one first."""
    return lambda i: fault if (i + 1) % n == 0 else None


def half(fault: Fault, *, seed: int = 0) -> Script:
    """About half of the requests, the same ones for the same seed."""
    return lambda i: fault if random.Random(seed * 1_000_003 + i).random() < 0.5 else None


class FaultyServer(LoopbackServer):
    """Strikes requests by script. What it refuses to do is in `faults`.

    A fault at connection time strikes when its number is the next and a connection is opened.

    Args:
        script: Which request meets what.
        answer: The honest answer.
        hits: Which requests count; all others are answered honestly.
        tls: Serves https with this context.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        answer: Answer | None = None,
        hits: Callable[[Request], bool] = lambda _: True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._script = script or honest()
        self._honest = answer or TinyApi()
        self._hits = hits
        self._next = 0
        self.struck = 0
        super().__init__(self._respond, greet=self._greeting, tls=tls)

    def play(self, script: Script) -> None:
        """Go by another script from now on, from its beginning."""
        self._script, self._next = script, 0

    async def _respond(self, request: Request) -> Reply:
        fault = self._turn() if self._hits(request) else None
        return await (self._honest(request) if fault is None else fault(request, self._honest))

    def _greeting(self) -> Reply | None:
        fault = self._script(self._next)
        if not isinstance(fault, AtConnection):
            return None
        self._turn()
        return fault.reply

    def _turn(self) -> Fault | None:
        fault = self._script(self._next)
        self._next += 1
        self.struck += fault is not None
        return fault


needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the openssl command is absent"
)


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A context with a certificate for 127.0.0.1 that nobody vouches for, and that certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    openssl = ["openssl", *asked.split(), *names, *files]
    subprocess.run(openssl, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
