"""The PyTorch reference of the benchmarks does the work that ours does: same loss, same gradient, same protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from onestep_jax import PRESETS, OneStep, load_model
from onestep_jax.bench.pytorch import Reference
from onestep_jax.bench.step import bench_step
from onestep_jax.prototokens.objective import score_group

pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference("default", "float32")


def test_two_steps_of_the_paper_protocol(reference: Reference):
    model = load_model(dtype="float32", tokenizer=False)
    tokens = np.random.default_rng(0).integers(model.config.vocab_size, size=(2, 12))
    training = reference.begin(tokens.tolist(), seed=1)
    leaves = {name: jnp.asarray(leaf.detach().numpy()) for name, leaf in zip("em", training.vectors, strict=True)}
    optimizer = PRESETS["paper"].optimizer.build()
    state = optimizer.init(leaves)
    lengths = jnp.full(2, 12)

    def loss_of(leaves):
        score = score_group(model, OneStep(group=2), model.params, leaves, jnp.asarray(tokens, jnp.int32), lengths)
        return score.nats_G.sum()

    for _ in range(2):
        loss, gradient = jax.value_and_grad(loss_of)(leaves)
        theirs, _ = training.loss()
        assert theirs.item() == pytest.approx(float(loss), rel=1e-5)
        training.step()
        for name, vector in zip("em", training.vectors, strict=True):
            assert_close(gradient[name], vector.grad.numpy())
        updates, state = optimizer.update(gradient, state, leaves)
        leaves = {name: leaf + updates[name] for name, leaf in leaves.items()}
        for name, vector in zip("em", training.vectors, strict=True):
            assert_close(leaves[name], vector.detach().numpy())


def test_a_text_is_fitted_until_it_is_exact(reference: Reference):
    easy = reference.fit([271], 500)
    assert easy.solved
    assert 1 <= easy.steps < 500
    assert reference.fit(list(range(100, 140)), 3) == (False, 3)


def test_step_beside_pytorch():
    found = bench_step("default", length=8, slots=2, chunk=1, repeats=1, say=lambda _: None)
    names = [row["contender"] for row in found["rows"]]
    assert names[2:] == ["PyTorch eager, 1 at a time", "PyTorch eager, 2 at a time"]
    assert len(found["ratios"]) == 3
