"""What the three distributions promise together: one licence, one version, tested dependencies."""

from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CORE = "guardrails-qwen"
ADAPTERS = {
    "langchain-guardrails-qwen": ROOT / "integrations" / "langchain",
    "llama-index-guardrails-qwen": ROOT / "integrations" / "llama_index",
}
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if line and not line.startswith("#")]


def pins(name: str) -> list[str]:
    """The pinned versions of a distribution that apply to this interpreter."""
    return [
        specifier.version
        for pin in PINS
        if canonicalize_name(pin.name) == canonicalize_name(name)
        and (pin.marker is None or pin.marker.evaluate())
        for specifier in pin.specifier
    ]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_has_the_licence_and_the_version_of_the_core(adapter: str):
    assert (ADAPTERS[adapter] / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert version(adapter) == version(CORE)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_takes_the_core_s_next_patch_but_not_its_next_minor(adapter: str):
    major, minor, patch = map(int, version(CORE).split("."))
    [core] = [r for r in map(Requirement, requires(adapter) or ()) if r.name == CORE]
    assert core.specifier.contains(f"{major}.{minor}.{patch + 1}")
    assert not core.specifier.contains(f"{major}.{minor + 1}.0")


@pytest.mark.parametrize("distribution", [CORE, *ADAPTERS])
def test_every_dependency_is_pinned_to_a_tested_version_in_its_range(distribution: str):
    for requirement in map(Requirement, requires(distribution) or ()):
        if requirement.name != CORE:
            [pinned] = pins(requirement.name)
            assert requirement.specifier.contains(pinned), requirement


def test_any_build_of_the_tested_torch_satisfies_the_constraint():
    [pinned] = pins("torch")
    assert "+" not in pinned
