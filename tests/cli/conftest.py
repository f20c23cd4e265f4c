"""What several tests of the command line share."""

import pytest

from onestep_jax.cli.parser import main


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """A finished run of two texts; no test may change it."""
    home = tmp_path_factory.mktemp("home")
    (home / "lines.txt").write_text("w1 w2 w3 w4\nw5 w6 w7 w8\n")
    words = ["fit", "--model", tiny_folder, "--texts", home / "lines.txt", "--split", "lines", "--length", 4]
    assert main([str(word) for word in (*words, "--run", home / "run", "--slots", 2)]) == 0
    return home / "run"
