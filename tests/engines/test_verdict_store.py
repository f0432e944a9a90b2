"""What a store gives back is what was put there, or nothing."""

from __future__ import annotations

import hashlib
import json
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails_qwen.engines.cached import CachedEngine
from guardrails_qwen.engines.disk_store import DiskStore
from guardrails_qwen.engines.verdict_store import MemoryStore, VerdictStore
from guardrails_qwen.testing import ScriptedEngine
from tests.engines.verdicts import FULL, SCRIPT, said

ROOT = Path(__file__).parents[2]

# In memory


@given(
    size=st.integers(1, 5),
    steps=st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), max_size=60),
)
def test_memory_keeps_the_most_recently_used(size: int, steps: list[tuple[bool, str]]) -> None:
    store = MemoryStore(max_entries=size, ttl=None)
    recent: list[str] = []
    for put, key in steps:
        if put:
            store.put(key, FULL)
        else:
            assert (store.get(key) is FULL) == (key in recent[-size:])
        if put or key in recent[-size:]:
            recent = [*(k for k in recent if k != key), key]
        assert len(store) <= size


def test_memory_forgets_in_time() -> None:
    now = [0.0]
    store = MemoryStore(ttl=10.0, clock=lambda: now[0])
    store.put("a", FULL)
    for now[0], known in [(9.9, True), (10.0, False), (9.9, False)]:
        assert (store.get("a") is not None) == known, "reading does not make it younger"
    assert len(store) == 0
    forever = MemoryStore(ttl=None, clock=lambda: now[0])
    forever.put("a", FULL)
    now[0] = 1e12
    assert forever.get("a") is FULL


NO_ROOM: dict[str, Callable[[Path], object]] = {
    "max_entries is 0": lambda _: MemoryStore(max_entries=0),
    "ttl is 0": lambda _: MemoryStore(ttl=0),
    "ttl is nan": lambda _: MemoryStore(ttl=float("nan")),
    "max_bytes is 0": lambda path: DiskStore(path, max_bytes=0),
    "ttl is -1": lambda path: DiskStore(path, ttl=-1),
}


@pytest.mark.parametrize(("message", "make"), NO_ROOM.items(), ids=NO_ROOM)
def test_a_store_has_room(message: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


STORES: dict[str, Callable[[Path], VerdictStore]] = {
    "memory": lambda _: MemoryStore(),
    "disk": DiskStore,
}


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
def test_a_verdict_comes_back_whole(make: Callable[[Path], VerdictStore], tmp_path: Path) -> None:
    store = make(tmp_path / "c")
    assert isinstance(store, VerdictStore)
    assert store.get("a") is None
    store.put("a", FULL)
    found = store.get("a")
    assert found is not None
    assert found.to_dict() == FULL.to_dict()
    store.close()


# On disk


def test_processes_share_a_folder(tmp_path: Path) -> None:
    program = """
import sys
from guardrails_qwen import Conversation
from guardrails_qwen.engines.cached import CachedEngine
from guardrails_qwen.engines.disk_store import DiskStore
from guardrails_qwen.testing import ScriptedEngine
with CachedEngine(ScriptedEngine({"bomb": "Safety: Unsafe\\nCategories: Violent"}),
                  DiskStore(sys.argv[1])) as cached:
    [verdict] = cached.judge([Conversation.of("a bomb")])
    print(verdict.summary, cached.stats.hits)
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "c")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert printed == ["Unsafe (Violent) 0\n", "Unsafe (Violent) 1\n"]


def test_the_folder_is_private_and_holds_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "c"
    with CachedEngine(ScriptedEngine(SCRIPT), DiskStore(folder)) as cached:
        cached.judge(said("a bomb from the secret garden"))
    assert folder.stat().st_mode & 0o777 == 0o700
    held = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"Violent" in held
    assert b"secret" not in held


def test_a_folder_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="forge"):
        DiskStore(tmp_path)


def test_a_folder_without_a_usable_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(OSError, match="delete the folder"):
        DiskStore(tmp_path)


def test_disk_forgets_in_time(tmp_path: Path) -> None:
    with closing(DiskStore(tmp_path / "c", ttl=3600)) as store:
        store.put("a", FULL)
        assert store.get("a") == FULL
        _execute(store, "UPDATE Cache SET expire_time = expire_time - 3601")
        assert store.get("a") is None


def test_disk_is_bounded(tmp_path: Path) -> None:
    with closing(DiskStore(tmp_path / "c", max_bytes=100_000)) as store:
        for index in range(500):
            store.put(f"{index:064}", FULL)
        assert store.get(f"{499:064}") == FULL
        assert store.get(f"{0:064}") is None
        kept = sum(store.get(f"{index:064}") is not None for index in range(500))
        assert 10 < kept < 120


def _execute(store: DiskStore, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(store.folder / "cache.db", isolation_level=None)) as database:
        assert database.execute(statement, values).rowcount == 1


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_the_database_is_never_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sprung = tmp_path / "sprung"
    pickled = pickle.dumps(Trap(sprung))
    pickle.loads(pickled)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    with closing(DiskStore(tmp_path / "c")) as store:
        store.put("a", FULL)
        _execute(store, "UPDATE Cache SET mode = 4, value = ?", pickled)
        assert store.get("a") is None
        assert not sprung.exists()
        store.put("a", FULL)
        assert store.get("a") == FULL
    assert "unreadable" in caplog.text


@pytest.mark.parametrize("mode", [2, 3, 4], ids=["bytes", "text", "pickle"])
def test_a_file_that_a_row_names_is_neither_read_nor_removed(tmp_path: Path, mode: int) -> None:
    mine = tmp_path / "mine"
    with closing(DiskStore(tmp_path / "c")) as store:
        store.put("a", FULL)
        with closing(sqlite3.connect(store.folder / "cache.db")) as database:
            [(entry,)] = database.execute("SELECT value FROM Cache")
        mine.write_text(entry)
        _execute(store, "UPDATE Cache SET mode = ?, value = NULL, filename = ?", mode, str(mine))
        assert store.get("a") is None
        store.put("a", FULL)
        assert store.get("a") == FULL
    assert mine.read_text() == entry


def test_a_verdict_under_another_key_is_none(tmp_path: Path) -> None:
    with closing(DiskStore(tmp_path / "c")) as store:
        store.put("a", FULL)
        _execute(store, "UPDATE Cache SET key = 'b'")
        assert store.get("b") is None


DAMAGES: dict[str, Callable[[str], object]] = {
    "empty": lambda entry: "",
    "truncated": lambda entry: entry[:-1],
    "a seal only": lambda entry: entry[:64],
    "altered": lambda entry: entry.replace("Unsafe", "Safe", 1),
    "without a seal": lambda entry: entry[64:],
    "zeros": lambda entry: "\x00" * len(entry),
    "a number": lambda entry: 1,
    "bytes": lambda entry: b"\xff\xfe",
    "nothing": lambda entry: None,
}


@pytest.mark.parametrize("damaged", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_none(
    tmp_path: Path, damaged: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(DiskStore(tmp_path / "c")) as store:
        for key in ("a", "b"):
            store.put(key, FULL)
            with closing(sqlite3.connect(store.folder / "cache.db")) as database:
                [(entry,)] = database.execute("SELECT value FROM Cache WHERE key = ?", [key])
            changed = damaged(entry)
            _execute(store, "UPDATE Cache SET value = ? WHERE key = ?", changed, key)
            assert store.get(key) is None
        assert len(caplog.records) == 1
        assert "Violent" not in caplog.text


def sealed(key: str, body: str) -> str:
    return hashlib.sha256(f"{key}\n{body}".encode()).hexdigest() + body


FORGED: list[Any] = [
    pytest.param({"severity": "Harmless"}, id="an unknown severity"),
    pytest.param({"severity": 0}, id="a number for a severity"),
    pytest.param({"categories": ["Other"]}, id="an unknown category"),
    pytest.param({"refusal": "no"}, id="a word for a truth value"),
    pytest.param({"tokens": "12"}, id="a word for a number"),
    pytest.param({"seconds": float("nan")}, id="not a number"),
    pytest.param({"more": 1}, id="a field too many"),
    pytest.param({"spans": [{"start": 1}]}, id="half a span"),
    pytest.param({"labels": ["of a\nmoderated text"]}, id="a text for a label"),
    pytest.param({"label_scores": {"S1": 2.0}}, id="a score above one"),
    pytest.param({"scores": {"severity": {"Safe": 1.0}, "category": {}, "refusal": None}}, id="P"),
]


@pytest.mark.parametrize("change", FORGED)
def test_an_entry_that_is_no_verdict_is_none(tmp_path: Path, change: dict[str, object]) -> None:
    bodies = [json.dumps(FULL.to_dict()), json.dumps({**FULL.to_dict(), **change})]
    with closing(DiskStore(tmp_path / "c")) as store:
        store.put("a", FULL)
        for body, found in zip(bodies, [FULL, None], strict=True):
            _execute(store, "UPDATE Cache SET value = ?", sealed("a", body))
            assert store.get("a") == found


@pytest.mark.parametrize("body", ["", "[]", "null", "[" * 100_000, "{}"], ids=len)
def test_an_entry_that_is_no_json_is_none(tmp_path: Path, body: str) -> None:
    with closing(DiskStore(tmp_path / "c")) as store:
        store.put("a", FULL)
        _execute(store, "UPDATE Cache SET value = ?", sealed("a", body))
        assert store.get("a") is None


def test_without_the_library_the_error_names_the_extra(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["diskcache"] = None
from guardrails_qwen.engines.disk_store import DiskStore
try:
    DiskStore({str(tmp_path)!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "guardrails-qwen[cache]" in done.stdout


def test_importing_loads_no_library(tmp_path: Path) -> None:
    program = """
import sys
import guardrails_qwen.engines.cached, guardrails_qwen.engines.disk_store
print([name for name in ("diskcache", "torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
