"""How the bundled demonstration checkpoints were made, re-runnable.

`train` is the one command; it reads `data` (public sources), `annotate` (Controversial labels),
`synthetic` (our own phrases), `tokenizer` and `packing`. `evaluate` writes the report.
"""
