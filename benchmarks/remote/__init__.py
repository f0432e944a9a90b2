"""Ways of asking a server for verdicts, side by side: `python -m benchmarks.remote`.

Attributes:
    questions: what is asked.
    contenders: who asks: our engine in each of its ways, and openai's client by itself.
    speed: how long a verdict takes, and how many a second there are.
    tokens: what a verdict costs the server.
    stub: a server in another process that answers at once, or after a while.
    client: what a verdict costs the client: processor time, memory.
    agreement: verdicts and scores beside the local engine's.
    report: what was measured, as Markdown.
"""
