"""Calibrations as JSON: validated, with messages that name the file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrails_qwen.calibration.temperatures import Calibration
from guardrails_qwen.errors import CheckpointError

_Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Temperatures(_Model):
    severity: _Temperature = 1.0
    category: _Temperature = 1.0
    refusal: _Temperature = 1.0


class _File(_Model):
    version: Literal[1]
    model: str = ""
    fingerprint: str = ""
    temperature: _Temperatures


def read_file(path: Path) -> Calibration:
    """See `Calibration.from_file`."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise CheckpointError(
            f"the calibration file {path} cannot be read: {error.strerror}"
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        reason = error if isinstance(error, _Twice) else "not a calibration file in UTF-8"
        raise CheckpointError(f"{path}: {reason}") from error
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"{path}, {_said(error)}") from error
    return Calibration(
        **file.temperature.model_dump(), model=file.model, fingerprint=file.fingerprint
    )


class _Twice(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(f"the field {key!r} is given twice")
        found[key] = value
    return found


def _said(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "the top"
    said = {
        "extra_forbidden": "this is not a known field; check its spelling",
        "missing": "this field is required",
        "model_type": "fields and their values are expected here",
    }
    if problem["loc"] == ("version",) and problem["type"] != "missing":
        return "at version: only version 1 is known; upgrade guardrails-qwen, or fit it again"
    return f"at {where}: {said.get(problem['type'], problem['msg'])}"
