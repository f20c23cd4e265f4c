"""The fit engine: what must not depend on slots, devices or neighbours, and what the kept vectors are worth."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family_cases import GOLDEN_FOLDER

from onestep_jax import OneStep, Optimizer, Schedule, UserError, decode, fit, load_model
from onestep_jax.devices.placement import Pmap
from onestep_jax.fitting import engine, group_results, programs, slots, sweep
from onestep_jax.fitting.optimizers import PRESETS, optimizer_names
from onestep_jax.model.decoder import input_scale
from onestep_jax.model.likelihood import text_nats
from onestep_jax.prototokens.objective import Score, group_loss, score_group
from onestep_jax.tokens import id_words

pytestmark = pytest.mark.eight_devices

SHORT = 40  # steps in which some of the texts are solved from a seed and some are not
TEMPERATURE = PRESETS["fast"].temperature


@pytest.fixture(scope="module")
def solved(tiny, token_lists, one_device):
    return fit(tiny, token_lists, slots=4, placement=one_device, steps=2000, scheme=OneStep())


def test_stored_vectors_are_the_scored_ones(tiny, solved):
    for text, again in zip(solved, decode(tiny, solved), strict=True):
        leaves = {name: jnp.asarray(vector)[None] for name, vector in text.vectors.items()}
        lengths = jnp.array([len(text.tokens)])
        score = score_group(tiny, OneStep(), tiny.params, leaves, jnp.asarray(text.tokens)[None], lengths, TEMPERATURE)
        assert again.accuracy == text.accuracy == text.c_tokens / len(text.tokens)
        assert group_loss(score.nats_G, lengths) == pytest.approx(text.loss, rel=1e-5)
    assert solved.status == ["solved"] * 12


def test_steps_and_traces_agree(solved):
    for text in solved:
        (trial,) = text.trials
        assert trial.trace[-1, 0] == trial.steps == text.steps
        assert np.all(np.diff(trial.trace[:, 0]) > 0)
        assert trial.best_step == trial.steps - 1
        assert trial.first_hit.min() >= 0
        assert trial.first_hit.max() <= trial.best_step


def test_budget_ends_a_text(tiny, token_lists, one_device):
    run = fit(tiny, token_lists, slots=4, steps=25, placement=one_device)
    spent = [text for text in run if text.status == "exhausted"]
    assert len(spent) > 6
    for text, again in zip(run, decode(tiny, run), strict=True):
        assert text.steps <= 25
        assert again.accuracy == text.accuracy
    assert all(text.steps == 25 and text.best_step < 25 and text.accuracy < 1 for text in spent)


def test_start_vectors_do_not_depend_on_slots(tiny, token_lists, one_device):
    runs = [fit(tiny, token_lists, slots=count, steps=1, placement=one_device) for count in (1, 4, 16)]
    for run in runs[1:]:
        for name in ("e", "m"):
            np.testing.assert_array_equal(run.vectors[name], runs[0].vectors[name])


@pytest.mark.long
@pytest.mark.parametrize(("preset", "steps"), [("paper", 50), ("fast", 6)])
def test_first_losses_do_not_depend_on_slots_or_devices(tiny, token_lists, one_device, preset, steps):
    """Differences of gradients carry their rounding into every further step of a quasi-Newton method."""

    def losses(count, placement):
        run = fit(tiny, token_lists, slots=count, preset=preset, steps=steps, chunk=1, placement=placement)
        return [np.r_[text.trials[0].trace[:, 1], np.full(steps - text.steps, np.nan)] for text in run]

    reference = losses(1, one_device)
    assert max(np.isfinite(row).sum() for row in reference) == steps
    for other in (losses(4, one_device), losses(16, one_device), losses(16, Pmap())):
        np.testing.assert_allclose(other, reference, rtol=1e-4)


def test_same_texts_solved_on_eight_devices(tiny, token_lists, solved):
    eight = fit(tiny, token_lists, slots=16, steps=2000)
    assert [text.status for text in eight] == [text.status for text in solved]
    assert [text.index for text in eight] == list(range(12))


def test_a_text_does_not_see_its_neighbours(tiny, token_lists, one_device, solved):
    alone = fit(tiny, [token_lists[5], token_lists[2]], slots=1, placement=one_device, steps=2000)
    for text, index in zip(alone, (5, 2), strict=True):
        assert text.text_id == solved[index].text_id
        assert text.status == solved[index].status


def test_more_texts_compile_nothing_more(tiny, token_lists, one_device):
    jax.config.update("jax_enable_compilation_cache", False)
    preset = dataclasses.replace(PRESETS["fast"], temperature=0.3)  # of which no other test has compiled the programs
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )

    def compilations(texts):
        before = len(compiled)
        fit(tiny, texts, slots=2, steps=31, placement=one_device, preset=preset)
        return len(compiled) - before

    text_nats(tiny, token_lists)  # its program is of all texts at once
    few, many = compilations(token_lists[:4]), compilations(token_lists)
    jax.config.update("jax_enable_compilation_cache", True)
    assert few > 0
    assert many == 0


def test_nats_are_counted_when_texts_come_up(tiny, token_lists, one_device, monkeypatch):
    counted, at_reports = [], []

    def counting(model, tokens, **given):
        counted.append(len(tokens))
        return text_nats(model, tokens, **given)

    monkeypatch.setattr(group_results, "text_nats", counting)
    monkeypatch.setattr(sweep, "AHEAD", 2)
    report = lambda _: at_reports.append(sum(counted))  # noqa: E731
    found = fit(tiny, token_lists, slots=2, steps=5, placement=one_device, progress=report)
    assert (at_reports[0] < 12, sum(counted)) == (True, 12)
    np.testing.assert_allclose(
        [text.h_lm for text in found], [text.total for text in text_nats(tiny, token_lists)], rtol=1e-5
    )


def test_seeds_are_tried_until_solved_and_the_best_is_kept(tiny, token_lists, one_device):
    run = fit(tiny, token_lists, slots=4, steps=SHORT, seeds=3, placement=one_device)
    counts = [len(text.trials) for text in run]
    assert {1, 3} <= set(counts)
    for text in run:
        assert [trial.seed for trial in text.trials] == list(range(len(text.trials)))
        assert all(trial.status != "solved" for trial in text.trials[:-1])
        assert text.accuracy == max(trial.accuracy for trial in text.trials)
        assert text.steps == sum(trial.steps for trial in text.trials)
    second = fit(tiny, [token_lists[counts.index(3)]], slots=1, steps=SHORT, seed=1, placement=one_device)
    assert second[0].accuracy == run[counts.index(3)].trials[1].accuracy


def test_a_failed_text_leaves_the_others_alone(tiny, token_lists, one_device, solved):
    rng = np.random.default_rng(1)
    start = {name: rng.normal(size=(12, 32)).astype(np.float32) for name in ("e", "m")}
    start["e"][3] = np.nan
    run = fit(tiny, token_lists, slots=4, steps=1500, placement=one_device, scheme=OneStep(start=start))
    assert run[3].status == "failed"
    assert run[3].steps == 1
    assert all(text.status in ("solved", "exhausted") for text in run if text.index != 3)
    assert run.solved >= 8


def test_given_start_vectors_are_where_it_starts(tiny, token_lists, solved, tmp_path):
    scheme = OneStep(start=solved.vectors)
    run = fit(tiny, token_lists, scheme=scheme, run=tmp_path / "run")
    assert run.steps.tolist() == [1] * 12
    assert [text.accuracy for text in decode(tiny, run)] == [1.0] * 12
    with pytest.raises(UserError, match=r"start vectors: '[0-9a-f]{16}' there, None here"):
        fit(tiny, token_lists, scheme=OneStep(), run=tmp_path / "run")


def test_an_optimizer_object_needs_a_name_to_be_recorded(tiny, token_lists, tmp_path):
    with pytest.raises(UserError, match="needs optimizer_name"):
        fit(tiny, token_lists, optimizer=optax.adam(0.01), run=tmp_path / "run")
    fit(tiny, token_lists[:1], optimizer=optax.adam(0.01), optimizer_name="mine", run=tmp_path / "run", steps=1)
    with pytest.raises(UserError, match=r"optimizer: .*'mine'.* there, .*'other'"):
        fit(tiny, token_lists[:1], optimizer=optax.adam(0.01), optimizer_name="other", run=tmp_path / "run", steps=1)


def test_shared_leaf_is_one_vector_a_group(tiny, token_lists, one_device):
    texts = [tokens[:3] for tokens in token_lists[:5]]
    run = fit(tiny, texts, slots=2, steps=3000, placement=one_device, scheme=OneStep(share="m", group=2))
    m = run.vectors["m"]
    for first in (0, 2):
        np.testing.assert_array_equal(m[first], m[first + 1])
    assert not np.array_equal(m[1], m[2])
    assert [again.accuracy for again in decode(tiny, run)] == [text.accuracy for text in run]
    assert run.solved == 5


def test_lengths_share_a_run(tiny, token_lists, one_device):
    texts = [tokens[:length] for tokens, length in zip(token_lists, (8, 3, 5, 1, 8, 2), strict=False)]
    run = fit(tiny, texts, slots=4, placement=one_device, steps=2000)
    assert [len(text.tokens) for text in run] == [8, 3, 5, 1, 8, 2]
    assert all(text.accuracy == 1 for text in run if len(text.tokens) < 8)


def test_refuted_solution_goes_on(tiny, token_lists):
    problem = slots.FitProblem(tiny, OneStep(), optax.adam(0.01), 1.0)
    tokens, lengths = jnp.asarray(token_lists[0])[None], jnp.array([8])
    slot = slots.fresh(problem, jnp.int32(100), tokens, lengths, jnp.asarray(id_words("0123456789abcdef", 0))[None])
    slot = slot._replace(status=jnp.int32(slots.SOLVED), best_accuracy=jnp.float32(1), steps=jnp.int32(7))
    three = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), slot)._replace(steps=jnp.array([7, 100, 7]))
    harvest = jax.jit(functools.partial(programs.harvest, problem))
    after, found = harvest(slots.Frozen(tiny.params), three, jnp.array([1, 0, 3]))
    assert (found.accuracy_G[:2] < 1).all()
    assert found.slot.steps[:2].tolist() == [100, 7]
    assert found.slot.status[:2].tolist() == [slots.EXHAUSTED, slots.RUNNING]
    assert after.status.tolist() == [slots.RUNNING, slots.EXHAUSTED, slots.SOLVED]  # the last one was not asked for
    assert after.best_accuracy.tolist() == [*found.accuracy_G[1], *found.accuracy_G[0], 1]
    same = (three.leaves, three.best, three.opt_state, three.steps)
    jax.tree.map(np.testing.assert_array_equal, (after.leaves, after.best, after.opt_state, after.steps), same)


class Logging(Pmap):
    """Notes which programs are dispatched and what is read, in order."""

    def __init__(self, devices):
        super().__init__(devices)
        self.log = []

    def map(self, function, *static, donate=None):
        program = super().map(function, *static, donate=donate)

        def call(*given):
            self.log.append(function.__name__)
            return program(*given)

        return call

    def fetch(self, tree):
        self.log.append(f"read {type(tree).__name__}")
        return super().fetch(tree)


def test_nothing_is_read_before_the_next_chunk_is_dispatched(tiny, token_lists):
    """The timeline of the engine: chunk k + 1 is dispatched before chunk k is read, and so after each exchange."""
    placement = Logging(jax.local_devices()[:1])
    fit(tiny, token_lists, steps=SHORT, slots=3, placement=placement)
    log = placement.log
    read = [place for place, event in enumerate(log) if event == "read Info"]
    assert [log[:place].count("chunk") for place in read] == list(range(2, len(read) + 2))
    exchanged = [place for place, event in enumerate(log) if event == "read Harvest"]
    assert len(exchanged) > 4
    for place in exchanged:
        dispatched = max(i for i, event in enumerate(log[:place]) if event == "harvest")
        assert log[dispatched:place].count("chunk") == 1


@pytest.mark.long
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_it_does_not_matter_how_many_are_harvested_together(tiny, token_lists, one_device, monkeypatch, at_once):
    def fitted():
        return fit(tiny, token_lists, steps=60, slots=7, placement=one_device)

    expected = fitted()
    monkeypatch.setattr(engine, "HARVESTS", at_once)
    found = fitted()
    assert found.status == expected.status
    assert found.steps.tolist() == expected.steps.tolist()
    for leaf in ("e", "m"):
        np.testing.assert_array_equal(found.vectors[leaf], expected.vectors[leaf])


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(optimizer_names()))
def test_every_optimizer_by_name_treats_slots_apart(tiny, monkeypatch, name):
    parameters = inspect.signature(optimizer_names()[name]).parameters
    required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    arguments = {"learning_rate": 0.01} if "learning_rate" in required else {}
    arguments |= {"key": 0} if name == "noisy_sgd" else {}

    def bowl(model, scheme, params, leaves, tokens_GT, lengths_G, *loss_and_past):
        nats_G = jnp.sum(jnp.square(leaves["e"] - 1), axis=-1) + jnp.sum(jnp.cos(leaves["m"]), axis=-1)
        return Score(nats_G, jnp.zeros(tokens_GT.shape, bool), tokens_GT)

    monkeypatch.setattr(programs, "score_group", bowl)
    problem = slots.FitProblem(tiny, OneStep(), Optimizer(name, arguments).build(), 1.0)
    ids = jnp.stack([id_words("0123456789abcdef", 0), id_words("fedcba9876543210", 0)])[:, None]
    tokens, lengths = jnp.zeros((2, 1, 4), jnp.int32), jnp.full((2, 1), 4)
    begin = jax.vmap(functools.partial(slots.fresh, problem, jnp.int32(100)))
    move = jax.jit(jax.vmap(functools.partial(programs.step, problem, slots.Frozen(tiny.params))))

    def three_steps(chosen):
        state = begin(tokens[chosen], lengths[chosen], ids[chosen])
        for _ in range(3):
            state, info = move(state)
        return state.leaves, info.loss

    together, loss = three_steps(np.array([0, 1]))
    alone, _ = three_steps(np.array([1]))
    started = begin(tokens, lengths, ids).leaves
    assert np.isfinite(loss).all()
    for leaf in ("e", "m"):
        np.testing.assert_allclose(together[leaf][1], alone[leaf][0], rtol=1e-4, atol=1e-6)
        assert not np.array_equal(together[leaf], started[leaf])


def test_any_gradient_transformation_from_python(tiny, token_lists, one_device):
    mine = optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(0.02))
    run = fit(tiny, token_lists[:4], optimizer=mine, slots=2, placement=one_device, steps=2000)
    assert run.solved >= 3


def test_bfloat16_solutions_are_confirmed(tiny, token_lists, one_device):
    half = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    run = fit(half, token_lists[:4], slots=2, placement=one_device, steps=2000)
    assert run.vectors["e"].dtype == np.float32
    assert run.status == ["solved"] * 4
    for text in decode(half, run):
        assert len(text.wrong) <= 1


def test_schedules_are_in_units_of_the_learning_rate():
    schedule = Schedule("warmup_cosine_decay", {"warmup_steps": 10, "decay_steps": 40, "end_value": 0.1}).build(0.5)
    assert [float(schedule(step)) for step in (0, 10, 40, 99)] == pytest.approx([0, 0.5, 0.05, 0.05])
    with pytest.raises(UserError, match="needs decay_steps"):
        Schedule("cosine_decay").build(0.1)
    with pytest.raises(UserError, match=r"unknown schedule 'cosin_decay'.*did you mean 'cosine_decay'"):
        Schedule("cosin_decay").build(0.1)


def test_bad_optimizers_are_refused():
    with pytest.raises(UserError, match=r"unknown optimizer 'adamv'.*did you mean 'adam"):
        Optimizer("adamv").build()
    with pytest.raises(UserError, match=r"unknown option of optimizer adam 'beta1'.*did you mean 'b"):
        Optimizer("adam", {"learning_rate": 0.1, "beta1": 0.9}).build()
    with pytest.raises(UserError, match="needs learning_rate"):
        Optimizer("adam").build()


def test_presets_follow_the_paper():
    paper = PRESETS["paper"]
    assert paper.describe() == {"start": "normal", "scale": 1.0, "temperature": 1.0, "patience": None}
    assert (paper.start, paper.steps, paper.optimizer.name, paper.optimizer.schedule) == ("normal", 5000, "adamw", None)
    assert paper.optimizer.arguments == {"learning_rate": 0.01, "b1": 0.9, "b2": 0.9, "weight_decay": 0.01}
    cramming = PRESETS["cramming"]
    assert cramming.optimizer == paper.optimizer
    assert (cramming.start, cramming.scale, cramming.steps, cramming.patience) == ("embedding", 1.0, 5000, 2000)


def test_input_scale(tiny):
    table = np.asarray(tiny.params["embed"]["embedding"])
    assert input_scale(tiny) == pytest.approx(table.std(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "no texts"),
        ({"texts": ["a"]}, "no tokenizer"),
        ({"texts": [[1], []]}, "text 1: empty text"),
        ({"texts": [[1, 61]]}, "token id 61 is not in the model's vocabulary of 61"),
        ({"texts": [[1] * 65]}, "65 tokens, the model's context has room for 63"),
        ({"texts": [[1]], "length": 65}, "length 65 is beyond the model's context of 64"),
        ({"texts": [[1]], "length": 0}, "length = 0"),
        ({"texts": [[1]], "preset": "fats"}, "unknown preset 'fats'.*did you mean 'fast'"),
        ({"texts": [[1]], "slots": 0}, "slots = 0"),
        ({"texts": [[1]], "slots": "many"}, "slots = 'many'"),
        ({"texts": [[1]], "steps": 0}, "steps = 0"),
        ({"texts": [[1]], "seed": -1}, "seed = -1"),
    ],
)
def test_bad_input_is_refused(tiny, arguments, message):
    texts = arguments.pop("texts")
    with pytest.raises(UserError, match=message):
        fit(tiny, texts, **arguments)


@pytest.mark.long
@pytest.mark.parametrize("family", ["opt_350m", "gemma3_text", "gpt_neox", "gpt2"])
def test_other_families_are_fitted_alike(family, one_device):
    model = load_model(GOLDEN_FOLDER / family, dtype="float32", tokenizer=False)
    texts = np.random.default_rng(2).integers(97, size=(3, 6)).tolist()
    results = fit(model, texts, steps=120, placement=one_device)
    assert results.vectors["e"].shape == (3, model.embed_width)
    for result, decoded in zip(results, decode(model, results), strict=True):
        assert decoded.accuracy == result.accuracy
        assert result.loss < result.trials[0].trace[0, 1]
        assert result.h_lm > 0
