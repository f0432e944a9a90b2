"""Which family a model is of, and the engine that runs it, here or on a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrails_qwen.engines.llama_guard import LlamaGuardEngine, LlamaGuardOptions
from guardrails_qwen.engines.local import needs_local
from guardrails_qwen.engines.session_limits import Sessions
from guardrails_qwen.engines.stream import StreamEngine, StreamOptions
from guardrails_qwen.engines.transformers import LoadOptions, TransformersEngine
from guardrails_qwen.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from guardrails_qwen.engines.openai_compatible import (
        OpenAICompatibleEngine,
        RemoteOptions,
    )
    from guardrails_qwen.engines.openai_moderation import OpenAIModerationEngine


class Family(str, Enum):
    """The families that run here."""

    QWEN3GUARD = "qwen3guard"
    """Qwen3Guard-Gen, which judges whole texts."""
    QWEN3GUARD_STREAM = "qwen3guard_stream"
    """Qwen3Guard-Stream, which judges every token of a reply."""
    LLAMA_GUARD = "llama_guard"


class LocalOptions(LoadOptions, total=False):
    """Options of `from_pretrained`. Each engine takes those that it has, and refuses others."""

    sessions: Sessions


MODERATION = ("omni-moderation", "text-moderation")
"""How the names of OpenAI's moderation models begin, which have an endpoint of their own."""

_FAMILIES = {
    "qwen3": Family.QWEN3GUARD,
    "llama": Family.LLAMA_GUARD,
    "llama4": Family.LLAMA_GUARD,
    "llama4_text": Family.LLAMA_GUARD,
}
"""By model type. Its engine then looks at the chat template, and refuses what is no guard's."""

_STREAM = "Qwen3ForGuardModel"
"""What the config of a Qwen3Guard-Stream checkpoint says it is."""


def from_pretrained(
    model: str | Path = "tiny", **options: Unpack[LocalOptions]
) -> TransformersEngine | StreamEngine | LlamaGuardEngine:
    """The local engine for a checkpoint, by its config.json.

    Args:
        model: A name on the model hub, a folder, `tiny` or `tiny-stream`.
        options: Those of `TransformersEngine.from_pretrained`, and `sessions` for a
            `StreamEngine`. This has no `calibration`, `windows` and `warm_up`; `LlamaGuardEngine`
            no `calibration`, `row_tokens` and `warm_up`.

    Raises:
        CheckpointError: There is no such checkpoint, no engine for it, or it cannot be loaded.
        ValueError: An option is not one of its engine's.
        ImportError: torch and transformers are not installed.
    """
    family = family_of(
        model,
        revision=options.get("revision"),
        local_files_only=options.get("local_files_only", False),
    )
    if family is Family.QWEN3GUARD_STREAM:
        known = _known("Qwen3Guard-Stream", StreamOptions.__annotations__, options)
        return StreamEngine.from_pretrained(model, **known)
    if family is Family.LLAMA_GUARD:
        known = _known("Llama Guard", LlamaGuardOptions.__annotations__, options)
        return LlamaGuardEngine.from_pretrained(model, **known)
    known = _known("Qwen3Guard-Gen", LoadOptions.__annotations__, options)
    return TransformersEngine.from_pretrained(model, **known)


def _known(family: str, names: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that an engine has; of the others it may be handed what means nothing.

    Raises:
        ValueError: Another one is set.
    """
    known = set(names)
    others = sorted(name for name, value in options.items() if value and name not in known)
    if others:
        raise ValueError(f"{family}'s engine has no option {', '.join(others)}: leave it out")
    return {name: value for name, value in options.items() if name in known}


def from_url(
    base_url: str, **options: Unpack[RemoteOptions]
) -> OpenAICompatibleEngine | OpenAIModerationEngine:
    """The engine for a model on a server, by the model's name.

    Args:
        base_url: With the version, as `http://localhost:8000/v1`.
        options: Those of `OpenAICompatibleEngine.from_url`. `OpenAIModerationEngine`, which is for
            names like `omni-moderation-latest` without a `dialect`, has no `way` and `tokenizer`.

    Raises:
        CheckpointError: The tokenizer cannot be used.
        ValueError: The URL or an option is wrong.
        ImportError: openai or tenacity is not installed.
    """
    try:
        from guardrails_qwen.engines.openai_compatible import OpenAICompatibleEngine
        from guardrails_qwen.engines.openai_moderation import OpenAIModerationEngine
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a remote engine needs {error.name}: pip install 'guardrails-qwen[remote]'"
        ) from error
    if not (options.get("model") or "").startswith(MODERATION) or options.get("dialect"):
        return OpenAICompatibleEngine.from_url(base_url, **options)
    given: dict[str, Any] = {
        name: value for name, value in options.items() if value is not None and value != "auto"
    }
    others = sorted({"way", "tokenizer"} & set(given))
    if others:
        raise ValueError(f"the moderation endpoint has no option {', '.join(others)}: leave it out")
    return OpenAIModerationEngine(base_url=base_url, **given)


def family_of(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> Family:
    """The family of a checkpoint, by its config.json; nothing else of it is read.

    Raises:
        CheckpointError: There is no such checkpoint, or it is of no family that runs here.
        ImportError: transformers is not installed.
    """
    with needs_local():
        from guardrails_qwen.engines.prompting import readable_errors, source_of
    with readable_errors(model):
        source = source_of(model, needed=("config.json",))
        config = _config(source, revision, local_files_only)
    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        raise CheckpointError(
            f"this is a {kind} checkpoint: what runs here is Qwen3Guard-Gen and -Stream (qwen3) "
            "and Llama Guard 3 and 4 (llama, llama4)"
        )
    return Family.QWEN3GUARD_STREAM if is_stream(config) else _FAMILIES[kind]


def is_stream(config: Mapping[str, Any]) -> bool:
    """Whether a config's `architectures` says Qwen3Guard-Stream."""
    named: object = config.get("architectures")
    return named == _STREAM or (isinstance(named, list) and _STREAM in named)


def _config(source: str, revision: str | None, local_files_only: bool) -> Mapping[str, Any]:
    from transformers import PreTrainedConfig

    library: Any = PreTrainedConfig
    config, _ = library.get_config_dict(
        source, revision=revision, local_files_only=local_files_only
    )
    if not config:
        raise CheckpointError(f"the checkpoint {source} has no config.json that can be read")
    return config
