"""`python -m guardrails_qwen`."""

from guardrails_qwen.cli import main

main()
