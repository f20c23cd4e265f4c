"""What is printed: nothing of a user steers the terminal, is taken for markup, fails on an encoding or is secret."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest

from onestep_jax import UserError, read_results
from onestep_jax.cli.parser import main
from onestep_jax.cli.terminal import console, fitting_bar, plain_warnings, printable
from onestep_jax.errors import Interrupted, redacted
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens import reconstruction
from onestep_jax.store.sessions import this_process

NASTY = "a\x1b[31mred\x1b]0;title\x07\x9b2J\u202ez"
SHOWN = "a\\x1b[31mred\\x1b]0;title\\x07\\x9b2J\\u202ez"
TOKEN = "hf_" + "aB3" * 12


def test_control_characters_are_shown_as_escapes():
    assert printable(NASTY) == SHOWN
    assert printable("two\nlines\tand 👩‍👧 é") == "two\nlines\tand 👩‍👧 é"
    assert printable("one\nline", keep="") == "one\\nline"


@pytest.mark.parametrize("name", [NASTY, "[/v2]", "[bold]x[/bold]", ":smile:"])
def test_a_name_in_a_table_and_in_lines(run, tiny_folder, tmp_path, capsys, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, name)
    shutil.copytree(run, f"run {name}")
    shown = printable(name)
    assert main(["info", name, "--length", "4"]) == 0
    assert shown in capsys.readouterr().out
    assert main(["export", f"run {name}", "--out", f"{name}.safetensors"]) == 0
    assert f"{shown}.safetensors" in capsys.readouterr().out
    assert main(["status", f"no {name}"]) == 2
    error = capsys.readouterr().err
    assert f"no {shown}: no run directory" in error
    assert error.count("\n") == 1
    assert main(["decode", f"run {name}", "--model", f"./none {name}"]) == 2
    error = capsys.readouterr().err
    assert shown in error
    assert "\x1b" not in error


def test_a_table_shows_strings_as_they_are(capsys):
    from rich.table import Table

    table = Table("kind", title="[/v2] title")
    table.add_row(f"[bold]{NASTY}[/x] :smile:")
    console(width=120).print(table)
    said = capsys.readouterr().out
    assert f"[bold]{SHOWN}[/x] :smile:" in said
    assert "[/v2] title" in said


def test_decode_shows_what_a_text_holds(run, capsys, monkeypatch):
    decode = reconstruction.decode

    def nasty(model: Model, *args, **how):
        return [dataclasses.replace(text, text=NASTY) for text in decode(model, *args, **how)]

    monkeypatch.setattr(reconstruction, "decode", nasty)
    assert main(["decode", str(run)]) == 0
    assert capsys.readouterr().out.count(SHOWN) == 2


def test_a_warning_is_one_line_without_secrets():
    with plain_warnings():
        said = warnings.formatwarning(UserWarning(f"{NASTY}\n gs://me:pw@b"), UserWarning, "f.py", 3)
    assert said == f"onestep: warning: {SHOWN}\\n gs://***@b\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_output_never_fails_on_an_encoding(encoding, tmp_path):
    program = """
from onestep_jax.cli import terminal
from onestep_jax.cli.parser import main
terminal.write_any_character()
terminal.say("an emoji 🙂 é")
from rich.table import Table
table = Table("kind")
table.add_row("🙂")
terminal.console().print(table)
main(["status", "🙂"])
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = "🙂".encode(encoding, "backslashreplace")
    assert done.stdout.count(shown) == 2
    assert b"error: " + shown + b": no run directory" in done.stderr


@pytest.mark.long
def test_a_fit_under_a_locale_that_lacks_the_letters_of_its_paths(run, tiny_folder, tmp_path):
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    texts = run.parent / "lines.txt"
    words = ["fit", "--model", tiny_folder, "--texts", texts, "--length", "4", "--run", "runé", "--slots", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "onestep_jax.cli", *map(str, words)], capture_output=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert b"run directory run\\udcc3\\udca9" in done.stdout
    assert len(read_results(tmp_path / "runé")) == 1


# --- no bar of nothing ---


def test_an_error_before_the_first_chunk_leaves_no_bar(capsys):
    with pytest.raises(UserError), fitting_bar():
        raise UserError("no")
    assert capsys.readouterr().err.strip() == ""


# --- secrets ---


def test_addresses_and_tokens_are_redacted(monkeypatch):
    assert (
        redacted("gs://user:pw@bucket/run, https://user:to@ken@host/a@b") == "gs://***@bucket/run, https://***@host/a@b"
    )
    assert redacted(f"https://h/x?token={TOKEN}.") == "https://h/x?token=hf_***."
    assert redacted("hf_oauth_eyJhbGciOiJ.FZERTU5-Q_x.y, hf_oauth_app") == "hf_***, hf_oauth_app"
    assert redacted("hf_transfer /tmp/hf_models a@b.c") == "hf_transfer /tmp/hf_models a@b.c"
    assert redacted("token another-form-of-token") == "token another-form-of-token"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "another-form-of-token")
            assert redacted("token another-form-of-token") == "token ***"
            patch.setenv(name, "token")
            assert redacted("a token") == "a token"
    for kind in (UserError, Interrupted):
        assert str(kind("gs://user:pw@bucket/run")) == "gs://***@bucket/run"


@pytest.mark.parametrize(
    "words",
    [
        ["status", "nope://user:secret@bucket/run"],
        ["export", "run", "--out", "https://user:secret@host/x"],
        ["report", "nope://user:secret@bucket/run"],
        ["info", f"https://user:secret@host/{TOKEN}"],
        ["info", TOKEN, "--dtype", TOKEN],
        ["fit", "--texts", f"https://user:secret@host/a.jsonl?{TOKEN}", "--length", "4", "--run", "run"],
        ["fit", "--texts", "demo", "--limit", "1", "--length", "4", "--run", "nope://user:secret@b/r"],
        ["fit", "--texts", "demo", "--length", "4", "--run", "run", f"--lr={TOKEN}"],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_a_password_or_token_is_never_printed(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(words) == 2
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    assert TOKEN not in said.out + said.err


OTHER = "another-form-of-token"
# Where huggingface_hub finds a token: the variable, its value, and the file below HOME.
KEPT = {
    "HF_TOKEN": ("HF_TOKEN", OTHER, None),
    "HUGGING_FACE_HUB_TOKEN": ("HUGGING_FACE_HUB_TOKEN", OTHER, None),
    "HF_HOME": ("HF_HOME", "{home}/hub", "hub/token"),
    "HF_TOKEN_PATH": ("HF_TOKEN_PATH", "$HOME/my token", "my token"),
    "XDG_CACHE_HOME": ("XDG_CACHE_HOME", "{home}", "huggingface/token"),
    "HOME": ("HOME", "{home}", ".cache/huggingface/token"),
    "several": ("HOME", "{home}", ".cache/huggingface/stored_tokens"),
}


def keep_token(place, home, patch):
    """Let huggingface_hub find the token there and nowhere else."""
    for name in {variable for variable, *_ in KEPT.values()}:
        patch.delenv(name, raising=False)
    variable, value, file = KEPT[place]
    patch.setenv("HOME", str(home))
    patch.setenv(variable, value.format(home=home))
    if file is not None:
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        several = f"[work]\nhf_token = {TOKEN}\n\n[home]\nhf_token = hf_x\nrefresh_token = {OTHER}\n"
        (home / file).write_text(several if place == "several" else f"{OTHER}\n")


@pytest.mark.parametrize("place", KEPT)
def test_a_token_that_is_kept_is_never_printed(place, tmp_path, monkeypatch, capsys):
    """Wherever huggingface_hub finds it, and whatever form it has."""
    keep_token(place, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(["info", f"my-{OTHER}", "--dtype", OTHER]) == 2
    said = capsys.readouterr()
    assert "***" in said.err
    assert OTHER not in said.out + said.err
    assert redacted("[work] hf_token = refresh_token") == "[work] hf_token = refresh_token"


def test_a_token_file_that_is_a_pipe_is_left_to_its_reader(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "pipe"))
    assert redacted("a text") == "a text"


@pytest.mark.parametrize("place", ["HF_TOKEN", "HF_HOME"])
def test_a_password_or_token_is_never_recorded(run, tiny_folder, tmp_path, monkeypatch, capsys, place):
    """The command line, the environment and a file hold them; no file of a run, benchmark or report does."""
    keep_token(place, tmp_path / "home", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["onestep", "fit", "--texts", "https://user:secret@host/a", TOKEN, OTHER])
    assert this_process().command == "onestep fit --texts https://***@host/a hf_*** ***"
    texts, out = run.parent / "lines.txt", tmp_path / "out"
    words = ["fit", "--model", tiny_folder, "--texts", texts, "--length", 4, "--run", out / "run", "--slots", 1]
    assert main([str(word) for word in words]) == 0
    assert main(["report", str(out / "run")]) == 0
    assert main(["bench", "load", f"--model={tiny_folder}", "--repeats=1", f"--out={out}/{OTHER}.json"]) == 0
    assert len(read_results(out / "run")) == 1
    assert json.loads((out / "run" / "session.json").read_text())["command"].endswith("hf_*** ***")
    check_without_secrets(out)


def check_without_secrets(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        for secret in ("secret", TOKEN, OTHER):
            assert secret.encode() not in path.read_bytes(), path


def test_a_password_in_the_address_of_a_run_is_in_no_output(tiny_folder, run, tmp_path, capsys):
    pytest.importorskip("upath")
    import fsspec

    storage, told = fsspec.filesystem("memory"), []
    texts, runs = run.parent / "lines.txt", [f"memory://user:secret@{host}/run" for host in "ab"]
    for address in runs:
        words = ["fit", "--model", tiny_folder, "--texts", texts, "--length", 4, "--run", address, "--slots", 1]
        assert main([str(word) for word in words]) == 0
        storage.pipe_file(f"{address.removeprefix('memory:/')}/results/junk.parquet", b"")
        for words in (["status"], ["verify", "--json"], ["decode"], ["export", "--out", str(tmp_path / "vectors")]):
            assert main([words[0], address, *words[1:]]) == 0
    assert main(["report", *runs, "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "memory://***@b/run" in page
    check_without_secrets(tmp_path)
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    for path in storage.find("/"):
        told += [path] if b"secret" in storage.cat(path) else []
        storage.rm(path)
    assert told == []
