"""The paper calculation of experiments/studies/scaling.py: cases done by hand, directions, the page that shows it."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import pytest

from onestep_jax import PRESETS
from onestep_jax.experiment import cards as experiment
from onestep_jax.fitting.memory import fit_memory
from onestep_jax.model.checkpoint import describe
from onestep_jax.model.decoder import Network
from onestep_jax.model.hub import locate

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "experiments" / "studies" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scaling = load()
V5E, H200, H100 = scaling.SYSTEMS


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words])
    status = scaling.main()
    out, err = capsys.readouterr()
    return status, out, err


def test_it_is_no_card():
    assert "scaling" not in experiment.cards()


def test_the_page_shows_what_it_prints(monkeypatch, capsys):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    status, out, _ = run(monkeypatch, capsys)
    assert status == 0
    assert out in page
    assert "not a measurement" in page


def test_a_billion_weights_by_hand():
    """Llama-3.2-1B: 16 layers of 60.8 million weights and a head of 262.7 million; 1.236 billion of 2 bytes."""
    needed = scaling.need("llama-3.2-1b", 256)
    matrices = 16 * (2048 * (2048 + 2 * 512 + 2048) + 3 * 2048 * 8192) + 128256 * 2048
    assert needed.flops == 256 * (4 * matrices + 12 * 16 * 32 * 64 * 256)
    assert needed.weights == pytest.approx(2 * 1.236e9, rel=1e-3)
    planned = scaling.plan(needed, H100)
    assert (planned.axis, planned.copies, planned.talk) == (1, 1, 0)
    # 1.29 TFLOP at half of 989.5 TFLOP/s is 2.6 ms; a thousand of them and 2 % for the host are 2.66 s.
    assert scaling.text_seconds(planned, 0.5, 1000, 0.02) == pytest.approx(needed.flops / 494.75e12 * 1020)
    assert scaling.text_seconds(planned, 0.5, 1000, 0.02) == pytest.approx(2.66, rel=0.01)
    assert scaling.texts_an_hour(planned, 0.5, 1000, 0.02) == pytest.approx(1353, rel=0.01)


def test_eight_billion_weights_are_split_where_they_must_be():
    needed = scaling.need("llama-3.1-8b", 512)
    assert needed.weights > 16e9
    assert scaling.plan(needed, H200).axis == scaling.plan(needed, H100).axis == 1
    split = scaling.plan(needed, V5E)
    assert (split.axis, split.copies) == (2, 128)
    # 128 sums of 512 × 4096 numbers of 2 bytes, half of each over a link of 50 GB/s, there and back.
    assert split.talk == pytest.approx(128 * 512 * 4096 * 2 / 50e9)
    wider = scaling.plan(needed, V5E, 4)
    assert (wider.axis, wider.copies) == (4, 64)
    assert wider.step == pytest.approx(split.step / 2)
    assert wider.slots > split.slots
    with pytest.raises(ValueError, match="has 8 chips"):
        scaling.plan(needed, V5E, 3)
    with pytest.raises(ValueError, match="do not fit into 1 × v5e"):
        scaling.plan(needed, V5E._replace(local=1))


@pytest.mark.parametrize("system", scaling.SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize(("shape", "length"), scaling.CASES)
def test_slots_fit_and_copies_fill_the_system(system, shape: str, length: int):
    needed, chip = scaling.need(shape, length), scaling.CHIPS[system.chip]
    planned = scaling.plan(needed, system)
    assert planned.axis * planned.copies == system.chips
    a_text = needed.state + needed.copied + needed.divided / planned.axis
    assert needed.weights / planned.axis + planned.slots * a_text <= chip.memory * chip.given
    assert planned.slots >= 1
    assert planned.slots * length <= scaling.TOKENS


def test_directions():
    planned = scaling.plan(scaling.need("llama-3.2-1b", 256), H200)
    longer = scaling.plan(scaling.need("llama-3.2-1b", 512), H200)
    hourly = scaling.texts_an_hour
    assert hourly(planned, 0.2, 342, 0.02) < hourly(planned, 0.5, 342, 0.02)
    assert hourly(planned, 0.5, 5000, 0.02) < hourly(planned, 0.5, 342, 0.02)
    assert hourly(planned, 0.5, 342, 0.2) < hourly(planned, 0.5, 342, 0.02)
    assert hourly(longer, 0.5, 342, 0.02) < hourly(planned, 0.5, 342, 0.02) / 2
    assert planned.copies == 8


def test_tail():
    assert scaling.tail([7], 12, 4) == 0  # three rounds of equal texts
    assert scaling.tail([7], 13, 4) == pytest.approx(1 - 13 / 16)  # a fourth round for one of them
    assert scaling.tail([7], 3, 100) == 0  # no more slots than texts
    found = scaling.judged()
    tails = [scaling.tail(found, 1000, places) for places in (1, 8, 64, 512)]
    assert tails[0] == pytest.approx(0)
    assert tails == sorted(tails)
    even = 1000 * min(found) / 512  # Graham: the last text ends within one text of an even split
    assert tails[-1] <= max(found) / (even + max(found))


def test_preemption():
    assert scaling.preemption(1, 60, 360) == (pytest.approx(0.1), pytest.approx(390 / 3600))
    assert scaling.preemption(6, 60, 300) < scaling.preemption(3, 60, 300)
    assert scaling.preemption(0.01, 60, 300) == (1, 1)


def test_evaluations_are_those_of_the_study():
    readme = (ROOT / "experiments" / "results" / "presets" / "judge" / "README.md").read_text()
    mean = sum(scaling.judged()) / len(scaling.judged())
    rows = [line for line in readme.splitlines() if line.startswith("| smollm2-135m | float32 | fast |")]
    assert f" | 1000 | {mean:.0f} | " in rows[-1]


@pytest.mark.long
def test_activations_are_near_what_xla_says():
    _, _, config = describe(locate("default"))
    shape = {"length": 64, "preset": PRESETS["fast"]}
    two, four = (fit_memory(Network(config), jnp.float32, slots=count, **shape).working for count in (2, 4))
    assert sum(scaling.kept(config, 64, size=4)) == pytest.approx((four - two) / 2, rel=0.5)


def record(device: str, model: str, speeds: dict[str, float], length: int = 256) -> dict:
    rows = [{"contender": name, "GFLOP/s": speed} for name, speed in speeds.items()]
    settings = {"model": model, "length": length}
    return {"benchmark": "step", "settings": settings, "machine": {"device": device}, "rows": rows}


def test_a_record_takes_the_place_of_the_assumption(tmp_path, monkeypatch, capsys):
    speeds = {
        "onestep_jax, 1 at a time": 1e5,
        "onestep_jax, 64 at a time": 395_800.0,
        "PyTorch eager, 1 at a time": 9e5,
    }
    path = tmp_path / "step.json"
    path.write_text(json.dumps(record("NVIDIA H100 80GB HBM3", "shape:llama-3.2-1b", speeds)))
    assert scaling.measured_share(json.loads(path.read_text())) == ("H100", "llama-3.2-1b", 256, pytest.approx(0.4))
    _, before, _ = run(monkeypatch, capsys)
    status, after, _ = run(monkeypatch, capsys, "--record", str(path))
    assert status == 0
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if new != old]
    assert len(changed) == 2  # its speed and its sweep
    assert all(line.startswith("| 1 × H100 | llama-3.2-1b, N = 256 |") for line in changed)
    assert "| 40 % measured |" in changed[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (record("cpu", "shape:llama-3.2-1b", {}), "device 'cpu': its speed says nothing about v5e, H200, H100"),
        (record("NVIDIA H200", "default", {}), "expected one of shape:llama-3.2-1b"),
        ({"benchmark": "sweep"}, "expected a record of onestep bench step"),
    ],
)
def test_other_records_are_refused(given, said, tmp_path, monkeypatch, capsys):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(given))
    status, out, err = run(monkeypatch, capsys, "--record", str(path))
    assert status == 2
    assert not out
    assert said in err
