"""The notebook runs from top to bottom on the packaged model and shows what it says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tour.ipynb"


def printed(notebook) -> list[str]:
    """What each code cell printed or returned as text."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        for cell in cells
    ]


@pytest.mark.long
def test_notebook(tmp_path, monkeypatch, two_layers):
    """On a smaller model than it names."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('load_model("default")', f"load_model({two_layers.source!r})")
    assert all(not cell.get("outputs") or cell.execution_count for cell in notebook.cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    _, fitted, by_hand, curves, nested, exchanged, shared, arrangements, crammed = printed(notebook)
    assert "16 of 16 tokens exact" in fitted
    assert "The ferry left before the bells had stopped" in by_hand
    assert "Figure" in curves
    assert "16 'The ferry left before the bells had stopped" in nested
    own, *others = exchanged.splitlines()
    assert "The ferry left before the bells had" in own
    assert all("ferry left" not in other for other in others)
    assert "distinct m: 1" in shared
    means = [float(mean) for mean in re.findall(r"accuracy ([\d.]+)", arrangements)]
    assert means[0] < 0.5 < means[1] < means[2] <= 1
    assert means[4] == 1
    forced, generated = (
        [float(found) for found in re.findall(rf"{word} ([\d.]+)", crammed)] for word in ("teacher-forced", "generated")
    )
    assert len(forced) == len(generated) == 4
    assert sum(generated) < sum(forced)
