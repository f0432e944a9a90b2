"""Real prompts and replies from the shared data folder, which stays outside this repository."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from guardrails_qwen import Conversation

_DEFAULT = Path(__file__).parents[2].parent / "shared" / "data"
FOLDER = Path(os.environ.get("GUARDRAILS_QWEN_DATA", _DEFAULT))

needs_data = pytest.mark.skipif(
    not (FOLDER / "benchmarks").is_dir(),
    reason=f"the data folder {FOLDER} is absent (set GUARDRAILS_QWEN_DATA)",
)

_SOURCES = [
    "benchmarks/simple_safety_tests",
    "benchmarks/harmbench_prompts_guard",
    "benchmarks/xstest",
    "benchmarks/xstest_responses_guard",
    "train/clinc150",
    "train/jade_db_prompts",
    "train/catqa",
    "train/do_not_answer_responses",
    "train/smilechat_zh",
    "train/gpteacher",
    "train/cyberseceval_prompt_injection",
]


def conversations(*, replies: bool, most: int) -> list[Conversation]:
    """Up to `most` real prompts, or prompts with their replies, in turn from every source."""
    rows = [_rows(source) for source in _SOURCES]
    longest = max(map(len, rows))
    mixed = [source[i] for i in range(longest) for source in rows if i < len(source)]
    found = [
        Conversation.exchange(prompt, reply) if replies and reply else Conversation.of(prompt)
        for prompt, reply in mixed
        if prompt and len(prompt) + len(reply or "") < 2500 and (reply or not replies)
    ]
    return found[:most]


def _rows(source: str) -> list[tuple[str, str | None]]:
    with gzip.open(FOLDER / f"{source}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["prompt"], row["response"]) for row in rows]
