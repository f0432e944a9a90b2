"""The commands of the deployment page and its compose file, read by vLLM's own parser."""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache

import pytest

from tests.deployment import vllm_commands
from tests.servers.processes import VLLM_PYTHON

PARSER = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

serve = ServeSubcommand()
whole = FlexibleArgumentParser()
serve.subparser_init(whole.add_subparsers(dest="subparser"))

def parsed(words):
    try:
        if words[0] == "vllm":
            found = whole.parse_args(words[1:])
            found.model = found.model_tag
        else:
            found = make_arg_parser(FlexibleArgumentParser()).parse_args(words[3:])
        serve.validate(found)
    except SystemExit:
        return None
    return {name: getattr(found, name) for name in ("model", "max_model_len", "port")}

print(json.dumps([parsed(words) for words in json.load(sys.stdin)]))
"""

COMMANDS = vllm_commands()
WRONG = [[*command, "--guided-decoding"] for command in COMMANDS]
"""What the parser has to refuse, or it would prove nothing."""


@lru_cache(maxsize=1)
def read() -> list[dict[str, object] | None]:
    """What vLLM understands of all of them; importing it takes long, so it is done once."""
    run = subprocess.run(
        [os.environ[VLLM_PYTHON], "-c", PARSER],
        input=json.dumps([*COMMANDS, *WRONG]),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("place", range(len(COMMANDS)), ids=lambda i: f"{i}-{COMMANDS[i][0]}")
def test_vllm_takes_the_command(place: int) -> None:
    found = read()[place]
    assert found is not None
    assert "Qwen3Guard-Gen" in str(found["model"]) or found["model"] == "./qwen3guard-0.6b"
    assert found["max_model_len"] == 4096
    assert found["port"] == 8000


@pytest.mark.parametrize("place", range(len(WRONG)))
def test_vllm_refuses_a_flag_that_it_lacks(place: int) -> None:
    assert read()[len(COMMANDS) + place] is None
