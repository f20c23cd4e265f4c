"""What the tests of GGUF files share; `gguf` is imported only where one of them asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from onestep_jax import Model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a GGUF file that is not there yet."""
    return tmp_path / "model.gguf"


@pytest.fixture(scope="module")
def llama() -> Model:
    """A small Llama of random weights, which `gguf_writing` can write."""
    from gguf_writing import described, random_model

    return random_model(described("llama"))
