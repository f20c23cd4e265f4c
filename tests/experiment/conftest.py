"""The model on which the recipe cards are tried."""

import dataclasses

import pytest

from onestep_jax import Model, load_model
from onestep_jax.model.checkpoint import save_model


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The first and the last layer of the packaged model, a quarter of its work.

    It hardly knows a language any more (5 nats a token instead of 3), but emits short texts in as many evaluations.
    """
    whole = load_model("default")
    blocks = [name for name in whole.params if name.startswith("block_")]
    kept = {"block_0": whole.params[blocks[0]], "block_1": whole.params[blocks[-1]]}
    cut = dataclasses.replace(
        whole,
        config=dataclasses.replace(whole.config, layers=2),
        params={name: value for name, value in whole.params.items() if name not in blocks} | kept,
        described={**whole.described, "num_hidden_layers": 2},
    )
    folder = tmp_path_factory.mktemp("two-layers")
    save_model(cut, folder)
    return load_model(folder)
