"""The benchmarks: contenders take turns, ratios are of medians, every repeat is on record, and they run."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onestep_jax import OneStep, UserError, fit
from onestep_jax.bench import sweep
from onestep_jax.bench import timing as measuring
from onestep_jax.bench.compile import bench_compile, draw_compile
from onestep_jax.bench.decode import bench_decode, one_pass
from onestep_jax.bench.encoder import bench_encoder
from onestep_jax.bench.host import Watched, bench_host, draw_host
from onestep_jax.bench.load import bench_load
from onestep_jax.bench.models import architecture, subject
from onestep_jax.bench.process import in_a_process, solved_an_hour
from onestep_jax.bench.scale import bench_scale, with_vocabulary
from onestep_jax.bench.shapes import SHAPES
from onestep_jax.bench.step import Stepper, bench_step
from onestep_jax.bench.timing import Clock, interleaved, machine, spread
from onestep_jax.cli.bench import BENCHMARKS
from onestep_jax.cli.parser import build_parser, main
from onestep_jax.model.checkpoint import load_model
from onestep_jax.model.cost import parameter_counts
from onestep_jax.texts.corpora import load_tokens

pytestmark = pytest.mark.eight_devices


def silent(_line: str) -> None:
    pass


def test_contenders_take_turns_in_changing_order():
    calls = []
    seconds = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=6, warm_up=1)
    assert calls[:3] == ["a", "b", "c"]
    rounds = [tuple(calls[i : i + 3]) for i in range(3, len(calls), 3)]
    assert len(rounds) == 6
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys("abc", 6)


def test_spread_is_the_median_with_its_range():
    assert spread("ms", [3.0, 1.0, 10.0], 2.0) == {"ms median": 6.0, "ms least": 2.0, "ms most": 20.0}


def test_the_machine_is_said():
    said = machine()
    assert said["platform"] == "cpu"
    assert said["devices"] == 8
    assert said["processor"]


def test_shapes_are_the_published_ones():
    sizes = {"llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248, "pythia-160m": 162_322_944}
    from onestep_jax.model.families import read_config

    for name, described in SHAPES.items():
        assert parameter_counts(read_config(described)[1])["total"] == sizes[name]
    with pytest.raises(UserError, match=r"did you mean 'llama-3\.2-1b'"):
        subject("shape:llama-3.2-1B")


def test_step(tiny_folder: Path):
    sizes = {"length": 8, "slots": 2, "chunk": 2, "repeats": 3}
    found = bench_step(str(tiny_folder), **sizes, torch=False, scan_layers=True, say=silent)
    one, two, scanned = found["rows"]
    assert (one["texts"], two["texts"], scanned["texts"]) == (1, 2, 2)
    assert scanned["contender"] == "onestep_jax, layers scanned, 2 at a time"
    for row in found["rows"]:
        assert row["ms a text-step least"] <= row["ms a text-step median"] <= row["ms a text-step most"]
        assert row["memory bytes"] > 0
        flops = row["GFLOP/s"] * row["ms a text-step median"] / 1e3
        assert flops == pytest.approx(found["work"]["GFLOP of a text-step"])
        share = row["GFLOP/s"] / found["work"]["GFLOP/s of a matrix product"]
        assert row["share of the ceiling"] == pytest.approx(share)
    name = "onestep_jax, 2 at a time"
    medians = {key: np.median(values) for key, values in found["seconds"].items()}
    expected = medians["onestep_jax, 1 at a time"] / (medians[name] / 2)
    assert found["ratios"] == {
        f"onestep_jax, 1 at a time over {name}": pytest.approx(expected),
        f"{scanned['contender']} over {name}": pytest.approx(medians[scanned["contender"]] / medians[name]),
    }
    assert all(len(values) == 3 for values in found["seconds"].values())


@pytest.mark.long
def test_a_contender_without_memory_is_left_out(tiny_folder: Path, monkeypatch):
    def full(self):
        if self.state.status.shape[1] == 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        called(self)

    called, said = Stepper.__call__, []
    monkeypatch.setattr(Stepper, "__call__", full)
    found = bench_step(str(tiny_folder), length=8, slots=4, chunk=1, repeats=1, torch=False, say=said.append)
    assert [row["texts"] for row in found["rows"]] == [1]
    assert "onestep_jax, 4 at a time: left out" in said[0]
    assert found["ratios"] == {}


def test_a_step_of_ours_that_fails_for_another_reason_is_not_left_out(tiny_folder: Path, monkeypatch):
    def broken(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such kernel")

    monkeypatch.setattr(Stepper, "__call__", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        bench_step(str(tiny_folder), length=8, slots=2, chunk=1, repeats=1, torch=False, say=silent)


@pytest.mark.long
def test_a_step_is_that_of_a_fit(tiny):
    """What is timed moves the vectors as a fit does."""
    stepper = Stepper(tiny, 2, 8, chunk=3)
    tokens = np.asarray(stepper.state.tokens_GT).reshape(2, 8)
    stepper()
    stepper()
    run = fit(tiny, tokens.tolist(), steps=6, slots=2, record=True, chunk=3)
    assert np.asarray(stepper.state.steps).tolist() == [[6, 6]]
    assert np.asarray(stepper.state.lengths_G).tolist() == [[[8], [8]]]
    assert {text.steps for text in run} == {6}
    assert np.isfinite(np.asarray(stepper.state.best_loss)).all()


def test_solved_slots_are_not_counted_as_work(tiny):
    stepper = Stepper(tiny, 2, 1, chunk=200)
    stepper()
    with pytest.raises(UserError, match="was solved while steps were timed"):
        stepper.check()


def test_the_one_that_matters_most_begins_first_and_the_rest_while_there_is_time(tiny_folder: Path):
    said, model, short = [], str(tiny_folder), {"repeats": 1, "limit": 1e-3}
    found = bench_step(model, length=8, slots=4, chunk=1, torch=False, **short, say=said.append)
    assert [row["texts"] for row in found["rows"]] == [4]
    assert "onestep_jax, 1 at a time: left out, the time is up" in said
    found = bench_decode(model, lengths=(4,), batches=(1, 2), **short, say=said.append)
    assert len(found["rows"]) == 1
    assert said[-1] == "4 tokens, 2 texts at a time: left out, the time is up"


def test_a_clock_without_a_limit_leaves_nothing_out():
    assert not Clock(None).leaves_out("a", silent)
    assert not Clock(60).leaves_out("a", silent)
    assert Clock(0).leaves_out("a", silent)


@pytest.mark.long
def test_scale(tiny_folder: Path):
    sizes = {"slots": (1, 2), "lengths": (16, 8, 4096), "vocabularies": (61, 500), "budget": 16}
    sizes |= {"chunk": 1, "repeats": 2}
    said = []
    found = bench_scale(str(tiny_folder), **sizes, say=said.append)
    assert len(bench_scale(str(tiny_folder), **sizes, limit=1e-3, say=silent)["rows"]) == 1
    assert "4096 tokens: left out, beyond the model's context of 64 positions" in said
    cases = {(row["against"], row["slots"], row["length"], row["vocabulary"]) for row in found["rows"]}
    by_length = {("length", 2, 8, 61), ("length", 1, 16, 61)}
    by_vocabulary = {("vocabulary", 1, 8, 61), ("vocabulary", 1, 8, 500)}
    assert cases == {("slots", 1, 8, 61), ("slots", 2, 8, 61)} | by_length | by_vocabulary


@pytest.mark.parametrize("tied", [False, True])
def test_a_larger_vocabulary_repeats_the_rows(tiny, tied):
    model = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, tied=tied))
    larger = with_vocabulary(model, 100)
    x_TD = 0.3 * jax.random.normal(jax.random.key(0), (5, 32))
    logits, more = model.apply(model.params, x_TD), larger.apply(larger.params, x_TD)
    assert more.shape == (5, 100)
    chex.assert_trees_all_close(more, jnp.concatenate([logits, logits[:, :39]], axis=1), atol=1e-5)


@pytest.mark.long
def test_compile(tiny_folder: Path, tmp_path: Path):
    cache = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    sizes = {"layers": (1, 3), "length": 8, "slots": 1, "preset": "paper", "repeats": 1}
    found = bench_compile(str(tiny_folder), **sizes, say=silent)
    cases = [("by layer", 1), ("by layer", 3), ("stacked", 1), ("stacked", 3)]
    assert [(row["layout"], row["layers"]) for row in found["rows"]] == cases
    assert all(row["s tracing median"] > 0 and row["s from the disk median"] > 0 for row in found["rows"])
    apart, more_apart, together, more_together = (
        row["s tracing median"] + row["s compiling median"] for row in found["rows"]
    )
    assert found["ratios"] == {
        "3 layers over 1, by layer, traced and compiled": more_apart / apart,
        "3 layers over 1, stacked, traced and compiled": more_together / together,
        "stacked over by layer, 1 layers, traced and compiled": together / apart,
        "stacked over by layer, 3 layers, traced and compiled": more_together / more_apart,
    }
    assert found["work"]["programs of a fit"] >= 3  # of each length one
    assert found["work"]["programs of a second fit"] == 0
    assert {name: getattr(jax.config, name) for name in cache} == cache
    assert draw_compile(found, tmp_path / "compile.png").stat().st_size > 5000


def test_the_architecture_of_a_shape_needs_no_weights():
    config = architecture("shape:llama-3.2-1b")
    assert (config.layers, config.width, config.vocab_size) == (16, 2048, 128256)


@pytest.mark.long
def test_host(tiny_folder: Path, tmp_path: Path):
    found = bench_host(str(tiny_folder), devices=(1, 4), slots=2, length=8, steps=20, chunk=5, repeats=2, say=silent)
    assert [(row["devices"], row["slots"]) for row in found["rows"]] == [(1, 2), (4, 8)]
    for row in found["rows"]:
        assert 0 < row["ms the rest median"] < row["ms a chunk median"]
        assert row["ms handing over median"] > 0
        assert 0 < row["share of the host least"] <= row["share of the host most"]
    assert draw_host(found, tmp_path / "host.png").stat().st_size > 5000


def test_waiting_for_devices_is_told_from_the_rest(tiny, one_device):
    """Fetching a value that is ready takes no time; one that is still being computed is waited for."""
    placement, ready = Watched(one_device.devices), jnp.ones(3)
    placement.fetch(ready.block_until_ready())
    assert placement.away < 0.05

    def slow(_params, x):
        return jax.lax.fori_loop(0, 60, lambda _, y: jnp.tanh(y @ y), x)

    placement.fetch(placement.map(slow)({}, jnp.ones((1, 700, 700))))
    assert placement.away > 0.05


def test_decode(tiny_folder: Path):
    found = bench_decode(str(tiny_folder), lengths=(4,), batches=(1, 2), repeats=2, say=silent)
    assert [(row["length"], row["batch"]) for row in found["rows"]] == [(4, 1), (4, 2)]
    for row in found["rows"]:
        assert row["one pass tokens/s"] == pytest.approx(4e3 * row["batch"] / row["one pass ms median"])
        assert row["ratio"] == row["one pass tokens/s"] / row["autoregressive tokens/s"]


def test_one_pass_emits_what_was_fitted(tiny, token_lists):
    run = fit(tiny, token_lists[:3], steps=2000, scheme=OneStep())
    assert run.solved == 3
    assert one_pass(tiny, 8, [text.vectors for text in run]).tolist() == token_lists[:3]


def test_load(tiny_folder: Path):
    found = bench_load(str(tiny_folder), repeats=2, dtype="bfloat16", say=silent)
    ours, plain = found["rows"]
    assert (ours["way"], plain["way"]) == ("onestep_jax", "safetensors")
    assert found["settings"]["bytes"] * 2 == found["settings"]["stored bytes"] - header_bytes(tiny_folder)
    (ratio,) = found["ratios"].values()
    assert ratio == plain["seconds median"] / ours["seconds median"]


@pytest.mark.long
def test_encoder(tiny_folder: Path):
    found = bench_encoder(str(tiny_folder), length=4, batch=8, corrections=1, repeats=2, say=silent)
    assert [row["way"] for row in found["rows"]] == ["reader", "1 corrections", "1 corrections, first order"]
    for row in found["rows"]:
        assert row["tokens per second"] == pytest.approx(32e3 / row["ms an update median"])
        assert row["of the ceiling"] > 0
    assert len(found["ratios"]) == 2


def header_bytes(folder: Path) -> int:
    """Of a safetensors file: the length of its description, and that."""
    content = (folder / "model.safetensors").read_bytes()
    return 8 + int.from_bytes(content[:8], "little")


@pytest.mark.parametrize("way", ["onestep_jax", "lockstep", "one at a time"])
def test_every_way_of_a_sweep(tiny_folder: Path, token_lists, way):
    task = {"model": str(tiny_folder), "dtype": "float32", "steps": 2000, "slots": 2, "preset": "fast", "way": way}
    found = sweep.solve(task | {"tokens": token_lists[:5]})
    assert (found["texts"], found["solved"], len(found["steps"])) == (5, 5, 5)
    assert found["steps mean"] == np.mean(found["steps"])


@pytest.mark.long
def test_a_process_counts_its_own_start_and_memory(tiny_folder: Path, token_lists):
    task = {"model": str(tiny_folder), "dtype": "float32", "steps": 1, "slots": 2, "preset": "paper"}
    found = in_a_process(sweep.solve, task | {"way": "lockstep", "tokens": token_lists[:2]})
    assert (found["texts"], found["steps"]) == (2, [1, 1])
    assert found["seconds"] > found["seconds of fitting"] > 0
    assert 100 < found["peak MB"] < 20_000
    assert found["solved an hour"] == 3600 * found["solved"] / found["seconds"]
    with pytest.raises(UserError, match=r"the way 'no model' failed: .*no-such-folder"):
        in_a_process(sweep.solve, task | {"way": "no model", "tokens": [[1]], "model": "./no-such-folder"})


def test_texts_of_several_sources_take_turns(tmp_path: Path):
    sources = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in sources:
        lines = [json.dumps({"text": f"{path.stem} tells of {i} ships at sea"}) for i in range(4)]
        path.write_text("\n".join(lines))
    model = load_model("default")
    read = [load_tokens(model, str(path), count=3, length=4) for path in sources]
    found = sweep.texts_in_turn(model, [str(path) for path in sources], count=5, length=4, seed=0)
    assert found == [read[0][0].tolist(), *(read[k][i].tolist() for i, k in [(0, 1), (1, 0), (1, 1), (2, 0)])]


def test_ratios_of_a_sweep_are_of_solved_texts_per_hour():
    rows = [
        {"way": "a", "solved": 6, "seconds": 3.0},
        {"way": "b", "solved": 1, "seconds": 2.0},
        {"way": "a", "solved": 4, "seconds": 2.0},
        {"way": "b", "solved": 0, "seconds": 2.0},
        {"way": "c", "solved": 0, "seconds": 2.0},
    ]
    assert solved_an_hour(rows) == {"a over b": 8.0, "a over c": None}


def test_the_command_prints_and_records(tiny_folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "deep" / "load.json"
    assert main(["bench", "load", "--model", str(tiny_folder), "--repeats", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "speed of onestep_jax over safetensors" in said
    found = json.loads(out.read_text())
    assert found["benchmark"] == "load"
    assert found["versions"]["jax"]
    assert found["command"].startswith("onestep bench load --model ")
    assert [len(found["seconds"][row["way"]]) for row in found["rows"]] == [2, 2]


WITHOUT = """
import sys
for absent in ("sentencex", "datasets", "loky", "torch"):
    sys.modules[absent] = None
from onestep_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_a_step_is_measured_where_nothing_reads_texts(tiny_folder: Path, tmp_path: Path):
    """Machines with accelerators often bring their own Python and cannot install what is missing."""
    words = ["step", "--model", str(tiny_folder), "--length", "8", "--slots", "2", "--chunk", "1", "--repeats", "1"]
    command = [sys.executable, "-c", WITHOUT, "bench", *words, "--no-torch", "--out", str(tmp_path / "step.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "step.json").read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["step", "--slots", "0"], "--slots: 0: expected at least 1"),
        (["step", "--limit", "-5"], "--limit: '-5': expected a finite number, above 0"),
        (["step", "--lenght", "8"], "did you mean '--length'"),
        (["sweep", "--ways", "pytorch"], "did you mean 'PyTorch'"),
        (["sweep", "--preset", "fats"], "did you mean 'fast'"),
        (["compile", "--preset", "fats"], "did you mean 'fast'"),
        (
            ["peers", "--hidden-capacity", "docs"],
            "docs: no clone of hidden_capacity (train.py is not in it); git clone",
        ),
        (["compile", "--layers", "8,0"], "argument --layers: 0: expected at least 1"),
        (["scale", "--slots", "1,two"], "'two': expected a whole number"),
        (["decode", "--lengths", "4096,8192"], "lengths 4096, 8192: all beyond the model's context of 512 positions"),
        (["host", "--devices", "1,16"], "16 devices: there are 8; give fewer with --devices"),
        (["step", "--no-torch", "--length", "600"], "lengths 600: all beyond the model's context of 512 positions"),
    ],
)
def test_bad_input_is_one_line(capsys, words, said):
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_records_are_written_whole(tmp_path: Path):
    path = tmp_path / "a" / "b.json"
    measuring.write(path, {"rows": [1]})
    assert json.loads(path.read_text()) == {"rows": [1]}


@pytest.fixture
def accelerator():
    path = Path(__file__).parents[2] / "experiments" / "studies" / "accelerator.py"
    spec = importlib.util.spec_from_file_location("accelerator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_for_accelerators_parses_and_is_short(accelerator):
    for words, seconds in [*accelerator.PLAN.values(), *accelerator.SMOKE.values()]:
        args, rest = build_parser().parse_known_args(["bench", *words.split(), "--limit", "1"])
        assert not rest
        assert args.benchmark in BENCHMARKS
        assert seconds > 0
        if args.model.startswith("shape:"):
            assert args.model.removeprefix("shape:") in SHAPES
    assert sum(seconds for _, seconds in accelerator.PLAN.values()) <= 540


def test_a_benchmark_that_hangs_is_ended_and_one_that_is_quick_leaves_its_time_to_the_next(
    accelerator, tmp_path: Path, monkeypatch, capfd
):
    given = []

    def passing(command, timeout):
        given.append((timeout, command[command.index("--limit") + 1]))
        if len(given) == 1:
            return subprocess.CompletedProcess(command, 0)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(accelerator.subprocess, "run", passing)
    assert accelerator.run_all({"a": ("step", 100), "b": ("scale", 60)}, tmp_path) == ["b"]
    assert given == [(pytest.approx(100, abs=1), "60"), (pytest.approx(160, abs=1), "96")]
    assert "b: ended after 160 s" in capfd.readouterr().out


def test_gains_over_lockstep_are_those_of_a_schedule(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments" / "studies")
    import bench_tables

    alike, uneven = bench_tables._gains([7] * 64), bench_tables._gains([1, 1, 1, 5] * 16)
    assert all(line.split("|")[2:4] == [" 1.00 ", " 1.00 "] for line in alike[2:])
    # In fours lockstep takes 16 · 5 steps; no order takes less than 16 · 8 / 4.
    assert uneven[2].startswith("| 4 | ")
    assert uneven[2].endswith("| 2.50 |")
    assert 1 < float(uneven[2].split("|")[2]) <= 2.5


def test_the_page_of_records_says_what_they_say(tiny_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "experiments" / "studies")
    import bench_tables

    words = ["bench", "step", "--model", str(tiny_folder), *"--length 12 --slots 2 --repeats 2 --no-torch".split()]
    assert main([*words, "--out", str(tmp_path / "step.json")]) == 0
    (tmp_path / "step.png").touch()
    page = bench_tables.write_page(tmp_path).read_text().splitlines()
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["command"] in page
    (line,) = [line for line in page if line.startswith("| onestep_jax, 2 at a time")]
    row = found["rows"][1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    middle, least, most = (format(row[f"ms a text-step {which}"], ".3g") for which in ("median", "least", "most"))
    assert cells[:3] == ["onestep_jax, 2 at a time", "2", f"{middle} ({least} to {most})"]
    assert "![step](step.png)" in page
    ((name, ratio),) = found["ratios"].items()
    assert f"* {name}: {ratio:.3g}" in page
