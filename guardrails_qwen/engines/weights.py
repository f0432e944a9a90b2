"""What every local engine asks of loaded weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from guardrails_qwen.errors import CheckpointError


def require_all(info: Mapping[str, Any]) -> None:
    """Refuse weights that the library would make up or leave out.

    Raises:
        CheckpointError: `info`, the library's account of loading, tells of any.
    """
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(map(str, info.get(kind) or ()))
        if keys:
            shown = ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
            raise CheckpointError(f"the checkpoint has {kind.replace('_', ' ')}: {shown}")


def fingerprint(model: torch.nn.Module, config: Mapping[str, Any], others: Sequence[object]) -> str:
    """A digest of configuration, every weight, and whatever else makes a verdict what it is."""
    digest = hashlib.sha256()
    kept = {k: v for k, v in config.items() if k not in {"_name_or_path", "transformers_version"}}
    digest.update(json.dumps([kept, *others], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
