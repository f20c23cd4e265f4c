"""Wings import downwards only, as the table in docs/architecture.md says; the picture there is that of the imports."""

import ast
import re
from pathlib import Path

import onestep_jax

ROOT = Path(onestep_jax.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
FACE = "__init__"


def table() -> dict[str, set[str]]:
    """Wing → the wings that it may import, of the page's table; its rows go from the ground up."""
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \|.*\| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {wing: set(re.findall(r"`(\w+)`", allowed)) for wing, allowed in rows}


def imported(path: Path) -> set[str]:
    """Wings that a file imports, anywhere in it; the package's face counts as `__init__`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            first, *inner = name.split(".")
            if first == "onestep_jax":
                wing = inner[0] if inner else FACE
                found.add(wing if (ROOT / wing).is_dir() or (ROOT / f"{wing}.py").exists() else FACE)
    return found


def edges() -> dict[str, set[str]]:
    """Wing → the wings that its files import."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        wing = path.relative_to(ROOT).parts[0].removesuffix(".py")
        found.setdefault(wing, set()).update(imported(path) - {wing})
    return found


def test_wings_import_what_the_table_says():
    allowed, found = table(), edges()
    assert set(found) == {*allowed, FACE}
    for wing, others in found.items():
        assert wing == FACE or others <= allowed[wing], f"{wing} imports {sorted(others - allowed[wing])}"


def test_the_table_goes_upwards():
    below: set[str] = set()
    for wing, allowed in table().items():
        assert allowed <= below, f"{wing} may import {sorted(allowed - below)}, which do not stand below it"
        below.add(wing)


def test_each_wing_says_what_it_may_import():
    for wing, allowed in table().items():
        path = ROOT / wing / "__init__.py"
        source = (path if path.exists() else ROOT / f"{wing}.py").read_text(encoding="utf-8")
        said = re.search(r"May import (?:only )?(.*?)\.(?:\s|$)", ast.get_docstring(ast.parse(source)) or "", re.DOTALL)
        assert said, f"{wing} does not say what it may import"
        assert set(re.findall(r"`(\w+)`", said[1])) == allowed, wing


def test_the_picture_is_that_of_the_imports():
    """The arrows of the page: each wing to those that it imports, without those that lie behind another arrow."""
    found = {wing: others - {FACE} for wing, others in edges().items() if wing != FACE}
    behind = {wing: set().union(*(reach(found, other) for other in others)) for wing, others in found.items()}
    lines = [f"    {wing} --> {other}" for wing in table() for other in table() if other in found[wing] - behind[wing]]
    picture = re.search(r"```mermaid\nflowchart BT\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert picture is not None
    assert picture[1].splitlines() == lines


def reach(found: dict[str, set[str]], wing: str) -> set[str]:
    """All wings that one imports, and those that these import."""
    seen: set[str] = set()
    waiting = [wing]
    while waiting:
        new = found[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_the_front_door_names_the_wings():
    shown = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    wings = {wing if (ROOT / wing).is_dir() else f"{wing}.py" for wing in table()}
    assert shown == {*wings, "__init__.py", "data", "py.typed"}


def test_no_wing_and_no_file_is_too_large():
    for wing in table():
        if (ROOT / wing).is_dir():
            assert len(list((ROOT / wing).glob("*.py"))) <= 20, wing
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def test_heavy_libraries_are_imported_where_needed():
    heavy = set("transformers datasets matplotlib sklearn torch pyarrow orbax fastembed loky upath".split())
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, f"{path.name} imports {names} at its top"
