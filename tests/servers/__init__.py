"""Servers on loopback that the tests talk to: honest ones, misbehaving ones, and real ones.

Attributes:
    loopback: an HTTP server in a thread of its own, which counts and remembers what it is sent;
        `exchange` has its requests and replies.
    quirks: how one kind of server differs from another.
    tiny: an OpenAI-compatible server around the bundled checkpoint; `tiny_model` is what it runs,
        `formats` what it writes.
    faults: what can go wrong, and `faulty` a server to which it happens by script.
    processes: real servers, started as processes.
    asking: requests of the OpenAI interface.
"""
