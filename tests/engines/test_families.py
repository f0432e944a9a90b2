"""Each checkpoint gets the engine of its family, by what its config says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import guardrails_qwen
from guardrails_qwen import CheckpointError, Guard, Windows
from guardrails_qwen.engines.families import Family, family_of, from_pretrained
from guardrails_qwen.engines.session import SessionEngine
from guardrails_qwen.engines.session_limits import AtLimit, Sessions
from guardrails_qwen.engines.stream import StreamEngine
from guardrails_qwen.engines.transformers import TransformersEngine

STREAM = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-stream"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A copy of tiny-stream with another config."""

    def made(**config: object) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(STREAM, copy)
        path = copy / "config.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, **config}))
        return copy

    return made


@pytest.mark.parametrize(
    ("model", "family", "engine"),
    [
        pytest.param("tiny", Family.QWEN3GUARD, TransformersEngine, id="tiny"),
        pytest.param("tiny-stream", Family.QWEN3GUARD_STREAM, StreamEngine, id="tiny-stream"),
        pytest.param(STREAM, Family.QWEN3GUARD_STREAM, StreamEngine, id="a folder"),
    ],
)
def test_its_engine(model: str | Path, family: Family, engine: type[object]) -> None:
    assert family_of(model) is family
    with from_pretrained(model, device="cpu") as loaded:
        assert type(loaded) is engine
        assert isinstance(loaded, SessionEngine) is (engine is StreamEngine)


@pytest.mark.parametrize("named", ["Qwen3ForGuardModel", ["Other", "Qwen3ForGuardModel"]])
def test_an_architecture_alone_or_among_others(named: object, folder: Callable[..., Path]) -> None:
    assert family_of(folder(architectures=named)) is Family.QWEN3GUARD_STREAM


@pytest.mark.parametrize("named", [None, [], "Qwen3ForCausalLM", ["Qwen3ForGuardModelToo"]])
def test_no_other_architecture_is_taken_for_it(named: object, folder: Callable[..., Path]) -> None:
    assert family_of(folder(architectures=named)) is Family.QWEN3GUARD


def test_a_guard_takes_the_options_of_sessions() -> None:
    sessions = Sessions(most=1, at_limit=AtLimit.REFUSE)
    engine = from_pretrained("tiny-stream", device="cpu", sessions=sessions)
    assert isinstance(engine, StreamEngine)
    with engine, StreamEngine.from_pretrained("tiny-stream", device="cpu") as other:
        assert engine.fingerprint != other.fingerprint  # what becomes of long replies
    with Guard.from_pretrained("tiny-stream", device="cpu").stream("Hi") as stream:
        stream.feed("Hello there.")
        stream.finish()
        assert stream.decision
        assert stream.decision.verdict
        assert stream.decision.verdict.model == "tiny-stream"


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        pytest.param("tiny-stream", {"warm_up": True}, "warm_up", id="warm_up"),
        pytest.param("tiny-stream", {"calibration": "c.json"}, "calibration", id="calibration"),
        pytest.param("tiny-stream", {"windows": Windows()}, "windows", id="windows"),
        pytest.param("tiny", {"sessions": Sessions()}, "sessions", id="sessions"),
    ],
)
def test_an_option_of_another_engine(model: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"engine has no option {named}: leave it out"):
        from_pretrained(model, device="cpu", **options)


def test_what_is_not_set_is_no_option_of_another_engine() -> None:
    with from_pretrained("tiny-stream", device="cpu", calibration=None, warm_up=False) as engine:
        assert isinstance(engine, StreamEngine)
    with pytest.raises(ValueError, match="row_tokens is 0"):
        from_pretrained("tiny-stream", device="cpu", row_tokens=0)


def test_the_engine_of_whole_texts_names_the_other_one() -> None:
    with pytest.raises(CheckpointError, match="StreamEngine"):
        TransformersEngine.from_pretrained("tiny-stream", device="cpu")


def test_the_family_is_found_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from guardrails_qwen.engines.families import family_of\n"
        "print(family_of('tiny-stream').value)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "qwen3guard_stream"
