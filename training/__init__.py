"""How the bundled demonstration checkpoints were made, re-runnable.

tiny-gen: `train` is the one command; it reads `data` (public sources), `annotate` (Controversial
labels), `synthetic` (our own phrases), `tokenizer` and `packing`. `evaluate` writes the report.
tiny-stream: `stream_train` and `stream_evaluate`, on the same sources and phrases.
"""
