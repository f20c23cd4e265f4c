"""Imports run one way along the line of the data."""

import ast
from pathlib import Path

import onestep_jax

LINE = """config compilation rotary families partition fused layers model source tensors checkpoint texts schemes
objective likelihood generation passages corpora quasi_newton optimizers results decoding placement slots engine
inflight outcomes footprint throughput files reading names owners leases locks sessions arrays writer parts states
records upkeep store status verify processes blocks ladder sweep sizing fitting exporting metrics tables capacity
analysis report demo __init__ experiment looks bench options commands cli""".split()
ROOT = Path(onestep_jax.__file__).parent


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "onestep_jax":
            inner = node.module.split(".")[1:]
            found |= {inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("onestep_jax.")}
    return found


def test_no_back_edges():
    seen = set()
    for path in ROOT.rglob("*.py"):
        module = path.relative_to(ROOT).parts[0].removesuffix(".py")
        seen.add(module)
        for other in imported(path) - {module}:
            assert LINE.index(other) < LINE.index(module), f"{path.name} imports {other}, which comes after it"
    assert seen == set(LINE)


def test_heavy_libraries_are_imported_where_needed():
    heavy = set("transformers datasets matplotlib sklearn torch pyarrow orbax fastembed loky upath".split())
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, f"{path.name} imports {names} at its top"
