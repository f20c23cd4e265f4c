"""The margin of a row: written, read back, under its checksum; parts of versions without it read as before."""

import dataclasses

import numpy as np
import pytest
from store_runs import opened, results, same

from onestep_jax import read_results
from onestep_jax.store import verify
from onestep_jax.store.parquet import read_rows, write_rows
from onestep_jax.store.parts import checksum, part_files
from onestep_jax.store.reading import part_names


def recorded(folder, texts):
    with opened(folder, texts) as run:
        run.append(texts)
    return part_files(folder, part_names(folder)[0])["results"]


def with_margins(texts):
    return [dataclasses.replace(text, margin=0.1 + text.index) for text in texts]


def test_margins_are_read_back(tmp_path):
    texts = with_margins(results(3))
    recorded(tmp_path / "run", texts)
    same(read_results(tmp_path / "run"), texts)
    np.testing.assert_array_equal(read_results(tmp_path / "run").margin, [0.1, 1.1, 2.1])
    assert verify.verify(tmp_path / "run").problems == []


def test_a_part_without_the_column_reads_as_before(tmp_path):
    texts = results(3)
    table = recorded(tmp_path / "run", texts)
    rows = read_rows(table)
    for row in rows:
        assert np.isnan(row.pop("margin"))
    write_rows(table, rows)  # as an earlier version wrote it
    same(read_results(tmp_path / "run"), texts)
    assert verify.verify(tmp_path / "run").problems == []
    with opened(tmp_path / "run", [*texts, *with_margins(results(5)[3:])]) as run:
        run.append(with_margins(results(5)[3:]))
    np.testing.assert_array_equal(read_results(tmp_path / "run").margin, [np.nan] * 3 + [3.1, 4.1])


def test_an_unknown_margin_is_none_of_the_checksum():
    (text,) = results(1)
    assert checksum(text) == checksum(dataclasses.replace(text, margin=float("nan")))
    assert checksum(text) != checksum(dataclasses.replace(text, margin=0.0))


@pytest.mark.parametrize("wrong", [0.2, float("nan"), None])
def test_a_changed_margin_is_found(tmp_path, wrong):
    texts = with_margins(results(3))
    table = recorded(tmp_path / "run", texts)
    rows = read_rows(table)
    rows[1]["margin"] = wrong
    write_rows(table, rows)
    (problem,) = verify.verify(tmp_path / "run").problems
    assert problem.text_id == texts[1].text_id
    assert problem.damage
