"""Loading a Qwen3Guard-Stream checkpoint as it was published, without code from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from guardrails_qwen.engines.backbone import Backbone, unsupported
from guardrails_qwen.engines.families import is_stream
from guardrails_qwen.engines.matmul import Precision
from guardrails_qwen.engines.prompting import (
    Tokenizer,
    is_bundled,
    quiet,
    readable_errors,
    source_of,
)
from guardrails_qwen.engines.stream_heads import QUERY, RESPONSE, Heads, head_shapes, require_labels
from guardrails_qwen.engines.stream_prompting import StreamPrompting
from guardrails_qwen.engines.weights import fingerprint, require_all
from guardrails_qwen.errors import CheckpointError

_NEEDED = ("config.json", "tokenizer.json", "*.safetensors")


@dataclass(frozen=True, kw_only=True)
class StreamCheckpoint:
    """A loaded model and what is needed to ask it."""

    name: str
    fingerprint: str
    backbone: Backbone
    query: Heads
    response: Heads
    prompting: StreamPrompting
    context: int
    """The longest sequence that the model takes, in tokens."""
    demonstration: bool
    """Whether it only shows how things work, as the bundled one does, and protects nobody."""


class _GuardModel(Qwen3PreTrainedModel):
    """The names and shapes of the published state dict, for the library's loader."""

    config_class = Qwen3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # pyright: ignore[reportUnknownMemberType]
        self.model = Qwen3Model(config)
        for name, shape in head_shapes(config).items():
            self.add_module(name.removesuffix(".weight"), _Weight(shape))
        self.post_init()


class _Weight(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


def load(
    model: str | Path,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
) -> StreamCheckpoint:
    """A checkpoint from a folder or the model hub. See `StreamEngine.from_pretrained`."""
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    loaders = cast("tuple[Any, Any, Any]", (Qwen3Config, AutoTokenizer, _GuardModel))
    config_loader, tokenizer_loader, model_loader = loaders
    with readable_errors(model), quiet():
        source = source_of(model, needed=_NEEDED)
        config: Any = config_loader.from_pretrained(source, **options)
        _require_stream(config)
        tokenizer: Tokenizer = tokenizer_loader.from_pretrained(source, **options)
        precision = Precision.of(dtype, device)
        network, info = model_loader.from_pretrained(
            source,
            config=config,
            dtype=precision.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
        require_all(info)
        prompting = StreamPrompting.of(tokenizer)
        weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        heads = {names: Heads.of(weights, config, names) for names in (QUERY, RESPONSE)}
        digest = fingerprint(network, config.to_dict(), [prompting.digest, precision.value])
        del weights
        return StreamCheckpoint(
            name=Path(source).name if Path(source).is_dir() else str(model),
            fingerprint=digest,
            backbone=Backbone(network.model.to(device), precision),
            query=heads[QUERY].to(device),
            response=heads[RESPONSE].to(device),
            prompting=prompting,
            context=int(config.max_position_embeddings or 0),
            demonstration=is_bundled(source) or bool(getattr(config, "demonstration", False)),
        )


def _require_stream(config: Any) -> None:
    data = config.to_dict()
    if config.model_type != "qwen3" or not is_stream(data):
        named = ", ".join(map(str, data.get("architectures") or ["unnamed"]))
        raise CheckpointError(
            f"this is a {config.model_type} checkpoint ({named}): this engine takes "
            "Qwen3Guard-Stream, for example Qwen/Qwen3Guard-Stream-0.6B"
        )
    unknown = unsupported(config)
    if unknown:
        raise CheckpointError(f"the model has {unknown}, which Qwen3Guard-Stream does not")
    head_shapes(config)
    require_labels(config)
