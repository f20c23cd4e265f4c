"""Optimisers and schedules as values: any `optax.GradientTransformation`, from Python or by name with arguments."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from onestep_jax.errors import RATE, STEPS, Real, UserError, Whole, check_known, one_line
from onestep_jax.fitting.lbfgs import cautious_lbfgs
from onestep_jax.store.reading import find_config
from onestep_jax.store.storage import run_path

AUTO = "auto"

_OPTAX = """adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lbfgs lion
nadam nadamw noisy_sgd novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam rmsprop rprop sgd
sign_sgd sm3 yogi""".split()
_CONTRIB = """acprop ademamix adopt cocob dadapt_adamw dog dowg momo momo_adam muon prodigy schedule_free_adamw
schedule_free_sgd simplified_ademamix""".split()
_SCHEDULES = """constant_schedule cosine_decay_schedule cosine_onecycle_schedule exponential_decay linear_schedule
polynomial_schedule warmup_constant_schedule warmup_cosine_decay_schedule warmup_exponential_decay_schedule""".split()

# Two transformations built alike are not equal, as they hold functions of their own, and compiled programs are kept by
# them. So each description is built once: equal optimisers are the same object and share programs.
_BUILT: dict[str, optax.GradientTransformation] = {}

# Names of the argument of a schedule that is its highest value; the first that a schedule has is used.
_PEAK = ("value", "peak_value", "init_value")

_DECAY, _WHOLE = Real(0, 1, below=True), Whole(0, 10**9)
# What arguments of optimisers and schedules take. Of others the type of the default decides.
_BOUNDS: dict[str, Whole | Real] = {
    **dict.fromkeys("learning_rate adam_learning_rate max_learning_rate max_rms decay_rate".split(), RATE),
    **dict.fromkeys("b1 b2 b3 adam_b1 adam_b2 beta3 decay momentum rho diagonal curvature".split(), _DECAY),
    **dict.fromkeys("eps eps_root adam_eps_root weight_decay adam_weight_decay weight_decay_rate".split(), Real(0)),
    **dict.fromkeys("decay_steps transition_steps".split(), STEPS),
    **dict.fromkeys("warmup_steps transition_begin".split(), _WHOLE),
    "memory_size": Whole(1, 10_000),
    "ns_steps": Whole(1, 1000),
}


def optimizer_names() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Name → factory, of the optimisers that the installed optax has and of our own."""
    found = {name: getattr(optax, name) for name in _OPTAX if hasattr(optax, name)}
    found |= {name: getattr(optax.contrib, name) for name in _CONTRIB if hasattr(optax.contrib, name)}
    return {**found, "cautious_lbfgs": cautious_lbfgs}


def schedule_names() -> dict[str, Callable[..., optax.Schedule]]:
    """Name (without "_schedule") → optax schedule."""
    return {name.removesuffix("_schedule"): getattr(optax, name) for name in _SCHEDULES if hasattr(optax, name)}


def _check_values(whose: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse values that are no numbers of the right kind; functions, such as a schedule in Python, are left to optax.

    Raises:
      UserError: naming the first.
    """
    for name, value in given.items():
        default = parameters[name].default
        if callable(value) or (value is None and default is None):
            continue
        if isinstance(default, bool):
            check_known(f"value of {name} of {whose}", [str(value)], ["True", "False"])
        elif name in _BOUNDS or type(default) in (int, float):
            bounds = _BOUNDS.get(name, Real() if isinstance(default, float) else _WHOLE)
            bounds.check(f"{name} of {whose}", value)
        elif isinstance(value, float):
            Real().check(f"{name} of {whose}", value)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over the updates of one text: an optax schedule by name, times the learning rate.

    Attributes:
      name: such as "warmup_cosine_decay", with or without "_schedule".
      arguments: of the optax schedule; values are in units of the learning rate, the (peak) value is 1 unless given.
    """

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, learning_rate: float) -> optax.Schedule:
        """The optax schedule.

        Raises:
          UserError: for an unknown schedule or argument, or one that is missing.
        """
        name = self.name.removesuffix("_schedule")
        check_known("schedule", [name], schedule_names())
        factory = schedule_names()[name]
        parameters = inspect.signature(factory).parameters
        check_known(f"argument of schedule {name}", self.arguments, parameters)
        _check_values(f"schedule {name}", self.arguments, parameters)
        arguments = dict(self.arguments)
        peak = next((key for key in _PEAK if key in parameters), None)
        if peak == "peak_value" and "init_value" in parameters:
            arguments.setdefault("init_value", 0.0)
        if peak is not None:
            arguments.setdefault(peak, 1.0)
        missing = [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]
        if missing:
            raise UserError(f"schedule {name} needs {', '.join(missing)}: --schedule {name}:{missing[0]}=…")
        try:
            shape = factory(**arguments)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UserError(f"schedule {name} refused its arguments: {one_line(error)}") from error
        return lambda count: learning_rate * shape(count)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimiser by name.

    Attributes:
      name: function of `optax` or `optax.contrib`, or "cautious_lbfgs".
      arguments: keyword arguments; `learning_rate` among them where the optimiser takes one.
      schedule: of the learning rate over the updates of one text; None for a constant rate.
    """

    name: str = "adamw"
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Schedule | None = None

    def build(self) -> optax.GradientTransformation:
        """The gradient transformation; equal optimisers of plain values give the same object.

        Raises:
          UserError: for an unknown optimiser, argument or schedule, or arguments that optax refuses.
        """
        try:
            key = json.dumps(self.describe(), sort_keys=True)
        except TypeError:
            return self._build()
        if key not in _BUILT:
            _BUILT[key] = self._build()
        return _BUILT[key]

    def _build(self) -> optax.GradientTransformation:
        check_known("optimizer", [self.name], optimizer_names())
        factory = optimizer_names()[self.name]
        parameters = inspect.signature(factory).parameters
        check_known(f"option of optimizer {self.name}", self.arguments, parameters)
        _check_values(f"optimizer {self.name}", self.arguments, parameters)
        arguments = dict(self.arguments)
        if self.schedule is not None:
            if arguments.get("learning_rate") is None:
                raise UserError(f"a schedule needs a learning rate; optimizer {self.name} was given none (--lr)")
            arguments["learning_rate"] = self.schedule.build(arguments["learning_rate"])
        missing = [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]
        if missing:
            raise UserError(f"optimizer {self.name} needs {', '.join(missing)}")
        try:
            made = factory(**arguments)
            jax.eval_shape(made.init, {"e": jax.ShapeDtypeStruct((1, 8), jnp.float32)})
        except Exception as error:  # optax looks at some of them only at the first use, each in its own way
            raise UserError(f"optimizer {self.name} refused its options: {one_line(error)}") from error
        return made

    def describe(self) -> dict[str, Any]:
        """Plain values that describe the optimiser completely, for a run's configuration."""
        described: dict[str, Any] = {"name": self.name, "arguments": dict(self.arguments)}
        if self.schedule is not None:
            described["schedule"] = {"name": self.schedule.name, "arguments": dict(self.schedule.arguments)}
        return described

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Optimizer:
        """The optimiser that `describe` described."""
        schedule = described.get("schedule")
        known = Schedule(schedule["name"], schedule.get("arguments", {})) if schedule else None
        return cls(described["name"], described.get("arguments", {}), known)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A protocol: how start vectors are drawn and how they are optimised.

    Attributes:
      start: unit of the start vectors' scale: "normal", 1, or "embedding", the standard deviation of the components of
        the model's input embeddings.
      optimizer: see `Optimizer`.
      scale: standard deviation of a start vector's components, in that unit.
      temperature: of the softmax in the loss (1 is Eq. 1), see `token_losses.token_losses`.
      steps: budget of one text and seed, in gradient evaluations; with "auto" seeds, of one text.
      patience: gradient evaluations without progress after which a seed is given up; None for never.
      patience_per_token: the same for each token of the text, where that is more.
      patience_growth: the same as a multiple of the evaluations made before the last progress, where that is more. A
        text near the capacity makes progress ever more slowly, and one that hangs does so from early on.
      progress: what counts as progress: None for a better accuracy, else a loss of at most this share of that at the
        last progress.
      seeds: how many seeds a text may use, or "auto" for as many as its budget lasts for.
      arrangement: of the vectors where no scheme is given, see `schemes.ARRANGEMENTS`.
      prefix: what stands before the vectors where the scheme does not say: "none", "bos" for the model's token of that
        kind, or "auto" for it where the first position is an attention sink, see `prefixes.resolve_prefix`.
    """

    start: str
    optimizer: Optimizer
    scale: float = 1.0
    temperature: float = 1.0
    steps: int = 5000
    patience: int | None = None
    patience_per_token: float = 0.0
    patience_growth: float = 0.0
    progress: float | None = None
    seeds: int | str = 1
    arrangement: str = "one-step"
    prefix: str = "none"

    def describe(self) -> dict[str, Any]:
        """What belongs to a run's identity besides the optimiser and the budget."""
        described = {"start": self.start, "scale": self.scale, "temperature": self.temperature}
        described |= {"patience": self.patience}
        more = {"patience per token": self.patience_per_token, "patience growth": self.patience_growth}
        more |= {"progress": self.progress}
        return described | {name: value for name, value in more.items() if value}

    def values(self) -> dict[str, Any]:
        """All but the budget, as plain values; recorded for `preset_of`."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("optimizer", "steps")]
        return {name: getattr(self, name) for name in names} | {"optimizer": self.optimizer.describe()}


_PAPER = Optimizer("adamw", {"learning_rate": 0.01, "b1": 0.9, "b2": 0.9, "weight_decay": 0.01})

# "paper" is the protocol of Mezentsev and Oseledets (arXiv:2505.21189), "cramming" that of Kuratov et al.
# (arXiv:2502.13063). "fast" is our own; docs/optimizers.md says why it is what it is.
PRESETS = {
    "paper": Preset(start="normal", optimizer=_PAPER),
    "cramming": Preset(start="embedding", optimizer=_PAPER, patience=2000),
    "fast": Preset(
        start="normal",
        optimizer=Optimizer(
            "cautious_lbfgs", {"learning_rate": 1.0, "memory_size": 40, "max_rms": 0.08, "diagonal": 0.99}
        ),
        temperature=0.25,
        patience=40,
        patience_per_token=4.0,
        patience_growth=1.0,
        progress=0.6,
        seeds=AUTO,
        arrangement="unguided-e",
        prefix="auto",
    ),
}


def preset_of(given: str | Preset, run: str | Path | None = None) -> Preset:
    """A preset by its name; for a run that is there, with the values that the name stood for in its first session.

    Raises:
      UserError: for an unknown name.
    """
    if isinstance(given, Preset):
        return given
    check_known("preset", [given], PRESETS)
    config = None if run is None else find_config(run_path(run))
    if config is None or config["settings"].get("preset") != given:
        return PRESETS[given]
    return recorded_preset(config["identity"], config["settings"]) or PRESETS[given]


def recorded_preset(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> Preset | None:
    """The preset of a run, as its name was understood then; None if it was not one of the package's.

    Args:
      identity, settings: of the run's config.json.
    """
    preset = PRESETS.get(settings.get("preset", ""))
    if preset is None:
        return None
    # What an older version did not record had the default of its field.
    older = {name: identity[name] for name in ("start", "scale", "temperature", "patience") if name in identity}
    recorded = settings.get("preset values", older)
    values = {name: recorded[name] for name in preset.values() if name in recorded}  # a newer version may have more
    described = values.pop("optimizer", None) or identity.get("optimizer") or {}
    if described.get("name") == preset.optimizer.name or "optimizer" in recorded:
        values["optimizer"] = Optimizer.from_description(described)
    return Preset(**{"start": preset.start, "optimizer": preset.optimizer, "steps": preset.steps, **values})


def protocol(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Preset and optimiser of a run in one line; arguments as of `recorded_preset`."""
    optimizer = identity.get("optimizer") or {}
    arguments = ", ".join(f"{key} {value}" for key, value in (optimizer.get("arguments") or {}).items())
    words = f"{optimizer.get('name')}" + (f" ({arguments})" if arguments else "")
    words += f", {schedule['name'].replace('_', ' ')}" if (schedule := optimizer.get("schedule")) else ""
    return f"preset {settings.get('preset')}: {words}"
