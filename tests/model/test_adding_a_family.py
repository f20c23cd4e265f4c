"""docs/models.md is true: the family on that page, put into the registry as it says, agrees with transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from closeness import TOLERANCE

from onestep_jax.model import families

pytest.importorskip("torch")
pytestmark = pytest.mark.parity

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("options", [{}, {"use_qkv_bias": True, "tie_word_embeddings": True}], ids=["plain", "bias"])
def test_family_of_the_page(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import parity
    from family_cases import SIZES

    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), module)
    monkeypatch.setitem(families.FAMILIES, "stablelm", module["FAMILY"])
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    theirs = parity.build("stablelm", {**SIZES, "rope_parameters": rope, **options})
    errors = parity.measure(theirs, parity.save(theirs, tmp_path))
    assert max(errors.embed, errors.logits, errors.hidden, errors.gradient) <= TOLERANCE


def test_smallest_family_file_is_short():
    files = Path(families.__file__).parent.glob("*.py")
    own = {path.name: len(path.read_text().splitlines()) for path in files if "FAMILY = " in path.read_text()}
    assert len(own) == len(families.FAMILIES)
    assert min(own.values()) < 60
