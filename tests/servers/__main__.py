"""A `TinyServer` as a process: `python -m tests.servers SGLANG 8000`, until it is ended."""

from __future__ import annotations

import signal
import sys

from tests.servers import quirks
from tests.servers.loopback import LoopbackServer
from tests.servers.tiny import TinyApi


def main(name: str, port: str) -> None:
    """Serve until a signal ends the process."""
    api = TinyApi(getattr(quirks, name))
    with LoopbackServer(api, port=int(port)):
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
