"""Loading a Qwen3Guard-Gen checkpoint, with everything about it checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from guardrails_qwen.dialects.qwen3guard import GuardTemplate
from guardrails_qwen.engines.decoder import Decoder, unsupported
from guardrails_qwen.engines.matmul import Precision
from guardrails_qwen.engines.tokenization import PromptEncoder
from guardrails_qwen.errors import CheckpointError

TINY = "tiny"
"""The name of the bundled checkpoint."""

_BUNDLED = Path(str(files("guardrails_qwen"))) / "checkpoints" / "tiny-gen"


class _Tokenizer(Protocol):
    """What is used of the library's tokenizers, whose own types say little."""

    chat_template: object
    eos_token_id: object
    is_fast: bool
    backend_tokenizer: Any

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool
    ) -> object: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, object]: ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model and what is needed to ask it."""

    name: str
    fingerprint: str
    decoder: Decoder
    encoder: PromptEncoder
    template: GuardTemplate
    end: int
    """Id of the token that ends a turn."""
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
    with _readable_errors(model), _quiet():
        source = _source(model)
        config = cast("PreTrainedConfig", _from_pretrained(AutoConfig, source, **options))
        _require_qwen3guard_gen(config)
        tokenizer = cast("_Tokenizer", _from_pretrained(AutoTokenizer, source, **options))
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
        _require_all_weights(info)
        if not tokenizer.is_fast:
            raise CheckpointError("the checkpoint has no tokenizer.json, which this engine reads")
        template, encoder = _template(tokenizer), PromptEncoder(_backend(tokenizer))
        context = int(config.max_position_embeddings or 0)
        _require_same_prompt(tokenizer, template, encoder, context)
        return Checkpoint(
            name=Path(source).name if Path(source).is_dir() else str(model),
            fingerprint=_fingerprint(network, tokenizer, precision),
            decoder=Decoder(network.to(device), precision),
            encoder=encoder,
            template=template,
            end=_end(tokenizer),
            context=context,
            demonstration=source == str(_BUNDLED) or bool(getattr(config, "demonstration", False)),
        )


def _from_pretrained(auto: Any, source: str, **options: Any) -> Any:
    """The library's loader, whose types say nothing."""
    return auto.from_pretrained(source, **options)


def _source(model: str | Path) -> str:
    if str(model) == TINY:
        model = _BUNDLED
    path = Path(model).expanduser()
    if not path.exists():
        if isinstance(model, Path) or str(model).startswith((".", "/", "~")):
            raise CheckpointError(f"there is no checkpoint folder {path}")
        return str(model)
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the folder that holds config.json")
    needed = {
        "config.json": ["config.json"],
        "tokenizer.json": ["tokenizer.json"],
        "a .safetensors file": ["*.safetensors"],
    }
    for name, patterns in needed.items():
        if not any(any(path.glob(pattern)) for pattern in patterns):
            raise CheckpointError(f"the checkpoint folder {path} lacks {name}")
    return str(path)


def _require_qwen3guard_gen(config: PreTrainedConfig) -> None:
    named = config.architectures or []
    architectures = [named] if isinstance(named, str) else list(named)
    if "Qwen3ForGuardModel" in architectures:
        raise CheckpointError(
            "this is a Qwen3Guard-Stream checkpoint, which judges token by token: this engine "
            "takes Qwen3Guard-Gen, for example Qwen/Qwen3Guard-Gen-0.6B"
        )
    if config.model_type != "qwen3" or architectures != ["Qwen3ForCausalLM"]:
        raise CheckpointError(
            f"this is a {config.model_type} checkpoint ({', '.join(architectures) or 'unnamed'}): "
            "this engine takes Qwen3Guard-Gen (qwen3, Qwen3ForCausalLM)"
        )
    unknown = unsupported(config)
    if unknown:
        raise CheckpointError(f"the model has {unknown}, which Qwen3Guard-Gen does not")


def _require_all_weights(info: dict[str, Any]) -> None:
    """Refuse weights that the library would make up or leave out."""
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(map(str, info.get(kind) or ()))
        if keys:
            shown = ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
            raise CheckpointError(f"the checkpoint has {kind.replace('_', ' ')}: {shown}")


def _template(tokenizer: _Tokenizer) -> GuardTemplate:
    if not isinstance(tokenizer.chat_template, str):
        raise CheckpointError(
            "the tokenizer has no chat template: the guard's instructions are in it; use the "
            "checkpoint's own chat_template.jinja"
        )

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except (TemplateError, TypeError, ValueError) as error:
            raise CheckpointError(f"the chat template fails: {error}") from error

    return GuardTemplate(render)


def _require_same_prompt(
    tokenizer: _Tokenizer, template: GuardTemplate, encoder: PromptEncoder, context: int
) -> None:
    """Compare with the model card's way of encoding, on text without special tokens."""
    from guardrails_qwen.conversation import Conversation

    for conversation in (
        Conversation.of("Hello, how are you?\n"),
        Conversation.exchange("你好。 What's 2+2?", " It's 4.\n\nBye"),
    ):
        [prompt] = encoder.prompts([template.pieces(conversation)])
        messages = [message.to_dict() for message in conversation.messages]
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
        if tokenizer(rendered, add_special_tokens=False)["input_ids"] != prompt.ids:
            raise CheckpointError(
                "this tokenizer encodes prompts in a way that this engine does not reproduce; "
                "please report the checkpoint"
            )
        if len(prompt) >= context:
            raise CheckpointError(
                f"the model's context of {context} tokens has no room for the guard's own "
                f"instructions, which take about {len(prompt)}"
            )


def _end(tokenizer: _Tokenizer) -> int:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise CheckpointError("the tokenizer names no end-of-sequence token")
    return end


def _backend(tokenizer: _Tokenizer) -> str:
    return str(tokenizer.backend_tokenizer.to_str())


def _fingerprint(model: Qwen3ForCausalLM, tokenizer: _Tokenizer, precision: Precision) -> str:
    """A digest of configuration, template, tokenizer, precision and every weight."""
    digest = hashlib.sha256()
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in {"_name_or_path", "transformers_version"}
    }
    described: list[object] = [
        config,
        tokenizer.chat_template,
        _backend(tokenizer),
        precision.value,
    ]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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


@contextmanager
def _readable_errors(model: str | Path) -> Generator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library finds wrong with a folder
        raise CheckpointError(f"the checkpoint {model} cannot be loaded: {error}") from error


@contextmanager
def _quiet() -> Generator[None]:
    """Without progress bars, which are another library's idea of what belongs on a terminal."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
