"""A smoke run of the card `meaning`, compared with what its runs hold."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from smoke import smoke

from onestep_jax import Model, read_results
from onestep_jax.prototokens.auxiliary import anchor_points
from onestep_jax.texts.embeddings import text_embeddings

pytestmark = pytest.mark.long


def test_meaning(tmp_path: Path, two_layers: Model):
    tables = smoke("meaning", tmp_path, two_layers)
    rows = {(row["way"], row["teacher"]): row for row in tables["meaning"]}
    assert list(rows) == [("none", "true"), ("group", "true"), *((way, teacher) for way in ("anchor", "relational")
                          for teacher in ("true", "shuffled"))]  # fmt: skip
    runs = tmp_path / "meaning" / "runs"
    folders = {("anchor", "true"): "anchor-3", ("relational", "shuffled"): "relational-30-shuffled"}
    for key, folder in folders.items():
        results = read_results(runs / folder)
        assert (rows[key]["texts"], rows[key]["exact"]) == (6, results.solved / 6)
        assert rows[key]["evaluations"] == pytest.approx(results.steps.mean(), rel=1e-5)
    results = read_results(runs / "anchor-3")
    teacher = text_embeddings(two_layers, [text.tokens for text in results], "model")
    points, e = anchor_points(teacher, two_layers.embed_width), results.vectors["e"]
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (e.astype(float), teacher, points)]
    assert rows["anchor", "true"]["cosine to the point"] == pytest.approx(
        np.sum(unit[0] * unit[2], axis=1).mean(), rel=1e-4
    )
    above = np.triu_indices(6, k=1)
    expected = spearmanr(*((1 - x @ x.T)[above] for x in unit[:2])).statistic
    assert rows["anchor", "true"]["correlation"] == pytest.approx(expected, rel=1e-5)
    assert rows["none", "true"]["by chance"] == 0.4
    nearest = (unit[0] @ unit[0].T - 2 * np.eye(6)).argmax(axis=1)
    assert rows["anchor", "true"]["same context nearest"] == pytest.approx(
        np.mean(nearest // 3 == np.arange(6) // 3), rel=1e-5
    )
    assert rows["anchor", "true"]["cosine to the point"] > rows["none", "true"]["cosine to the point"] + 0.1
    assert rows["relational", "true"]["correlation in groups"] > rows["group", "true"]["correlation in groups"]
    given = "correlation with what was given"
    assert rows["relational", "shuffled"][given] > rows["relational", "shuffled"]["correlation"]
