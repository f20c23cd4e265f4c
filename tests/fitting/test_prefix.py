"""Fits behind a prefix: what is found, kept, resumed and read again."""

from __future__ import annotations

import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import Interrupted, OneStep, UserError, decode, fit, read_results
from onestep_jax.analysis.attention import attention
from onestep_jax.analysis.capacity import search
from onestep_jax.analysis.connectivity import connect, solution_pairs
from onestep_jax.cli.parser import main
from onestep_jax.devices.placement import Mesh, Pmap, Together
from onestep_jax.prototokens.prefixes import check_reach
from onestep_jax.prototokens.reconstruction import decoding_of
from onestep_jax.store.export import write_vectors
from onestep_jax.store.reading import read_config
from onestep_jax.store.verify import verify

pytestmark = pytest.mark.eight_devices
PREFIX = (5, 9, 3)
OWN = [[5, 9, 3], [1], [], [7, 7, 2, 4], [60, 0]]


@pytest.fixture(scope="module")
def texts(token_lists):
    return token_lists[:5]


def behind(model, text):
    """Accuracy of a result with its prefix among the inputs."""
    x_TD = np.concatenate([model.embed(model.params, jnp.asarray(text.prefix, jnp.int32)), text.vectors["e"][None]])
    x_TD = np.concatenate([x_TD, np.repeat(text.vectors["m"][None], len(text.tokens) - 1, 0)])
    predicted = model.apply(model.params, x_TD)[len(text.prefix) :].argmax(-1)
    return float(np.mean(np.asarray(predicted) == text.tokens))


def solved(model, results, prefixes):
    assert results.solved == len(results)
    assert [text.prefix.tolist() for text in results] == prefixes
    assert [behind(model, text) for text in results] == [1.0] * len(results)
    assert [made.accuracy for made in decode(model, results)] == [1.0] * len(results)


@pytest.mark.long
def test_a_common_prefix(tiny, texts):
    results = fit(tiny, texts, scheme=OneStep(prefix=PREFIX), placement=Pmap(jax.local_devices()[:2]))
    solved(tiny, results, [list(PREFIX)] * 5)
    assert results.scheme["prefix"] == list(PREFIX)


def test_a_prefix_for_each_text(tiny, texts):
    results = fit(tiny, texts, scheme=OneStep(), prefixes=OWN, copies=2, placement=Pmap(jax.local_devices()[:2]))
    solved(tiny, results, [prefix for prefix in OWN for _ in range(2)])
    assert "prefix" not in results.scheme


@pytest.mark.long
def test_a_second_fit_compiles_nothing(tiny, texts, one_device):
    options = {"scheme": OneStep(prefix=PREFIX), "steps": 3, "seeds": 1, "slots": 2, "placement": one_device}
    fit(tiny, texts[:2], **options)
    took = []

    def note(event, duration_secs, **_):
        took.extend([event] if event == "/jax/core/compile/backend_compile_duration" else [])

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        fit(tiny, texts[2:4], **options)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert took == []


@pytest.mark.long
@pytest.mark.parametrize("own", [False, True])
def test_every_placement_gives_the_same_vectors(tiny, token_lists, own):
    """A group of all texts, over which `m` is shared, or texts on their own; after so few steps rounding is small."""
    lists = token_lists[:8]
    given = {"prefixes": [[i, 2 * i][: 1 + i % 2] for i in range(8)]} if own else {}
    of = {} if own else {"prefix": PREFIX}
    how = {"preset": "paper", "steps": 12, "slots": 8, **given}
    alone = fit(tiny, lists, scheme=OneStep(**of), placement=Pmap(jax.local_devices()[:1]), **how)
    for placement in (Pmap(jax.local_devices()), Mesh(jax.local_devices(), 2)):
        spread = fit(tiny, lists, scheme=OneStep(**of), placement=placement, **how)
        for leaf in "em":
            np.testing.assert_allclose(spread.vectors[leaf], alone.vectors[leaf], atol=2e-4)
    shared = OneStep(share="m", group=8, **of)
    alone = fit(tiny, lists, scheme=shared, placement=Pmap(jax.local_devices()[:1]), **how)
    spread = fit(tiny, lists, scheme=shared, placement=Together(8, jax.local_devices()[:4]), **how)
    for leaf in "em":
        np.testing.assert_allclose(spread.vectors[leaf], alone.vectors[leaf], atol=2e-4)


def stop_at(points):
    seen = itertools.count(1)

    def report(_):
        if next(seen) == points:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_run_is_stopped_resumed_verified_and_exported(tiny, texts, one_device, tmp_path, own):
    how = {"prefixes": OWN} if own else {"scheme": OneStep(prefix=PREFIX)}
    how |= {"preset": "paper", "steps": 40, "run": tmp_path / "run", "placement": one_device, "chunk": 5, "slots": 4}
    whole = fit(tiny, texts, **{**how, "run": None})
    with pytest.raises(Interrupted):
        fit(tiny, texts, progress=stop_at(4), **how)
    fit(tiny, texts, **how)
    again = read_results(tmp_path / "run")
    prefixes = OWN if own else [list(PREFIX)] * 5
    assert [text.prefix.tolist() for text in again] == prefixes
    assert again.steps.tolist() == whole.steps.tolist()
    np.testing.assert_allclose(again.vectors["e"], whole.vectors["e"], atol=1e-5)
    assert [made.accuracy for made in decode(tiny, again)] == again.accuracy.tolist()
    found = verify(tmp_path / "run", decoding_of(tiny))
    assert found.problems == []
    assert found.decoded == 5
    with pytest.raises(UserError, match="prefix"):
        fit(tiny, texts, **{**how, "scheme": OneStep(prefix=(1,)), "prefixes": None})
    write_vectors(again, tmp_path / "vectors.safetensors")
    from safetensors.numpy import load_file

    table = load_file(tmp_path / "vectors.safetensors")["prefix"]
    assert [[i for i in row if i >= 0] for row in table.tolist()] == prefixes


def test_a_run_without_a_prefix_names_none(tiny, texts, tmp_path):
    fit(tiny, texts, steps=10, run=tmp_path / "run")
    assert "prefix" not in json.dumps(read_config(tmp_path / "run")["identity"])
    write_vectors(read_results(tmp_path / "run"), tmp_path / "vectors.safetensors")
    from safetensors.numpy import load_file

    assert "prefix" not in load_file(tmp_path / "vectors.safetensors")


@pytest.mark.long
def test_analyses_stand_behind_the_prefix(tiny, texts):
    results = fit(tiny, texts[:2], scheme=OneStep(prefix=PREFIX), copies=2, placement=Pmap(jax.local_devices()[:1]))
    assert results.solved == 4
    pairs = solution_pairs(results)
    for found, pair in zip(connect(tiny, OneStep(), pairs, steps=0, points=2), pairs, strict=True):
        assert found.line_accuracy.tolist() == [1.0, 1.0]  # the ends are solutions
        assert pair.prefix.tolist() == list(PREFIX)
    seen = attention(tiny, results)
    text = results[0]
    x_TD = np.concatenate([text.vectors["e"][None], np.repeat(text.vectors["m"][None], 7, 0)])
    whole_TD = np.concatenate([tiny.embed(tiny.params, jnp.array(PREFIX)), x_TD])
    weights_LHTS = np.asarray(tiny.states(tiny.params, whole_TD).attention_LHTS)
    on_e = weights_LHTS[:, :, len(PREFIX) + 1 :, len(PREFIX)].mean(-1)
    np.testing.assert_allclose(seen.shares.e[0], on_e, atol=1e-6)


@pytest.mark.long
def test_a_capacity_behind_prefixes(tiny, token_lists, one_device):
    texts, prefixes = [token_lists[0] + token_lists[1], token_lists[2] + token_lists[3]], [[4, 5], [6]]
    how = {"steps": 60, "placement": one_device}
    table = search(tiny, texts, (2, 4), prefixes=prefixes, **how)
    assert [
        row.tolist()
        for i in range(2)
        for row in {text.prefix.tobytes(): text.prefix for text in table.row(i).values()}.values()
    ] == prefixes
    common = search(tiny, texts, (2, 4), scheme=OneStep(prefix=(8,)), **how)
    assert common.scheme["prefix"] == [8]
    assert all(text.prefix.tolist() == [8] for text in common.row(0).values())


def test_a_prefix_takes_room_in_the_context(tiny):
    texts, room = [[1] * 64], 64 - len(PREFIX)
    with pytest.raises(UserError, match=f"the model's context has room for {room}"):
        fit(tiny, texts, scheme=OneStep(prefix=PREFIX))
    with pytest.raises(UserError, match="positions less 3 of the prefix"):
        fit(tiny, texts, length=62, scheme=OneStep(prefix=PREFIX))


def test_rotary_positions_that_change_are_not_crossed(tiny, texts, monkeypatch):
    """Keys of the prefix would have other frequencies than the inputs behind it."""
    check_reach(16, 4, 12)
    check_reach(16, 0, 40)
    check_reach(None, 4, 40)
    with pytest.raises(UserError, match="a prefix of 4 tokens and 13 positions behind it reach beyond position 16"):
        check_reach(16, 4, 13)
    monkeypatch.setattr(type(tiny.config), "boundary", property(lambda _: 10))
    with pytest.raises(UserError, match="a prefix of 3 tokens and 8 positions behind it reach beyond position 10"):
        fit(tiny, texts, scheme=OneStep(prefix=PREFIX))


def test_contradictions_are_refused(tiny, texts):
    with pytest.raises(UserError, match="give one of them"):
        fit(tiny, texts, scheme=OneStep(prefix=(1,)), prefixes=OWN)
    with pytest.raises(UserError, match="2 prefixes for 5 texts"):
        fit(tiny, texts, prefixes=OWN[:2])


@pytest.mark.long
def test_the_command_line(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "w1 w2 w3 w4", "before": "w7 w8"}, {"text": "w5 w6 w1 w2", "before": ""}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.txt").write_text("w9 w10 w11")
    fit_words = ["fit", "--model", str(tiny_folder), "--texts", "t.jsonl", "--length", "4"]

    def prefixes(*words):
        name = f"run{len(list(tmp_path.glob('run*')))}"
        assert main([*fit_words, "--run", name, *words]) == 0
        assert main(["verify", name]) == 0
        return [text.prefix.tolist() for text in read_results(name)]

    assert prefixes("--prefix", "w3 w4") == [[4, 5], [4, 5]]
    assert prefixes("--prefix", "@p.txt") == [[10, 11, 12]] * 2
    assert prefixes("--prefix-column", "before") == [[8, 9], []]
    assert prefixes("--prefix", "none") == [[], []]
    capsys.readouterr()
    for words, said in (
        (["--prefix", "bos"], "names neither a BOS nor an end-of-text token"),
        (["--prefix", "@none.txt"], "--prefix @none.txt: cannot be read"),
        (["--prefix-column", "befor"], "no column 'befor' (did you mean 'before'?)"),
        (["--prefix-column", "before", "--prefix", "w1"], "give one of them"),
    ):
        assert main([*fit_words, "--run", "other", *words]) == 2
        assert said in capsys.readouterr().err
