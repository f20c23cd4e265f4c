"""`train_encoder`: it learns, and a training that was stopped, killed or damaged ends with the same weights."""

import copy
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import warnings

import filelock
import jax
import numpy as np
import optax
import pytest
import tokenizers
from encoders import DESIGN, SMALL, word_texts

from onestep_jax import Design, Interrupted, UserError, encode, load_encoder, train_encoder
from onestep_jax.devices.machine import processor
from onestep_jax.encoder import train, windows
from onestep_jax.encoder.encoding import evaluate
from onestep_jax.encoder.folder import make_encoder
from onestep_jax.encoder.training import VALIDATION_TEXTS
from onestep_jax.store import storage

TEXTS = word_texts(6)
READER = dataclasses.replace(DESIGN, corrections=0)  # whose updates compile in a third of the time


def trained(model, folder, texts=TEXTS, **how):
    how = {"design": DESIGN, "recipe": SMALL, "prefix": "none", "data": "words"} | how
    return train_encoder(model, texts, folder, **how)


def same(one, other):
    assert one.fingerprint == other.fingerprint
    for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(other.weights), strict=True):
        np.testing.assert_array_equal(a, b)


class Killed(Exception):
    """In place of a kill: nothing is saved after it."""


def killed(model, folder, at=20, **how):
    def progress(report):
        if report.update == at:
            raise Killed

    with pytest.raises(Killed):
        trained(model, folder, save_every=0.0, progress=progress, **how)


def states(folder):
    return sorted(path.stem for path in (folder / "training").glob("*.json") if path.stem.isdigit())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder that holds one that was trained straight through, one that was killed, and reports."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def straight(worded, home, reports):
    return trained(worded, home / "straight", progress=reports.append)


@pytest.fixture(scope="module")
def half(worded, home, straight):
    """Killed after 20 updates of 24, of which 19 are saved; tests copy it."""
    killed(worded, home / "half")
    assert states(home / "half") == ["0000019"]
    return home / "half"


@pytest.fixture
def copied(half, tmp_path):
    return shutil.copytree(half, tmp_path / "half")


# --- what it makes ---


def test_it_learns_and_tells(worded, straight, home, reports):
    assert [(report.update, report.updates, report.corrections) for report in reports] == [
        (10, 24, 0),
        (20, 24, 2),
        (24, 24, 2),
    ]
    assert all(report.length == 4 and report.tokens_per_second > 0 for report in reports)
    assert [report.validation is None for report in reports] == [True, True, False]
    begun = trained(worded, home / "begun", recipe=dataclasses.replace(SMALL, updates=1, lr=1e-9))
    before, after = (encoder.trained["figures"]["nats"] for encoder in (begun, straight))
    assert before[2] - after[2] > 0.3
    assert after[2] < after[0]  # the corrections have learned too
    assert reports[-1].nats < reports[0].nats
    length, figures = reports[-1].validation
    assert length == 4
    np.testing.assert_allclose(figures.nats_K, after, atol=1e-6)


def test_folder_and_card(worded, straight, home):
    same(load_encoder(home / "straight", worded), straight)
    told = straight.trained
    assert (told["updates"], told["data"], told["texts"], told["held out"], told["tokens"]) == (24, "words", 5, 1, 200)
    assert told["recipe"] == SMALL.describe()
    assert told["device"] == f"1 × {processor()}"
    card = (home / "straight" / "README.md").read_text()
    assert "24 updates on windows of 5 texts of 'words' (200 tokens)" in card
    assert "1 texts were held out whole" in card
    figures = told["figures"]
    assert len(figures["nats"]) == 3
    for k in range(3):
        row = f"| {k} | {figures['nats'][k]:.3f} | {figures['accuracy'][k]:.1%} | {figures['exact'][k]:.1%} |"
        assert row in card
    rows = [json.loads(line) for line in (home / "straight/training/log.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [10, 20, 24]
    assert rows[-1]["validation"] == figures


def test_it_is_measured_and_used_at_the_temperature_of_its_training(worded, tmp_path):
    """The corrections take the gradients that they were trained on; nats are told at 1."""
    design = dataclasses.replace(DESIGN, temperature=0.2)
    made = trained(worded, tmp_path, design=design, recipe=dataclasses.replace(SMALL, updates=4))
    loaded = load_encoder(tmp_path, worded)
    assert loaded.design == made.design == design
    held = windows.make_pool(worded, windows.divide(TEXTS)[1])
    tokens_BT = held.windows(np.random.default_rng(0), VALIDATION_TEXTS, 4)
    for name, figures in made.trained["figures"].items():
        found = [row[name] for row in evaluate(worded, loaded, tokens_BT)]
        np.testing.assert_allclose(found, figures, rtol=1e-4)
    for text, tokens_T in zip(encode(worded, loaded, tokens_BT[:3].tolist()), tokens_BT, strict=False):
        rows = evaluate(worded, loaded, [tokens_T])
        np.testing.assert_allclose(text.trials[0].trace[:, 1], [row["nats"] for row in rows], rtol=1e-4)
    other = make_encoder(worded, DESIGN, made.weights, {})
    assert abs(evaluate(worded, other, tokens_BT)[2]["nats"] - made.trained["figures"]["nats"][2]) > 1e-3


def test_what_is_returned_and_measured_is_what_is_kept(worded, straight, home, tmp_path):
    """In bfloat16 too, into which the weights are rounded; the saved states stay float32."""
    folder = shutil.copytree(home / "straight", tmp_path / "half")
    made = trained(worded, folder, dtype="bfloat16")
    same(load_encoder(folder, worded), made)
    assert made.fingerprint != straight.fingerprint
    held = windows.make_pool(worded, windows.divide(TEXTS)[1])
    rows = evaluate(worded, made, held.windows(np.random.default_rng(0), VALIDATION_TEXTS, 4))
    np.testing.assert_allclose([row["nats"] for row in rows], made.trained["figures"]["nats"], atol=2e-6)
    assert made.trained["figures"]["nats"] != straight.trained["figures"]["nats"]
    same(trained(worded, folder), straight)


# --- resume ---


def test_killed_and_gone_on_with(worded, straight, copied):
    reports = []
    with (copied / "training/log.jsonl").open("a") as file:
        file.write('{"update": 3')  # as a kill leaves it
    same(trained(worded, copied, progress=reports.append), straight)
    assert [report.update for report in reports] == [20, 24]
    rows = [json.loads(line)["update"] for line in (copied / "training/log.jsonl").read_text().splitlines()]
    assert rows == [10, 20, 24]


def test_a_finished_training_is_left_alone(worded, straight, home):
    reports = []
    same(trained(worded, home / "straight", progress=reports.append), straight)
    assert reports == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_stopped_by_a_signal_and_gone_on_with(worded, straight, tmp_path, number):
    def progress(report):
        if report.update == 10:
            os.kill(os.getpid(), number)

    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)  # a shell starts what it puts in the background with SIGINT ignored
    told = f"stopped after 10 of 24 updates; everything is saved in {tmp_path}, the same command goes on from there"
    with pytest.raises(Interrupted, match=re.escape(told)):
        trained(worded, tmp_path, progress=progress)
    assert signal.getsignal(number) is before
    assert states(tmp_path) == ["0000010"]
    assert not (tmp_path / "config.json").exists()
    same(trained(worded, tmp_path), straight)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def with_record(**changes):
    def change(state):
        path = state.with_suffix(".json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGE = {
    "arrays flipped": lambda state: flip(largest(state)),
    "record cut": lambda state: cut(state.with_suffix(".json")),
    "record of another update": with_record(update=18),
    "arrays cut": lambda state: cut(largest(state)),
    "arrays gone": shutil.rmtree,
    "record of a list": lambda state: state.with_suffix(".json").write_text("[1]"),
    "other sum": with_record(checksum=float("inf")),
    "no time": with_record(seconds=None),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=pytest.mark.long if i > 2 else ()) for i, name in enumerate(DAMAGE)]
)
def test_a_damaged_state_is_left_aside(worded, straight, copied, damage):
    """There is no older one, so the training begins again, and ends with the same weights."""
    DAMAGE[damage](copied / "training" / "0000019")
    with pytest.warns(UserWarning, match="0000019: damaged saved state of a training, left aside") as told:
        same(trained(worded, copied), straight)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert states(copied) == ["0000024"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(trained(worded, copied), straight)


def test_an_older_state_is_gone_on_with(worded, straight, copied, tmp_path):
    """One that a kill kept from being deleted."""
    killed(worded, tmp_path / "older", at=10)
    for suffix in ("", ".json"):
        (tmp_path / "older/training" / f"0000009{suffix}").rename(copied / "training" / f"0000009{suffix}")
    flip(largest(copied / "training/0000019"))
    reports = []
    with pytest.warns(UserWarning, match="0000019: damaged"):
        same(trained(worded, copied, progress=reports.append), straight)
    assert [report.update for report in reports] == [10, 20, 24]
    assert states(copied) == ["0000024"]


def test_the_last_state_is_saved_again_where_it_is_damaged(worded, straight, home, tmp_path):
    folder = shutil.copytree(home / "straight", tmp_path / "done")
    flip(largest(folder / "training/0000024"))
    with pytest.warns(UserWarning, match="0000024: damaged"):
        same(trained(worded, folder), straight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(trained(worded, folder), straight)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"")], ids=["cut", "flipped", "empty"])
def test_damaged_tokens_are_made_again(worded, straight, copied, damage):
    for path in (copied / "training").glob("tokens-*.npz"):
        damage(path)
    same(trained(worded, copied), straight)


def test_kept_tokens_are_of_the_tokenizer_and_of_the_vocabulary(worded, tmp_path, monkeypatch):
    """A command that failed binds no model, and leaves token ids in the folder."""

    class Begun(Exception):
        pass

    def begun(_model, _design, _recipe, *pools, **_):
        raise Begun(*pools)

    def pools(model):
        with pytest.raises(Begun) as caught:
            trained(model, tmp_path)
        return [pool.tokens_M.tolist() for pool in caught.value.args]

    monkeypatch.setattr(train, "Trainer", begun)
    first = pools(worded)
    described = json.loads(worded.tokenizer.backend_tokenizer.to_str())
    described["model"]["vocab"] = {word: 60 - i for word, i in described["model"]["vocab"].items()}
    turned = copy.deepcopy(worded.tokenizer)
    turned._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    other = pools(dataclasses.replace(worded, tokenizer=turned))
    assert other == [[60 - i for i in tokens] for tokens in first]
    kept = sorted((tmp_path / "training").glob("tokens-*"))
    assert (len(kept), pools(worded)) == (4, first)
    assert sorted((tmp_path / "training").glob("tokens-*")) == kept
    small = dataclasses.replace(worded, config=dataclasses.replace(worded.config, vocab_size=6))
    with pytest.raises(UserError, match="has no row in the model's table of 6"):
        trained(small, tmp_path)


# --- what is refused ---


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"recipe": dataclasses.replace(SMALL, lr=0.5)}, "lr: 0.01 there, 0.5 here"),
        ({"recipe": dataclasses.replace(SMALL, updates=25)}, "updates: 24 there, 25 here"),
        ({"design": dataclasses.replace(DESIGN, corrections=1)}, "corrections: 2 there, 1 here"),
        ({"design": dataclasses.replace(DESIGN, temperature=0.5)}, "temperature: 1.0 there, 0.5 here"),
        ({"prefix": [5]}, "prefix: [] there, [5] here"),
        ({"texts": word_texts(6, seed=1)}, "texts: '"),
        ({"validation": ["w1 w2 w3 w4 w5"]}, "validation: '"),
        ({"hours": 1.0}, "hours: None there, 1.0 here"),
        ({"optimizer": optax.sgd(0.1), "optimizer_name": "sgd 0.1"}, "optimizer: None there, 'sgd 0.1' here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused(worded, half, how, said):
    with pytest.raises(UserError, match="holds another training; ") as caught:
        trained(worded, half, **how)
    assert said in str(caught.value)
    assert "give --out another folder" in str(caught.value).lower()
    assert states(half) == ["0000019"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_one_process_at_a_time_trains_in_a_folder(worded, copied):
    """Nothing is changed by the one that is refused; a lock that nobody holds is no hindrance."""
    before = contents(copied)
    lock = filelock.FileLock(copied / "training" / ".lock")
    with lock, pytest.raises(UserError, match="another process is training in it; wait until it ends, or give --out"):
        trained(worded, copied)
    assert contents(copied) == before
    (copied / "training" / ".lock").touch()
    trained(worded, copied)


def test_another_model_is_refused(worded, half):
    other = dataclasses.replace(worded, fingerprint="0" * 16)
    with pytest.raises(UserError, match="model: 'fedcba9876543210' there, '0000000000000000' here"):
        trained(other, half)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"texts": []}, "no texts: expected at least one"),
        ({"texts": "w1 w2"}, "texts = 'w1 w2', of type str: expected strings"),
        ({"texts": ["w1 w2 w3", "w4"]}, "no text has 4 tokens: give longer texts, or a smaller --length"),
        ({"design": Design(length=63)}, "length 63 needs 65 positions, beyond the model's context of 64"),
        ({"design": "copy"}, "design = 'copy', of type str: expected a Design"),
        ({"recipe": dataclasses.replace(SMALL, accumulate=3)}, "batch = 8: expected a multiple of 3, for 1 devices"),
        ({"prefix": [61]}, "prefix: token id 61 is not in the model's vocabulary"),
        ({"design": dataclasses.replace(DESIGN, prefix=(61,)), "prefix": None}, "token id 61 is not in the model's"),
        ({"optimizer": optax.sgd(0.1)}, "an optimizer given as an object needs optimizer_name"),
        ({"save_every": -1}, "save_every = -1"),
        ({"validate_every": 0}, "validate_every = 0"),
        ({"hours": float("nan")}, "hours = nan: expected a finite number, above 0"),
        ({"dtype": "float16"}, "unknown dtype of an encoder 'float16'"),
        ({"validation": ["w1"]}, "no text has 4 tokens"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_on(worded, straight, tmp_path, how, said):
    """In one line, and so that the same folder takes the command with the cure."""
    with pytest.raises(UserError) as caught:
        trained(worded, tmp_path, **how)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "training" / "recipe.json").exists()


def test_a_training_that_diverges_says_so(worded, tmp_path):
    recipe = dataclasses.replace(SMALL, lr=1e38, updates=20)
    with pytest.raises(UserError, match=r"the loss was nan at update 10: the training diverged; .* smaller --lr"):
        trained(worded, tmp_path, recipe=recipe, design=READER)
    assert not (tmp_path / "config.json").exists()


def test_a_place_that_cannot_be_written(worded, straight, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*move away what is in the way"):
        trained(worded, tmp_path / "file")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write \(the disk is full\).*run the same command again") as caught:
        trained(worded, tmp_path / "full")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    same(trained(worded, tmp_path / "full"), straight)


def test_a_recipe_that_was_taken_away_or_damaged(worded, copied):
    path = copied / "training/recipe.json"
    whole = path.read_text()
    for content in ("", "[]", whole[:-9], "[" * 100_000):
        path.write_text(content)
        with pytest.raises(UserError, match=r"recipe.json: damaged; put it back"):
            trained(worded, copied)
    path.unlink()
    with pytest.raises(UserError, match=r"recipe.json: missing, beside saved states; put it back"):
        trained(worded, copied)


# --- settings ---


@pytest.mark.long
def test_updates_by_the_clock_are_settled_once(worded, straight, tmp_path, monkeypatch):
    """Here to 24, so that it is the same training; a resume does not time them again."""
    timed = []
    usual = train._updates_for
    monkeypatch.setattr(train, "_updates_for", lambda *given: timed.append(usual(*given)) or 24)
    killed(worded, tmp_path, hours=0.01)
    assert len(timed) == 1
    assert timed[0] > 24
    same(trained(worded, tmp_path, hours=0.01), straight)
    assert len(timed) == 1
    (tmp_path / "training/updates.json").unlink()
    with pytest.raises(UserError, match=r"updates.json: missing or damaged, beside saved states; put it back"):
        trained(worded, tmp_path, hours=0.01)


def test_more_hours_than_a_device_can_count(worded, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def enough(trainer, *_):
        raise Enough(trainer.recipe.updates)

    monkeypatch.setattr(train, "_run", enough)
    with pytest.raises(Enough, match="1000000000"):
        trained(worded, tmp_path, hours=1e12)


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [((3,), None, (3,)), ((3,), "none", ()), ((3,), [4, 5], (4, 5)), ((), [4], (4,)), ((), None, ())],
)
def test_the_prefix_is_what_is_given_or_else_that_of_the_design(worded, own, given, expected):
    assert train._with_prefix(worded, dataclasses.replace(DESIGN, prefix=own), given).prefix == expected


def test_an_optimizer_of_ones_own(worded, tmp_path):
    """One that changes nothing leaves the first weights."""
    how = {"optimizer": optax.sgd(0.0), "optimizer_name": "still", "design": READER}
    updates = (dataclasses.replace(SMALL, updates=updates) for updates in (2, 1))
    same(*(trained(worded, tmp_path / str(i), recipe=recipe, **how) for i, recipe in enumerate(updates)))
