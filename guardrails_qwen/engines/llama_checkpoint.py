"""Loading a Llama Guard 3 or 4 checkpoint, with everything about it checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Llama4ForCausalLM,
    LlamaForCausalLM,
    PreTrainedConfig,
)

from guardrails_qwen.dialects import llama_guard
from guardrails_qwen.engines import weights
from guardrails_qwen.engines.greedy import Greedy
from guardrails_qwen.engines.matmul import Precision
from guardrails_qwen.engines.prompting import Prompting, quiet, readable_errors, source_of
from guardrails_qwen.errors import CheckpointError

_NEEDED = ("config.json", "tokenizer.json", "*.safetensors")


class _TextOfLlama4(Llama4ForCausalLM):
    """The language model of a Llama 4 checkpoint, without its vision tower."""

    _keys_to_ignore_on_load_unexpected = (r"^vision_model\.", r"^multi_modal_projector\.")  # pyright: ignore


_CLASSES: dict[tuple[str, str], Any] = {
    ("llama", "LlamaForCausalLM"): LlamaForCausalLM,
    ("llama4", "Llama4ForConditionalGeneration"): _TextOfLlama4,
    ("llama4_text", "Llama4ForCausalLM"): _TextOfLlama4,
}
"""By model type and architecture."""


@dataclass(frozen=True, kw_only=True)
class LlamaCheckpoint:
    """A loaded model and what is needed to ask it."""

    name: str
    fingerprint: str
    model: Any = field(repr=False)
    precision: Precision
    prompting: Prompting
    ends: frozenset[int]
    """Ids of the tokens that end a turn."""
    context: int
    """The longest sequence that the model takes, in tokens."""
    backend: Any = field(repr=False)
    """The tokenizer, of the tokenizers library."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def decode(self, tokens: Sequence[int]) -> str:
        """What tokens say, special ones included."""
        return self.backend.decode(list(tokens), skip_special_tokens=False)

    def greedy(self) -> Greedy:
        """What writes the model's answers."""
        encode = self.prompting.encoder.text
        front = "" if self.prompting.template.scaffold(1)[-1].endswith("\n") else "\n\n"
        return Greedy(
            self.model,
            guess=encode(front + llama_guard.SAFE),
            ends=self.ends,
            watched=[self._beginnings(word) for word in (llama_guard.SAFE, llama_guard.UNSAFE)],
            goes_on=lambda tokens: llama_guard.may_become(self.decode(tokens)),
            longest=llama_guard.ANSWER_TOKENS,
        )

    def _beginnings(self, word: str) -> list[int]:
        """Every token that a word may begin with, however it is cut."""
        encode = self.prompting.encoder.text
        cuts = [
            encode(space + word[:end]) for space in ("", " ") for end in range(1, len(word) + 1)
        ]
        return sorted({ids[0] for ids in cuts if len(ids) == 1} | {encode(word)[0]})


def load(
    model: str | Path,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
) -> LlamaCheckpoint:
    """A checkpoint from a folder or the model hub. See `LlamaGuardEngine.from_pretrained`."""
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    with readable_errors(model), quiet():
        source = source_of(model, needed=_NEEDED)
        config = _from_pretrained(AutoConfig, source, **options)
        network_class = _class(config)
        tokenizer = _from_pretrained(AutoTokenizer, source, **options)
        prompting = Prompting.of(tokenizer)
        for count in (1, 2):
            llama_guard.require_its_categories(prompting.template.scaffold(count)[0])
        precision = _precision(dtype, device)
        text: PreTrainedConfig = config.get_text_config()
        network, info = _from_pretrained(
            network_class,
            source,
            config=text,
            dtype=precision.dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
        weights.require_all(info)
        backend = tokenizer.backend_tokenizer
        others = [prompting.digest, precision.value, llama_guard.LlamaGuard().fingerprint]
        return LlamaCheckpoint(
            name=Path(source).name if Path(source).is_dir() else str(model),
            fingerprint=weights.fingerprint(network, text.to_dict(), others),
            model=network.to(device).eval(),
            precision=precision,
            prompting=prompting,
            ends=_ends(prompting.end, text, network.generation_config),
            context=_context(text),
            backend=backend,
        )


def _from_pretrained(auto: Any, source: str, **options: Any) -> Any:
    """The library's loader, whose types say nothing."""
    return auto.from_pretrained(source, **options)


def _class(config: PreTrainedConfig) -> Any:
    named = config.architectures or []
    kind = (str(config.model_type), ", ".join([named] if isinstance(named, str) else named))
    if kind not in _CLASSES:
        raise CheckpointError(
            f"this is a {kind[0]} checkpoint ({kind[1] or 'unnamed'}): this engine takes Llama "
            "Guard 3 (llama, LlamaForCausalLM) and 4 (llama4, Llama4ForConditionalGeneration)"
        )
    return _CLASSES[kind]


def _precision(dtype: str | torch.dtype, device: torch.device) -> Precision:
    precision = Precision.of(dtype, device)
    if precision is Precision.INT8:
        raise CheckpointError("int8 is for Qwen3Guard only: use bfloat16, float32 or auto")
    return precision


def _ends(end: int, *configs: Any) -> frozenset[int]:
    """The tokens that end a turn, by the tokenizer and by every configuration."""
    ends = {end}
    for config in configs:
        named = cast("list[int] | int | None", getattr(config, "eos_token_id", None))
        ends.update([named] if isinstance(named, int) else named or [])
    return frozenset(ends)


def _context(config: PreTrainedConfig) -> int:
    """The longest sequence that padding does not change, in tokens.

    Llama 4 attends in chunks and scales by position, both counted with the padding.
    """
    limits = ("max_position_embeddings", "attention_chunk_size", "floor_scale")
    found = [getattr(config, name, None) for name in limits]
    return min((limit for limit in found if isinstance(limit, int)), default=0)
