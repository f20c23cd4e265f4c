"""A cache of compiled programs heals from what a full disk or a killed process leaves in it."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import filelock
import pytest
import zstandard

from onestep_jax.devices import compile_cache
from onestep_jax.devices.compile_cache import heal

WHOLE = zstandard.compress(b"program" * 1000)


def entry(folder: Path, key: str, content: bytes = WHOLE, *, used: bool = True) -> None:
    (folder / f"{key}-cache").write_bytes(content)
    if used:
        (folder / f"{key}-atime").write_bytes(bytes(8))


def keys(folder: Path) -> dict[str, set[str]]:
    return {end: {path.name.removesuffix(end) for path in folder.glob(f"*{end}")} for end in ("-cache", "-atime")}


def test_what_jax_cannot_read_or_evict_is_removed(tmp_path):
    entry(tmp_path, "whole")
    entry(tmp_path, "cut", WHOLE[:-5])
    entry(tmp_path, "empty", b"")
    entry(tmp_path, "packed otherwise", zlib.compress(b"program"))
    entry(tmp_path, "alone", used=False)
    (tmp_path / "left-atime").write_bytes(bytes(8))
    (tmp_path / "notes.txt").write_text("not ours")
    heal(tmp_path)
    assert keys(tmp_path) == {"-cache": {"whole"}, "-atime": {"whole"}}
    assert (tmp_path / "notes.txt").exists()


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(compile_cache, "_is_whole", lambda path: read.append(path.name) or True)

    def read_by_healing() -> list[str]:
        read.clear()
        heal(tmp_path)
        return sorted(read)

    entry(tmp_path, "old")
    assert read_by_healing() == ["old-cache"]
    healed = (tmp_path / ".healed").stat().st_mtime_ns
    os.utime(tmp_path / "old-cache", ns=(healed - 1, healed - 1))
    entry(tmp_path, "new")
    os.utime(tmp_path / "new-cache", ns=(healed, healed))  # within one tick of the file system's clock
    assert read_by_healing() == ["new-cache"]
    os.utime(tmp_path / "new-cache", ns=(healed - 1, healed - 1))
    os.truncate(tmp_path / "old-cache", 3)  # a change makes it new
    assert read_by_healing() == ["old-cache"]


def test_the_clocks_of_system_and_file_system_are_never_compared(tmp_path):
    """That of the file system ticks in milliseconds, and behind."""
    for _ in range(100):
        heal(tmp_path)
        entry(tmp_path, "cut", b"")
        heal(tmp_path)
        assert not keys(tmp_path)["-cache"]


def test_a_cache_that_another_process_holds_or_that_is_missing(tmp_path):
    heal(tmp_path / "nowhere")
    entry(tmp_path, "cut", b"")
    with filelock.FileLock(tmp_path / ".lockfile"), pytest.raises(filelock.Timeout):
        heal(tmp_path, patience=0.1)
    assert keys(tmp_path)["-cache"] == {"cut"}  # it may be that process which is writing it


PROGRAM = """
import jax, warnings
warnings.simplefilter("error")
from onestep_jax.devices.compile_cache import use_cache
use_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((64, 64))).block_until_ready()
print("hit" if "/jax/compilation_cache/cache_hits" in found else "miss")
"""


@pytest.mark.long
def test_jax_stores_and_finds_programs_again_after_damage(tmp_path):
    kept = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment |= {compile_cache.VARIABLE: str(tmp_path)}

    def run() -> str:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    assert [run(), run()] == ["miss", "hit"]
    for path in tmp_path.glob("*-atime"):
        path.unlink()
    assert [run(), run()] == ["miss", "hit"]
    for path in tmp_path.glob("*-cache"):
        os.truncate(path, 100)
    assert [run(), run()] == ["miss", "hit"]
