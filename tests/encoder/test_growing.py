"""An encoder that goes on from another one: the same vectors at first, longer texts, more corrections, and refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from encoders import DESIGN, SMALL, random_encoder, word_texts

from onestep_jax import Design, UserError, encode, load_encoder, load_model, train_encoder
from onestep_jax.cli.parser import main
from onestep_jax.encoder import train
from onestep_jax.encoder.folder import make_encoder
from onestep_jax.encoder.growing import grown_design, grown_weights
from onestep_jax.encoder.objective import init_weights

TEXTS = word_texts(6)
BRIEF = dataclasses.replace(SMALL, updates=2, batch=4, reading=0.0)


def grown(model, start, **parts):
    design = grown_design(start, dataclasses.replace(start.design, **parts))
    fresh = init_weights(model.network, design, model.params, jax.random.key(1))
    return make_encoder(model, design, grown_weights(start, fresh), {})


@pytest.mark.parametrize("step", ["diagonal", pytest.param("network", marks=pytest.mark.long)])
def test_one_that_has_grown_gives_the_same_vectors(worded, step):
    """Of texts that are no longer, after no more corrections than there were; then a correction as the last one."""
    start = random_encoder(worded, step=step)
    longer = grown(worded, start, length=7, corrections=4)
    texts = [[3, 1, 4, 1], [5, 9]]
    for refine in (0, 2):
        ways = [encode(worded, one, texts, refine=refine) for one in (start, longer)]
        for one, other in zip(*ways, strict=True):
            for name in ("e", "m"):
                np.testing.assert_allclose(one.vectors[name], other.vectors[name], rtol=1e-5, atol=1e-5)
    assert longer.weights["pool"].shape[0] == start.weights["pool"].shape[0] + 3
    assert not longer.weights["pool"][-3:].any()
    for leaf, old in zip(*(jax.tree.leaves(one.weights["steps"]) for one in (longer, start)), strict=True):
        np.testing.assert_array_equal(leaf, np.concatenate([old, old[-1:], old[-1:]]))


def test_one_can_be_made_shorter_or_get_its_first_corrections(worded):
    start = random_encoder(worded)
    shorter = grown(worded, start, length=2, corrections=1)
    np.testing.assert_array_equal(shorter.weights["pool"], start.weights["pool"][:4])
    np.testing.assert_array_equal(shorter.weights["steps"]["diagonal"], start.weights["steps"]["diagonal"][:1])
    bare = random_encoder(worded, corrections=0)
    np.testing.assert_array_equal(grown(worded, bare, corrections=2).weights["steps"]["diagonal"], np.zeros((2, 64)))


def test_nothing_else_may_differ_but_the_temperature(worded):
    start = random_encoder(worded, temperature=0.5)
    assert grown_design(start, None) == start.design
    for temperature in (0.25, 1.0):
        other = dataclasses.replace(start.design, temperature=temperature)
        assert grown_design(start, other) == other
    with pytest.raises(UserError, match="can grow in length and corrections alone; reader: 'copy' there, 'lora' here"):
        grown_design(start, dataclasses.replace(start.design, reader="lora", length=9))


@pytest.mark.long
def test_a_training_begins_there_and_says_so(worded, tmp_path):
    """Its identity has the encoder, so another one, or none, is another training."""
    start = random_encoder(worded)
    how = {"recipe": dataclasses.replace(BRIEF, lr=1e-9), "prefix": "none"}
    found = train_encoder(worded, TEXTS, tmp_path / "longer", start=start, **how)
    assert found.design == start.design
    for one, other in zip(jax.tree.leaves(found.weights), jax.tree.leaves(start.weights), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found.trained["start"]["fingerprint"] == start.fingerprint
    assert f"the encoder {start.fingerprint}" in (tmp_path / "longer" / "README.md").read_text()
    for other in (None, random_encoder(worded, seed=1)):
        with pytest.raises(UserError, match="holds another training; start: "):
            train_encoder(worded, TEXTS, tmp_path / "longer", design=start.design, start=other, **how)


@pytest.mark.long
def test_the_prefix_is_that_of_the_encoder(worded, tmp_path, monkeypatch):
    """An empty one too, on a model where one would be put in front; another one is refused."""
    monkeypatch.setattr(train, "resolve_prefix", lambda scheme, *_: given(scheme, [5]))
    how = {"recipe": BRIEF, "design": dataclasses.replace(DESIGN, length=5)}
    for name, prefix in (("none", ()), ("some", (7, 3))):
        start = random_encoder(worded, prefix=prefix)
        assert train_encoder(worded, TEXTS, tmp_path / name, start=start, **how).design.prefix == prefix
        with pytest.raises(UserError, match="can grow in length and corrections alone; prefix: "):
            train_encoder(worded, TEXTS, tmp_path / "other", start=start, prefix=[9], **how)


def given(scheme, otherwise):
    return scheme if scheme.prefix is not None else dataclasses.replace(scheme, prefix=tuple(otherwise))


def test_an_encoder_of_another_model_is_refused(worded, tmp_path):
    start = dataclasses.replace(random_encoder(worded), model="0" * 16, model_source="other")
    with pytest.raises(UserError, match=r"start: belongs to model 'other' \(0{16}\), not to 'little'"):
        train_encoder(worded, TEXTS, tmp_path / "out", start=start)
    with pytest.raises(UserError, match="start"):
        train_encoder(worded, TEXTS, tmp_path / "out", start="default")  # pyright: ignore[reportArgumentType]


@pytest.mark.long
def test_the_command(tiny_folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = f"encoder train --model {tiny_folder} --texts {tmp_path}/texts.txt --split lines --prefix none"
    words += " --updates 2 --batch 4 --reading 0 --json"
    assert main(f"{words} --length 4 --corrections 1 --step diagonal --out {tmp_path}/first".split()) == 0
    assert main(f"{words} --length 6 --start {tmp_path}/first --out {tmp_path}/second".split()) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    first, second = (load_encoder(tmp_path / name, load_model(tiny_folder)) for name in ("first", "second"))
    assert second.design == Design(length=6, corrections=1, step="diagonal")
    assert told["start"]["fingerprint"] == first.fingerprint
    assert main(f"{words} --reader lora --start {tmp_path}/first --out {tmp_path}/third".split()) == 2
    assert "reader: 'copy' there, 'lora' here" in capsys.readouterr().err
