"""Vectors as one file: three formats with the same content, and the rows that enter the model."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from options import quick_of
from safetensors import safe_open
from safetensors.numpy import load_file

from onestep_jax import Cramming, OneStep, fit, load_model, read_results
from onestep_jax.cli.parser import main
from onestep_jax.errors import UserError
from onestep_jax.prototokens.assembly import input_rows
from onestep_jax.prototokens.reconstruction import decode
from onestep_jax.store.export import write_vectors

LENGTHS = (3, 5, 4)
PREFIXES = ([7], [], [9, 2])


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(5)
    return [random.integers(61, size=length).tolist() for length in LENGTHS]


def some(tiny, texts, scheme, **options):
    return fit(tiny, texts, scheme=scheme, steps=2, seeds=1, slots=3, **options)


@pytest.fixture(scope="module")
def results(tiny, texts):
    return some(tiny, texts, OneStep(), prefixes=PREFIXES)


def test_three_formats_hold_the_same(results, tiny, tmp_path):
    inputs = input_rows(tiny, results)
    for name in ("a.safetensors", "a.npz", "a.parquet", "a.other"):
        write_vectors(results, tmp_path / name, inputs=inputs)
    plain, packed = load_file(tmp_path / "a.safetensors"), np.load(tmp_path / "a.npz")
    assert list(load_file(tmp_path / "a.other")) == list(plain)
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        metadata = file.metadata()
    assert json.loads(str(packed["metadata"])) == metadata
    assert json.loads(metadata["text_ids"]) == [text.text_id for text in results]
    assert set(packed.files) == {*plain, "metadata"}
    table = pq.read_table(tmp_path / "a.parquet")
    assert set(table.column_names) == {*plain, "text_id"} - {"lengths"}
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert about == {key: value for key, value in metadata.items() if key != "text_ids"}
    rows = table.to_pylist()
    assert [row["text_id"] for row in rows] == json.loads(metadata["text_ids"])
    counts = {"tokens": LENGTHS, "prefix": [1, 0, 2], "inputs_embeds": [4, 5, 6]}
    for name, array in plain.items():
        np.testing.assert_array_equal(packed[name], array)
        for i, row in enumerate(rows if name != "lengths" else []):
            wanted = array[i][: counts[name][i]] if name in counts else array[i]
            np.testing.assert_array_equal(np.array(row[name], array.dtype).reshape(wanted.shape), wanted)
    assert plain["tokens"].tolist()[0] == [*results[0].tokens.tolist(), -1, -1]
    assert plain["prefix"].tolist() == [[7, -1], [-1, -1], [9, 2]]
    np.testing.assert_array_equal(plain["inputs_embeds"][0, 4:], 0)


def test_rows_are_prefix_e_and_m(results, tiny):
    for text, one, prefix in zip(results, input_rows(tiny, results), PREFIXES, strict=True):
        before = np.asarray(tiny.params["embed"]["embedding"])[prefix]
        wanted = [before, text.vectors["e"][None], np.tile(text.vectors["m"], (len(text.tokens) - 1, 1))]
        np.testing.assert_array_equal(one.vectors_PD, np.concatenate(wanted))
        assert one.first == len(prefix)


@pytest.mark.parametrize(
    "scheme",
    quick_of([OneStep("unguided-e"), Cramming(2, prefix=(3, 4)), OneStep("halves"), OneStep(prefix=(3,))]),
    ids=str,
)
def test_outputs_from_the_first_on_give_the_tokens(tiny, texts, scheme):
    """A plain forward pass over the rows, without arrangement, prefix or padding, gives what decode gives."""
    results = some(tiny, texts, scheme)
    for one, decoded in zip(input_rows(tiny, results), decode(tiny, results), strict=True):
        logits_PV = np.asarray(tiny.apply(tiny.params, jnp.asarray(one.vectors_PD)))
        np.testing.assert_array_equal(logits_PV[one.first :].argmax(-1), decoded.tokens)


def test_a_scheme_that_reads_in_another_order_is_refused(results, tiny):
    class Backwards(OneStep):
        def reads(self, positions):
            return super().reads(positions)[::-1]

    with pytest.raises(UserError, match=re.escape("reads(3) = [2, 1, 0]; a file names the first row alone")):
        input_rows(tiny, results, Backwards())


def test_vectors_of_memory_are_lists_of_lists(tiny, texts, tmp_path):
    results = some(tiny, texts, Cramming(2))
    write_vectors(results, tmp_path / "a.parquet")
    (column,) = (row["mem"] for row in pq.read_table(tmp_path / "a.parquet").to_pylist()[:1])
    np.testing.assert_array_equal(np.array(column, np.float32), results[0].vectors["mem"])


def test_formats_are_chosen_by_name_or_option(results, tmp_path):
    write_vectors(results, tmp_path / "a.NPZ")
    assert "tokens" in np.load(tmp_path / "a.NPZ")
    write_vectors(results, tmp_path / "a.npz", "parquet")
    assert len(pq.read_table(tmp_path / "a.npz")) == 3
    with pytest.raises(UserError, match=re.escape("unknown format 'csv'")):
        write_vectors(results, tmp_path / "a", "csv")
    with pytest.raises(UserError, match="results of fit"):
        write_vectors([1], tmp_path / "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="path"):
        write_vectors(results, 1)  # pyright: ignore[reportArgumentType]


def test_the_command(tiny_folder, tmp_path, capsys):
    lines = [json.dumps({"text": " ".join(f"w{i}" for i in range(j, j + 4))}) for j in (1, 9)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    how = ["--model", str(tiny_folder), "--texts", str(tmp_path / "texts.jsonl"), "--length", "4"]
    how += ["--steps", "2", "--seeds", "1", "--arrangement", "one-step"]
    assert main(["fit", *how, "--prefix", "w3", "--run", str(tmp_path / "run")]) in (0, 1)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "a.npz"), "--inputs-embeds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "a.npz"), "texts": 2}
    stored, results = np.load(tmp_path / "a.npz"), read_results(tmp_path / "run")
    assert stored["first"].tolist() == [1, 1]
    for row, one in zip(stored["inputs_embeds"], input_rows(load_model(str(tiny_folder)), results), strict=True):
        np.testing.assert_array_equal(row, one.vectors_PD)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "b"), "--format", "parquet"]) == 0
    assert len(pq.read_table(tmp_path / "b")) == 2
