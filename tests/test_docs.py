"""The pages of docs/ and the README: links lead somewhere, commands parse, Python runs, files and functions exist."""

import re
import shlex
from pathlib import Path

import pytest

from onestep_jax.cli.parser import build_parser
from onestep_jax.errors import check_known
from onestep_jax.experiment import cards as experiment
from onestep_jax.texts import corpora

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [
    "schemes",
    "optimizers",
    "run-directory",
    "reproducing",
    "encoder",
    "meaning",
]  # pages whose Python blocks run as they stand


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every `onestep …` of a page's shell blocks, as arguments."""
    found = []
    for block in blocks(page, "sh"):
        for text in re.findall(r"(?:^|[&;'/ ]\s*)(?:\S*/)?onestep (\w[^\n&']*)", block, flags=re.MULTILINE):
            found.append(shlex.split(text))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_page_is_linked():
    linked = {target for page in PAGES for target in re.findall(r"([\w-]+)\.md", page.read_text(encoding="utf-8"))}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page):
    parser = build_parser()
    for words in commands(page):
        args, rest = parser.parse_known_args(words)
        if args.command == "experiment" and args.name not in (None, "all"):
            card = experiment.load_card(args.name)
            names = [word.removeprefix("--").partition("=")[0].replace("-", "_") for word in rest[::2]]
            check_known("setting", names, [*vars(card.config(False))])
        elif args.command == "fit":
            assert all(word.startswith("--") for word in rest[::2])
        else:
            assert not rest, (page.name, words)


def test_the_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) >= 20


@pytest.mark.long
@pytest.mark.parametrize("name", RUN)
def test_python_runs(name, tmp_path, monkeypatch, capsys, two_layers):
    """On a smaller model than the page names."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / f"{name}.md", "python"):
        block = block.replace('load_model("default")', f"load_model({two_layers.source!r})")
        exec(compile(block, f"{name}.md", "exec"), {"__name__": name})
    assert capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("name", ["optimizers", "schemes"])
def test_commands_run(name, tmp_path, monkeypatch, two_layers):
    from onestep_jax.cli.parser import main

    monkeypatch.chdir(tmp_path)
    for words in commands(ROOT / "docs" / f"{name}.md"):
        assert main([*words, "--model", two_layers.source, "--steps", "20"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_text_is_at_hand(page):
    """Commands of shell blocks read no file: named sources that need none, or data sets of the hub."""
    for words in commands(page):
        _, given, rest = " ".join(words).partition("--texts ")
        for source in rest.partition(" --")[0].split() if given else []:
            assert source in corpora.names() or source.startswith("hf:"), (page.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_prose_is_wrapped_at_one_width(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for line in text.splitlines():
        assert len(line) <= 120 or line.startswith("|") or len(line.split()) == 1, (page.name, line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_named_with_their_folder_exist(page):
    for name in re.findall(r"`((?!jax/)(?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8")):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "onestep_jax")), f"{page.name} names {name}"


def test_equations_live_where_the_method_says():
    """In the table of docs/method.md every function named after a file is defined in that file."""
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "](" in line]
    assert len(rows) >= 15
    for row in rows:
        source = ""
        for file, name in re.findall(r"\]\(\.\./([\w/]+\.py)\)|`([\w.]+)`", row):
            if file:
                source = (ROOT / file).read_text(encoding="utf-8")
            elif source and not name.endswith(".py"):
                name = name.rpartition(".")[2]
                defined = rf"^ *(?:def|class) {name}\b|\b{name}\b.* = |\"{name}\"|\b{name}: "
                assert re.search(defined, source, flags=re.MULTILINE), row
