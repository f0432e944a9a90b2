"""Build the three wheels and try each in a clean environment outside the checkout.

What the tests cannot see goes wrong here: a file left out of a wheel or swept into it, a dependency
that is only there because another tool brought it, an import that works in the checkout alone.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"

CORE = """
import importlib.util
import sys
import guardrails_qwen
from guardrails_qwen import Guard
from guardrails_qwen.testing import ScriptedEngine

assert guardrails_qwen.__file__.startswith(sys.prefix), guardrails_qwen.__file__
guard = Guard(ScriptedEngine({"bomb": "Safety: Unsafe\\nCategories: Violent"}))
assert not guard.check("How can I make a bomb?").allowed
assert guard.check("How can I make a cake?").allowed
assert importlib.util.find_spec("torch") is None, "the core alone must not install torch"
"""

LANGCHAIN = """
from guardrails_qwen import Guard
import langchain_guardrails_qwen

guard = Guard.from_pretrained("tiny")
assert not guard.check("How can I make a bomb?").allowed
"""

AGENTS = """
import importlib.util
from guardrails_qwen import Guard
from guardrails_qwen.testing import ScriptedEngine
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_guardrails_qwen.agents import GuardrailMiddleware
import langchain_guardrails_qwen.graph

guard = Guard(ScriptedEngine({"bomb": "Safety: Unsafe\\nCategories: Violent"}))
llm = FakeListChatModel(responses=["Here is a bomb."])
agent = create_agent(llm, middleware=[GuardrailMiddleware(guard)])
assert "bomb" not in str(agent.invoke({"messages": "hi"}))
assert importlib.util.find_spec("torch") is None, "the adapter must not install torch"
"""

LLAMA_INDEX = """
import asyncio
import importlib.util
from guardrails_qwen import Guard, GuardViolation
from guardrails_qwen.testing import ScriptedEngine
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms.mock import MockFunctionCallingLLM, MockLLM
from llama_index_guardrails_qwen import GuardedLLM, GuardPostprocessor, guard_query_engine

guard = Guard(ScriptedEngine({"bomb": "Safety: Unsafe\\nCategories: Violent"}))
documents = [Document(text="This is a bomb."), Document(text="This is a duck.")]
index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=8))
options = {"llm": MockLLM(), "node_postprocessors": [GuardPostprocessor(guard=guard)]}
engine = guard_query_engine(index.as_query_engine(**options), guard)
answer = engine.query("What is this?")
assert [node.text for node in answer.source_nodes] == ["This is a duck."], answer
try:
    raise SystemExit(f"blocked: {engine.query('How can I make a bomb?')}")
except GuardViolation as violation:
    assert "bomb" not in str(violation)


async def ask(question):
    llm = GuardedLLM(inner=MockFunctionCallingLLM(), guard=guard, on_violation="reply")
    return str(await FunctionAgent(llm=llm).run(question))


assert "duck" in asyncio.run(ask("A duck?")), "the mock says what it was asked"
assert "bomb" not in asyncio.run(ask("A bomb?"))
assert importlib.util.find_spec("torch") is None, "the adapter must not install torch"
"""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One of the wheels, and what has to be in it."""

    folder: Path
    package: str
    files: Sequence[str] = field(default=("__init__.py", "py.typed"))


DISTRIBUTIONS = (
    Distribution(
        folder=ROOT,
        package="guardrails_qwen",
        files=(
            "__init__.py",
            "py.typed",
            "checkpoints/tiny-gen/chat_template.jinja",
            "checkpoints/tiny-gen/config.json",
            "checkpoints/tiny-gen/model.safetensors",
            "checkpoints/tiny-gen/tokenizer.json",
            "checkpoints/tiny-gen/tokenizer_config.json",
        ),
    ),
    Distribution(folder=ROOT / "integrations" / "langchain", package="langchain_guardrails_qwen"),
    Distribution(
        folder=ROOT / "integrations" / "llama_index", package="llama_index_guardrails_qwen"
    ),
)


def main() -> None:
    """Build, look inside, install, run. The first thing that is wrong ends it."""
    shutil.rmtree(DIST, ignore_errors=True)
    core, langchain, llama_index = (_built(distribution) for distribution in DISTRIBUTIONS)
    with _environment("the core alone", core) as python:
        _run(python, "-c", CORE)
        _run(python.with_name("guardrails-qwen"), "--help")
    with _environment("LangChain and the local engine", f"{core}[local]", langchain) as python:
        _run(python, "-c", LANGCHAIN)
        _run(python, str(ROOT / "examples" / "quickstart_langchain.py"))
    with _environment("LangChain's agents", core, f"{langchain}[agents]") as python:
        _run(python, "-c", AGENTS)
    with _environment("LlamaIndex", core, llama_index) as python:
        _run(python, "-c", LLAMA_INDEX)


def _built(distribution: Distribution) -> Path:
    """A wheel in dist/ with everything that belongs in it, and nothing else."""
    before = set(DIST.glob("*.whl"))
    _command(
        *(sys.executable, "-m", "build", "--wheel", "--outdir", str(DIST)), str(distribution.folder)
    )
    [wheel] = set(DIST.glob("*.whl")) - before
    names = zipfile.ZipFile(wheel).namelist()
    package = f"{distribution.package}/"
    metadata = re.compile(rf"{distribution.package}-[^/]+\.dist-info/")
    strays = [name for name in names if not name.startswith(package) and not metadata.match(name)]
    strays += [name for name in names if re.search(r"(^|/)(tests?|training|__pycache__)/", name)]
    missing = [name for name in distribution.files if package + name not in names]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        missing.append("LICENSE")
    if strays or missing:
        sys.exit(f"{wheel.name}: missing {missing}, not to be there {strays}")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    return wheel


@contextmanager
def _environment(title: str, *wheels: Path | str) -> Generator[Path, None, None]:
    """The interpreter of a clean environment with the wheels in it, removed afterwards."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        pip = (
            str(python),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--no-compile",
            "--quiet",
        )
        _command(*pip, "--constraint", str(ROOT / "constraints.txt"), *map(str, wheels))
        installed = time.perf_counter()
        yield python
        tried = time.perf_counter()
    print(
        f"{title}: installed in {installed - started:.0f} s, tried in {tried - installed:.0f} s",
        flush=True,
    )


def _run(program: Path, *arguments: str) -> None:
    """Run a program of the environment from its folder, where no checkout can be imported."""
    isolated = ("-I",) if program.name == "python" else ()
    _command(str(program), *isolated, *arguments, folder=program.parent)


def _command(*command: str, folder: Path = ROOT) -> None:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{command} ended with {finished.returncode}\n{finished.stdout}{finished.stderr}")


if __name__ == "__main__":
    main()
