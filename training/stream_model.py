"""The shape of tiny-stream: a Qwen3 backbone with eight head tensors, and its folder.

Names, shapes and configuration fields are those of the published Qwen3Guard-Stream checkpoints.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from training import example as labels
from training.stream_example import RISKS

CATEGORIES = {
    labels.VIOLENT: "Violent",
    labels.SEXUAL: "Sexual Content",
    labels.SELF_HARM: "Self-Harm",
    labels.POLITICAL: "Political",
    labels.PII: "PII",
    labels.COPYRIGHT: "Copyright",
    labels.ILLEGAL: "Illegal Acts",
    labels.UNETHICAL: "Unethical",
    labels.JAILBREAK: "Jailbreak",
}
"""Our names and the published ones, in the order of the heads; the last is for prompts only."""

INNER, POSITIONS = 64, 8192
TEMPLATE = Path(__file__).with_name("stream_chat_template.jinja")


class StreamGuard(nn.Module):
    """The backbone under `model`, and two pairs of heads: for prompts and for replies."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3Model(config)
        for prefix, categories in (("", len(CATEGORIES) - 1), ("query_", len(CATEGORIES))):
            pre = nn.Linear(config.hidden_size, INNER, bias=False)
            norm = Qwen3RMSNorm(INNER, eps=config.rms_norm_eps)
            self.add_module(f"{prefix}risk_level_category_pre", pre)
            self.add_module(f"{prefix}risk_level_category_layernorm", norm)
            self.add_module(f"{prefix}risk_level_head", nn.Linear(INNER, len(RISKS), bias=False))
            self.add_module(f"{prefix}category_head", nn.Linear(INNER, categories, bias=False))

    def hidden(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Last hidden states [rows, tokens, hidden]; what pads `tokens` stands on the right.

        With the mask named as absent, positions may have gaps: they separate no sequences.
        """
        return self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask={"full_attention": None},
            use_cache=False,
        ).last_hidden_state

    def replies(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of severity and category, read from reply tokens' hidden states."""
        return self._read("", hidden)

    def prompts(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of severity and category, read at the token that closes the prompt."""
        return self._read("query_", hidden)

    def _read(self, prefix: str, hidden: Tensor) -> tuple[Tensor, Tensor]:
        pre = self.get_submodule(f"{prefix}risk_level_category_pre")(hidden)
        inner = self.get_submodule(f"{prefix}risk_level_category_layernorm")(pre)
        risk = self.get_submodule(f"{prefix}risk_level_head")(inner)
        return risk, self.get_submodule(f"{prefix}category_head")(inner)


def config(tokenizer: Any) -> Qwen3Config:
    """The shape: long replies are cheap with a single key/value head."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        attention_bias=False,
        use_cache=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def warm(guard: StreamGuard, folder: Path) -> None:
    """Begin with the word vectors of tiny-gen, whose tokenizer this is."""
    known = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        guard.model.embed_tokens.weight.copy_(known.model.embed_tokens.weight)


def load(folder: Path) -> StreamGuard:
    """The guard in `folder`, in float32."""
    guard = StreamGuard(Qwen3Config.from_pretrained(folder))
    weights = load_file(folder / "model.safetensors")
    guard.load_state_dict({name: value.float() for name, value in weights.items()})
    return guard.eval()


def save(guard: StreamGuard, folder: Path, verdicts: Callable[[StreamGuard], list[int]]) -> None:
    """Write the weights in the 16-bit type whose verdicts agree best with float32, and say so."""
    expected = verdicts(guard)
    changed: dict[torch.dtype, int] = {}
    for dtype in (torch.float16, torch.bfloat16):
        found = verdicts(copy.deepcopy(guard).to(dtype).float())
        changed[dtype] = sum(a != b for a, b in zip(expected, found, strict=True))
    print(f"verdicts changed by rounding, of {len(expected)}: {changed}", flush=True)
    best = min(changed, key=lambda dtype: changed[dtype])
    write(guard.state_dict(), guard.config, folder, best)


def write(
    weights: Mapping[str, Tensor], shape: Qwen3Config, folder: Path, dtype: torch.dtype
) -> None:
    """The folder's weights and configuration, in the published layout."""
    rounded = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    fields = shape.to_diff_dict()
    fields.pop("rope_parameters", None)
    names = list(CATEGORIES.values())
    fields |= {
        "architectures": ["Qwen3ForGuardModel"],
        "model_type": "qwen3",
        "demonstration": True,
        "dtype": str(dtype).removeprefix("torch."),
        "guard_inner_size": INNER,
        "num_risk_level": len(RISKS),
        "num_category": len(names) - 1,
        "num_query_risk_level": len(RISKS),
        "num_query_category": len(names),
        "response_risk_level_map": _numbered(RISKS),
        "response_category_map": _numbered(names[:-1]),
        "query_risk_level_map": _numbered(RISKS),
        "query_category_map": _numbered(names),
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    (folder / "config.json").write_text(json.dumps(dict(sorted(fields.items())), indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


def _numbered(names: Any) -> dict[str, str]:
    return {str(i): name for i, name in enumerate(names)}


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer files of `source`, for our length and with our chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    fields = json.loads((source / "tokenizer_config.json").read_text())
    fields["model_max_length"] = POSITIONS
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
