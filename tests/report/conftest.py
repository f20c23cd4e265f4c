"""One run and its report, for all tests of the report; no test may change them."""

import pytest
from pages import parse

from onestep_jax import fit, load_model
from onestep_jax.report import write_report


@pytest.fixture(scope="session")
def run(tiny_folder, token_lists, one_device, tmp_path_factory):
    """A finished run of six texts, some of them exact."""
    folder = tmp_path_factory.mktemp("report") / "six"
    results = fit(load_model(tiny_folder), token_lists[:6], run=folder, steps=40, slots=3, placement=one_device)
    assert 0 < results.solved < 6
    return folder


@pytest.fixture(scope="session")
def report(run, tmp_path_factory):
    return write_report([run], tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="session")
def page(report):
    return parse(report.page.read_text(encoding="utf-8"))
