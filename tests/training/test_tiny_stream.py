"""The folder of tiny-stream has the layout of the published Qwen3Guard-Stream checkpoints."""

import json
import struct
from pathlib import Path
from typing import Any

import guardrails_qwen

FOLDER = Path(guardrails_qwen.__file__).parent / "checkpoints" / "tiny-stream"
RISKS = {"0": "Safe", "1": "Unsafe", "2": "Controversial"}
CATEGORIES = [
    "Violent",
    "Sexual Content",
    "Self-Harm",
    "Political",
    "PII",
    "Copyright",
    "Illegal Acts",
    "Unethical",
]


def config() -> dict[str, Any]:
    return json.loads((FOLDER / "config.json").read_text())


def header() -> dict[str, Any]:
    """The table of contents of the weights: eight bytes of length, then JSON."""
    with (FOLDER / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size))


def test_the_configuration_names_the_architecture_and_the_labels() -> None:
    fields = config()
    assert fields["architectures"] == ["Qwen3ForGuardModel"]
    assert fields["model_type"] == "qwen3"
    assert fields["use_cache"] is False
    assert fields["demonstration"] is True
    assert (fields["num_risk_level"], fields["num_query_risk_level"]) == (3, 3)
    assert (fields["num_category"], fields["num_query_category"]) == (8, 9)
    assert fields["response_risk_level_map"] == fields["query_risk_level_map"] == RISKS
    named = {str(i): name for i, name in enumerate(CATEGORIES)}
    assert fields["response_category_map"] == named
    assert fields["query_category_map"] == {**named, "8": "Jailbreak"}


def test_the_weights_are_the_backbone_and_eight_head_tensors() -> None:
    fields = config()
    inner, hidden = fields["guard_inner_size"], fields["hidden_size"]
    sizes = (("", 3, 8), ("query_", 3, 9))
    tensors = header()
    heads = {
        name: tensor["shape"]
        for name, tensor in tensors.items()
        if name != "__metadata__" and not name.startswith("model.")
    }
    assert heads == {
        f"{prefix}{name}.weight": shape
        for prefix, level, category in sizes
        for name, shape in (
            ("risk_level_category_pre", [inner, hidden]),
            ("risk_level_category_layernorm", [inner]),
            ("risk_level_head", [level, inner]),
            ("category_head", [category, inner]),
        )
    }
    assert len(heads) == 8
    backbone = [name for name in tensors if name.startswith("model.")]
    assert len(backbone) == 2 + 11 * fields["num_hidden_layers"]


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_it_says_that_it_is_no_protection() -> None:
    assert "demonstration, not protection" in (FOLDER / "README.md").read_text()
