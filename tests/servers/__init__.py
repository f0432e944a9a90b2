"""Servers on loopback that the tests talk to: honest ones, misbehaving ones, and real ones.

Attributes:
    loopback: an HTTP server in a thread of its own, which counts and remembers what it is sent.
    quirks: how one kind of server differs from another.
    tiny: an OpenAI-compatible server around the bundled checkpoint.
    faulty: a server that misbehaves by script.
    processes: real servers, started as processes.
"""
