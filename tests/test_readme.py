"""What the README says to type is typed here, and the demo does what it promises."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from onestep_jax.cli.parser import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder: the commands of the README need no file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
def test_commands(folder, capsys, two_layers):
    """The first fit as it stands there, the further ones on a smaller model."""
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("onestep ")]
    assert len(commands) >= 12
    for command in commands:
        if command.startswith("onestep experiment"):
            continue  # tests/experiment/test_cards_*.py run every card; tests/test_docs.py checks the words
        words = shlex.split(command)[1:]
        if words[0] == "fit" and "runs/first" not in words:
            words += ["--model", two_layers.source]
        assert main(words) == 0, command
    out = capsys.readouterr().out
    assert "The lamp in the harbour office burned until morning" in out
    assert "8 of 8 texts exact" in out
    assert (folder / "vectors.safetensors").exists()
    assert (folder / "runs" / "first" / "report" / "report.html").exists()


def test_python(folder, capsys):
    (block,) = blocks("python")
    assert len(block.strip().splitlines()) <= 6
    exec(block, {})
    assert capsys.readouterr().out.splitlines()[0].endswith("(1, 256)")


def test_files_and_links_exist():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target


@pytest.mark.long
def test_demo(folder):
    """In a process of its own, compiled as users do: its fits run longer than they compile."""
    command = [sys.executable, "-m", "onestep_jax.cli", "demo", "--json", "--run", "demo"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": ""})
    said = json.loads(done.stdout)
    assert set(said) == {"texts", "seconds"}
    assert len(said["texts"]) == 8
    for text in said["texts"]:
        assert set(text) == {"text_id", "text", "reconstruction", "accuracy", "steps"}
        assert (text["accuracy"] == 1) == (text["text"] == text["reconstruction"])
    assert sum(text["accuracy"] == 1 for text in said["texts"]) == 8
    assert (folder / "demo" / "curves.png").read_bytes()[:4] == b"\x89PNG"
