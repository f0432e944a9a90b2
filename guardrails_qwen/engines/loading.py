"""Loading a Qwen3Guard-Gen checkpoint, with everything about it checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)

from guardrails_qwen.engines.backbone import unsupported
from guardrails_qwen.engines.decoder import Decoder
from guardrails_qwen.engines.families import is_stream
from guardrails_qwen.engines.matmul import Precision
from guardrails_qwen.engines.prompting import (
    Prompting,
    Tokenizer,
    is_bundled,
    quiet,
    readable_errors,
    source_of,
)
from guardrails_qwen.engines.weights import fingerprint, require_all
from guardrails_qwen.errors import CheckpointError

_NEEDED = ("config.json", "tokenizer.json", "*.safetensors")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model and what is needed to ask it."""

    name: str
    fingerprint: str
    decoder: Decoder
    prompting: Prompting
    context: int
    """The longest sequence that the model takes, in tokens."""
    demonstration: bool
    """Whether it only shows how things work, as the bundled one does, and protects nobody."""


def load(
    model: str | Path,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """A checkpoint from a folder or the model hub. See `TransformersEngine.from_pretrained`."""
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    with readable_errors(model), quiet():
        source = source_of(model, needed=_NEEDED)
        config = cast("PreTrainedConfig", _from_pretrained(AutoConfig, source, **options))
        _require_qwen3guard_gen(config)
        tokenizer = cast("Tokenizer", _from_pretrained(AutoTokenizer, source, **options))
        precision = Precision.of(dtype, device)
        network, info = _from_pretrained(
            AutoModelForCausalLM,
            source,
            config=config,
            dtype=precision.dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
        require_all(info)
        prompting = Prompting.of(tokenizer, bundled=is_bundled(source))
        context = int(config.max_position_embeddings or 0)
        _require_room(prompting, context)
        return Checkpoint(
            name=Path(source).name if Path(source).is_dir() else str(model),
            fingerprint=fingerprint(
                network, network.config.to_dict(), [prompting.digest, precision.value]
            ),
            decoder=Decoder(network.to(device), precision),
            prompting=prompting,
            context=context,
            demonstration=prompting.demonstration or bool(getattr(config, "demonstration", False)),
        )


def _from_pretrained(auto: Any, source: str, **options: Any) -> Any:
    """The library's loader, whose types say nothing."""
    return auto.from_pretrained(source, **options)


def _require_room(prompting: Prompting, context: int) -> None:
    needed = prompting.overhead(response=True)
    if needed >= context:
        raise CheckpointError(
            f"the model's context of {context} tokens has no room for the guard's own "
            f"instructions, which take about {needed}"
        )


def _require_qwen3guard_gen(config: PreTrainedConfig) -> None:
    if is_stream(config.to_dict()):
        raise CheckpointError(
            "this is a Qwen3Guard-Stream checkpoint, which judges token by token: load it with "
            "StreamEngine, or Guard.from_pretrained; this engine takes Qwen3Guard-Gen, for example "
            "Qwen/Qwen3Guard-Gen-0.6B"
        )
    named = config.architectures or []
    architectures = [named] if isinstance(named, str) else list(named)
    if config.model_type != "qwen3" or architectures != ["Qwen3ForCausalLM"]:
        raise CheckpointError(
            f"this is a {config.model_type} checkpoint ({', '.join(architectures) or 'unnamed'}): "
            "this engine takes Qwen3Guard-Gen (qwen3, Qwen3ForCausalLM)"
        )
    unknown = unsupported(config)
    if unknown:
        raise CheckpointError(f"the model has {unknown}, which Qwen3Guard-Gen does not")


def device_of(name: str) -> torch.device:
    """A device by name; of a plain `cuda` the current one of this thread.

    Raises:
        CheckpointError: There is no such device.
    """
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else other
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CheckpointError(f"there is no device {name!r}: use auto, cpu, cuda or mps") from None
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device
