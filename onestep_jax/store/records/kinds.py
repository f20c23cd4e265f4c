"""The declared types of what a run directory keeps as JSON and in tables.

Fields that are not named here are kept and not looked at: those of a later version, and settings that only people read.
What an earlier version did not write has a default.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

Natural: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, lt=2**53)]
Int32: TypeAlias = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, lt=2**31)]
ProcessId: TypeAlias = Annotated[int, Meta(ge=1, lt=2**31)]
Status: TypeAlias = Literal["solved", "exhausted", "failed", "encoded", "refined"]


# --- config.json ---


class SchemeKind(Struct, frozen=True):
    """A scheme's `describe()`; one made in Python has what it likes."""

    arrangement: str = ""
    share: str | None = None
    group: Positive = 1
    vectors: Positive = 1
    prefix: list[TokenId] = []


class ScheduleKind(Struct, frozen=True):
    name: str
    arguments: dict[str, Any] = {}


class OptimizerKind(Struct, frozen=True):
    name: str
    arguments: dict[str, Any] = {}
    schedule: ScheduleKind | None = None
    object: bool = False


class IdentityKind(Struct, frozen=True):
    """What must not change between the sessions of a run."""

    model: str
    scheme: SchemeKind
    dtype: str = "float32"
    texts: str = ""
    prefixes: str = ""
    length: Positive | None = None
    start_vectors: str | None = msgspec.field(default=None, name="start vectors")
    start: str = ""
    scale: float = 1.0
    temperature: float = 1.0
    patience: int | None = None
    patience_per_token: float | None = msgspec.field(default=None, name="patience per token")
    patience_growth: float | None = msgspec.field(default=None, name="patience growth")
    progress: float | None = None
    optimizer: OptimizerKind | None = None
    steps: Positive = 1
    seed: Natural = 0
    seeds: Positive | str = 1
    record: bool = False
    margin: float = 0.0
    losses: dict[str, LossKind] = {}
    context: str = ""


class LossKind(Struct, frozen=True):
    """A loss beside Eq. 1; what else it has are the fields of its class."""

    weight: float = 0.0
    teacher: str = ""


class PresetKind(Struct, frozen=True):
    """What the name of a preset stood for."""

    start: str = ""
    optimizer: OptimizerKind | None = None
    scale: float = 1.0
    temperature: float = 1.0
    patience: int | None = None
    patience_per_token: float = 0.0
    patience_growth: float = 0.0
    progress: float | None = None
    seeds: Positive | str = 1
    arrangement: str = ""
    prefix: str = ""


class SettingsKind(Struct, frozen=True):
    """What may change; these are of the first session."""

    model: str
    revision: str | None = None
    preset: str = ""
    preset_values: PresetKind = msgspec.field(default=PresetKind(), name="preset values")
    prefix: str | None = None
    copies: Positive = 1
    first_term: str | None = msgspec.field(default=None, name="h_lm of the first token")
    versions: dict[str, str] | None = None
    commit: str | None = None


class ConfigKind(Struct, frozen=True):
    format: int
    identity: IdentityKind
    settings: SettingsKind


class ExperimentKind(Struct, frozen=True):
    """config.json of the results of an experiment."""

    experiment: str
    settings: dict[str, Any] = {}
    model: str = ""
    title: str | None = None
    captions: dict[str, str] = {}


# --- saved states ---


class TaskKind(Struct, frozen=True):
    """A group in flight: indices of its texts, its seed, and (evaluations, loss, accuracy) after each chunk."""

    texts: Annotated[list[Natural], Meta(min_length=1)]
    seed: Natural
    trace: list[tuple[float, float, float]]
    seconds: float = 0.0


class OutcomeKind(TaskKind, frozen=True):
    """A group that has come to the end of a seed."""

    status: str = ""
    steps: Natural = 0
    best_step: Natural = 0
    loss: float = 0.0


class WorkKind(Struct, frozen=True):
    tasks: list[TaskKind] = []
    outcomes: list[OutcomeKind] = []


class SavedKind(Struct, frozen=True):
    record: WorkKind
    elapsed: float
    checksums: dict[str, int]


class StateKind(Struct, frozen=True):
    checksum: int
    state: SavedKind
    run: str = ""
    text_ids: dict[str, str] = {}


# --- rows of tables ---


class TextRow(Struct, frozen=True):
    """Of texts.parquet."""

    text_id: str
    tokens: list[TokenId]
    prefix: list[TokenId] | None = None


class IdRow(Struct, frozen=True):
    """The least that is read of a results table."""

    text_id: str


class SummaryRow(IdRow, frozen=True):
    """What `status` reads of a results table."""

    index: Natural
    accuracy: float
    steps: Natural
    status: Status


class ResultRow(SummaryRow, frozen=True):
    c_tokens: Natural
    loss: float
    best_step: Natural
    seconds: float
    seed: Natural
    predicted: list[Int32]
    nats: list[float]
    row: Natural
    group_row: int
    checksum: Natural
    h_lm: float | None = None
    margin: float = math.nan


class TrialRow(Struct, frozen=True):
    """Of a traces table; `path_LEAF` has the recorded vectors."""

    text_id: str
    seed: Natural
    status: Status
    accuracy: float
    loss: float
    steps: Natural
    best_step: Natural
    first_hit: list[Int32]
    trace_steps: list[Int32]
    trace_loss: list[float]
    trace_accuracy: list[float]
