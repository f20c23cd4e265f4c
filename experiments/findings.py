"""Which findings of the paper hold on each model, judged from the recorded tables for the page of overview.py.

A claim is judged from the tables of one card and says by how much. Cards without a recorded result are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Rows = list[dict[str, str]]
Tables = Mapping[str, Rows]
Verdict = tuple[bool | None, str]
"""Whether a claim holds, None where the tables cannot tell, and by how much."""


class Claim(NamedTuple):
    """One sentence of the paper, and how it is judged.

    Attributes:
      card: whose tables.
      says: the sentence.
      judge: tables → whether it holds, and by how much.
    """

    card: str
    says: str
    judge: Callable[[Tables], Verdict]


def pick(rows: Rows, **wanted: object) -> Rows:
    """Rows whose columns have these values; an underscore stands for a space."""
    fixed = {key.replace("_", " "): str(value) for key, value in wanted.items()}
    return [row for row in rows if all(row[key] == value for key, value in fixed.items())]


def number(rows: Rows, column: str, **wanted: object) -> float:
    """A number of the one row with these values."""
    (row,) = pick(rows, **wanted)
    return float(row[column])


def _order(tables: Tables) -> Verdict:
    rows = tables["table1"]
    longest = max(int(row["length"]) for row in rows)
    found = [float(row["accuracy mean"]) for row in pick(rows, length=longest)]
    rising = all(after >= before - 0.01 for before, after in itertools.pairwise(found))
    return rising and found[-1] >= 0.99, f"{', '.join(f'{value:.3f}' for value in found)} at N = {longest}"


def _not_alone(tables: Tables) -> Verdict:
    rows = [row for row in pick(tables["table1"], arrangement="[e]×N") if int(row["length"]) > 1]
    texts = [f"{float(row['exact']):.0%} of {row['texts']} texts at N = {row['length']}" for row in rows]
    return not any(float(row["exact"]) for row in rows), f"exact: {', '.join(texts)}"


def _sharing(leaf: str) -> Callable[[Tables], Verdict]:
    def judge(tables: Tables) -> Verdict:
        row = pick(tables["table2"], shared=leaf)[-1]
        best = float(row["max mean"])
        return best >= 0.99, f"best seed {best:.2f} in groups of {row['texts a group']} at N = {row['length']}"

    return judge


def of_table3(tables: Tables, m: str) -> dict[str, dict[str, str]]:
    """Row of Table 3 by kind of text; that of the grid, or of the search where there was no grid."""
    rows = sorted(pick(tables["table3"], m=m), key=lambda row: row["method"], reverse=True)
    return {row["texts from"].split(":")[0]: row for row in rows}


def _below(row: dict[str, str], other: dict[str, str], column: str) -> bool | None:
    """Whether a number of one row of Table 3 is less than that of another.

    None where the one that would have to grow to change the answer can: it has texts that held the longest length
    tried, so its number is a lower bound.
    """
    below = float(row[column]) < float(other[column])
    could_grow = row if below else other
    return None if float(could_grow["at the longest length"]) else below


def _all(holds: Iterable[bool | None]) -> bool | None:
    """Whether all hold; None where none fails and some cannot be told."""
    found = list(holds)
    return False if False in found else None if None in found else True


def _own_above_shared(tables: Tables) -> Verdict:
    own, shared = (of_table3(tables, m) for m in ("own", "shared"))
    column = "C_tokens mean"
    said = ", ".join(f"{kind} {float(own[kind][column]):.1f} and {float(shared[kind][column]):.1f}" for kind in own)
    holds = _all(_below(shared[kind], own[kind], column) for kind in own)
    return holds, f"mean tokens own and shared: {said}"


def _random_below(tables: Tables) -> Verdict:
    column, own = "C_tokens mean", of_table3(tables, "own")
    said = ", ".join(f"{kind} {float(row[column]):.1f}" for kind, row in own.items())
    random = own.pop("random")
    return _all(_below(random, row, column) for row in own.values()), f"mean {said}"


def _random_above(tables: Tables) -> Verdict:
    column, own = "H_LM mean, nats", of_table3(tables, "own")
    said = ", ".join(f"{kind} {float(row[column]):.0f} nats" for kind, row in own.items())
    random = own.pop("random")
    return _all(_below(row, random, column) for row in own.values()), f"mean {said}"


def _less(tables: Tables) -> Verdict:
    rows, said = tables["figure3_summary"], []
    for row in rows:
        one_pass, autoregressive = (float(row[f"{way}nats mean"]) for way in ("", "autoregressive "))
        said.append(f"{one_pass:.0f} against {autoregressive:.0f} nats with {row['vectors']} trained per text")
    return all(float(row["ratio median"]) < 1 for row in rows), "; ".join(said)


def _faster(tables: Tables) -> Verdict:
    row = tables["figure4_longest"][0]
    return float(row["ratio"]) > 1, f"×{float(row['ratio']):.1f}, texts one at a time (the paper: ×279)"


def _difference(near: Rows, far: Rows, mean: str, std: str) -> tuple[float, float]:
    """How much nearer one kind of pairs is, over the bins or rows given for both, and in standard errors.

    Pairs share vectors, so the true error is larger: a difference of less than two is none, of more perhaps one.
    """
    weights = [min(float(one["pairs"]), float(other["pairs"])) for one, other in zip(near, far, strict=True)]
    gap, variance = 0.0, 0.0
    for weight, one, other in zip(weights, near, far, strict=True):
        share = weight / sum(weights)
        gap += share * (float(other[mean]) - float(one[mean]))
        variance += share**2 * sum(float(row[std]) ** 2 / float(row["pairs"]) for row in (one, other))
    return gap, gap / variance**0.5


def _slightly_nearer(tables: Tables) -> Verdict:
    said, seen = [], []
    for measure in dict.fromkeys(row["measure"] for row in tables["figure5"]):
        near, far = (
            {row["from"]: row for row in pick(tables["figure5"], measure=measure, relation=relation)}
            for relation in ("same_context", "different_contexts")
        )
        bins = [start for start in near if start in far]
        columns = ("e distance mean", "e distance std")
        gap, errors = _difference([near[start] for start in bins], [far[start] for start in bins], *columns)
        said.append(f"{measure} {gap:.3f} ({errors:.1f} standard errors)")
        seen.append(errors > 2)
    return all(seen), "nearer by " + ", ".join(said)


def _same_text(tables: Tables) -> Verdict:
    own, *others = pick(tables["figure6"], way="m shared by all")
    errors = min(_difference([own], [other], "mean", "std")[1] for other in others)
    means = [f"{float(row['mean']):.2f}" for row in (own, *others)]
    said = (
        f"{means[0]} against {means[1]} and {means[2]} ({errors:.1f} standard errors, {own['pairs']} pairs of a text)"
    )
    return errors > 2, said


def _same_context(tables: Tables) -> Verdict:
    _, near, far = pick(tables["figure6"], way="m shared by all")
    gap, errors = _difference([near], [far], "mean", "std")
    return errors > 2, f"nearer by {gap:.3f} ({errors:.1f} standard errors)"


def _connected(tables: Tables) -> Verdict:
    line, curve = tables["figure7"]
    means = [float(row["accuracy mean"]) for row in (line, curve)]
    return means[0] < 0.9 and means[1] >= 0.95, f"line {means[0]:.2f}, curve {means[1]:.2f}, {curve['pairs']} pairs"


def _short(tables: Tables) -> Verdict:
    _, curve = tables["figure7"]
    mean, most = float(curve["length ratio mean"]), float(curve["length ratio max"])
    return most <= 1.2, f"mean {mean:.2f}, most {most:.2f}"


def _unreadable(tables: Tables) -> Verdict:
    rows = pick(tables["access"], compared_with="fitted", measure="overlap")
    generated = [row for row in rows if row["start"] not in ("one pass", "BOS", "t", "BOS t")]
    one_pass = number(rows, "own", start="one pass")
    worst = max(generated, key=lambda row: float(row["difference"]))
    own, other, p = (float(worst[name]) for name in ("own", "other", "p"))
    said = (
        f"overlap with the own text {one_pass:.2f} in one pass; generated from {worst['start']} {own:.2f}, with other"
    )
    return p > 0.01 / len(generated), f"{said} texts {other:.2f} (p = {p:.2g})"


CLAIMS = (
    Claim("table1_arrangements", "Table 1: the arrangements are in this order, the last nearly perfect", _order),
    Claim("table1_arrangements", "Table 1: one vector alone lets no text of several tokens out", _not_alone),
    Claim("table2_sharing", "Table 2: all texts can share `m`, by the best seed", _sharing("m")),
    Claim("table2_sharing", "Table 2: all texts can share `e`, by the best seed", _sharing("e")),
    Claim("table3_capacity", "Table 3: a shared `m` holds less than an own one", _own_above_shared),
    Claim("table3_capacity", "Table 3: fewer random words than tokens of natural text fit", _random_below),
    Claim("table3_capacity", "Table 3: the random words that fit hold more nats than the natural text", _random_above),
    Claim("figure3_information", "Figure 3: one pass holds less than autoregressive decoding", _less),
    Claim("figure4_throughput", "Figure 4: one pass is faster than token by token", _faster),
    Claim("figure5_text_distance", "Figure 5: at equal text distance, the same context is nearer", _slightly_nearer),
    Claim("figure6_distances", "Figure 6: vectors of the same text are nearest", _same_text),
    Claim("figure6_distances", "Figure 6: vectors after the same context are nearer than others", _same_context),
    Claim("figure7_connectivity", "Figure 7: accuracy falls along the line, stays near 1 along the curve", _connected),
    Claim("figure7_connectivity", "Figure 7: the curve is at most 1.2 times as long as the line", _short),
    Claim("access", "Access test: generation from the vectors yields nothing related", _unreadable),
)  # fmt: skip


WORDS = {True: "yes", False: "**no**", None: "cannot be told"}


def section(claims: Sequence[Claim], tables_of: Callable[[str, str], Tables], models: Mapping[str, str]) -> str:
    """Claims as a table in Markdown.

    Args:
      claims: the sentences, a row each.
      tables_of: folder of a model, and name of a card → its recorded tables, empty where there are none.
      models: folder → name of a model.
    """
    lines = [f"| finding | {' | '.join(models.values())} |", "|---" * (1 + len(models)) + "|"]
    for claim in claims:
        cells = []
        for model in models:
            tables = tables_of(model, claim.card)
            holds, said = claim.judge(tables) if tables else (None, "not yet recorded")
            cells.append(f"{WORDS[holds]}: {said}" if tables else said)
        lines.append(f"| {claim.says} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
