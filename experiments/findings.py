"""Which findings of the paper hold on each model, judged from the recorded tables for the page of overview.py.

A claim is judged from the tables of one card and says by how much. Cards without a recorded result are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bounds import Rows, Tables, every, held, less, setting

FEW = 5  # contexts, with fewer of which an interval by drawing them is not trusted
USEFUL = 0.02  # of cosine distance; a tenth of what the paper's Figure 6 shows between vectors of one text and others
SIGNIFICANT = 0.05

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
    """At N = 2 two tokens that tie, each with half the probability, come right by rounding (docs/method.md)."""
    rows = [row for row in pick(tables["table1"], arrangement="[e]×N") if int(row["length"]) >= 4]
    texts = [f"{float(row['exact']):.0%} of {row['texts']} texts at N = {row['length']}" for row in rows]
    front = ", behind a BOS, by which the positions differ" if "frozen prefix" in setting(tables, "protocols") else ""
    return not any(float(row["exact"]) for row in rows), f"exact: {', '.join(texts)}{front}"


def _sharing(leaf: str) -> Callable[[Tables], Verdict]:
    def judge(tables: Tables) -> Verdict:
        row = pick(tables["table2"], shared=leaf)[-1]
        rest, whole, first = (float(row[f"{name} mean"]) for name in ("max rest", "max", "avg first"))
        said = f"best seed {rest:.2f} of tokens 2 to {row['length']} in groups of {row['texts a group']}"
        cost = f"; the first, read at the shared vector alone, is right in {first:.0%}" if leaf == "e" else ""
        return rest >= 0.99, f"{said}; {whole:.2f} of the whole text{cost}"

    return judge


def of_table3(tables: Tables, m: str) -> dict[str, dict[str, str]]:
    """Row of Table 3 by kind of text; that of the grid, or of the search where there was no grid."""
    rows = sorted(pick(tables["table3"], m=m), key=lambda row: row["method"], reverse=True)
    return {row["texts from"].split(":")[0]: row for row in rows}


def _compared(below: Mapping[str, str], above: Mapping[str, str], column: str) -> bool | None:
    return less(held(below, column), held(above, column))


def _own_above_shared(tables: Tables) -> Verdict:
    own, shared = (of_table3(tables, m) for m in ("own", "shared"))
    column = "C_tokens mean"
    said = ", ".join(f"{kind} {held(own[kind], column)} and {held(shared[kind], column)}" for kind in own)
    holds = every(_compared(shared[kind], own[kind], column) for kind in own)
    return holds, f"mean tokens own and shared: {said}"


def _random_below(tables: Tables) -> Verdict:
    column, own = "C_tokens mean", of_table3(tables, "own")
    said = ", ".join(f"{kind} {held(row, column)}" for kind, row in own.items())
    random = own.pop("random")
    return every(_compared(random, row, column) for row in own.values()), f"mean {said}"


def _random_above(tables: Tables) -> Verdict:
    column, own = "H_LM mean, nats", of_table3(tables, "own")
    said = ", ".join(f"{kind} {held(row, column).said(0)} nats" for kind, row in own.items())
    random = own.pop("random")
    return every(_compared(row, random, column) for row in own.values()), f"mean {said}"


def _less(vectors: int) -> Callable[[Tables], Verdict]:
    def judge(tables: Tables) -> Verdict:
        (row,) = pick(tables["figure3_summary"], vectors=vectors)
        one_pass, autoregressive = (
            held(row, f"{way}nats mean", f"{way}tokens at the longest length") for way in ("", "autoregressive ")
        )
        return less(one_pass, autoregressive), f"mean {one_pass.said(0)} against {autoregressive.said(0)} nats"

    return judge


def longest_lossless(tables: Tables, row: Mapping[str, str]) -> str:
    """The lengths at which Figure 4 compares the two ways, and whether they are the longest tried."""
    tried = max(tables["figure4"], key=lambda row: int(row["length"]))["length"]
    ends = [row[f"{way} length"] for way in ("one pass", "autoregressive")]
    said = [f"{end} tokens, the longest tried" if end == tried else f"{end} tokens" for end in ends]
    return f"one pass at {said[0]}, token by token at {said[1] if ends[0] != ends[1] else 'the same'}"


def _faster(tables: Tables) -> Verdict:
    row = tables["figure4_longest"][0]
    ratios = [float(one["ratio"]) for one in pick(tables["figure4"], batch=row["batch"])]
    least = f"at equal lengths at least ×{min(ratios):.1f}"
    said = f"×{float(row['ratio']):.1f}, {longest_lossless(tables, row)}; {least} (the paper: ×279)"
    return float(row["ratio"]) > 1 and min(ratios) > 1, f"texts one at a time: {said}"


def interval(row: Mapping[str, str]) -> str:
    """By how much one relation of Figures 5 and 6 is nearer, and the interval of that."""
    return f"{float(row['nearer by']):.3f} ({float(row['low']):.3f} to {float(row['high']):.3f})"


def resampled(row: Mapping[str, str]) -> str:
    """How much an interval rests on."""
    return f"{row['contexts resampled']} contexts, {row['texts resampled']} texts"


def _nearer(row: Mapping[str, str]) -> bool | None:
    """Whether a difference is surely above zero; False only where it is surely no useful one."""
    low, high = float(row["low"]), float(row["high"])
    if int(row["contexts resampled"]) < FEW:
        return None
    return True if low > 0 else False if high < USEFUL else None


def _slightly_nearer(tables: Tables) -> Verdict:
    rows = tables["figure5_gap"]
    said = ", ".join(f"{row['measure']} {interval(row)}" for row in rows)
    sharing = {"m": "m shared by all", "none": "m of each text"}[rows[0]["share"]]
    return every(map(_nearer, rows)), f"nearer by {said}; {resampled(rows[0])}, {sharing}"


def _same_text(tables: Tables) -> Verdict:
    means = [f"{float(row['mean']):.2f}" for row in pick(tables["figure6"], way="m shared by all")]
    rows = pick(tables["figure6_auc"], way="m shared by all", nearer="same_text")
    said = " and ".join(map(interval, rows))
    pairs = pick(tables["figure6"], way="m shared by all", relation="same_text")[0]["pairs"]
    said = f"{means[0]} against {means[1]} and {means[2]}: nearer by {said}; {resampled(rows[0])}, {pairs} pairs"
    return every(map(_nearer, rows)), f"{said} of a text"


def _same_context(tables: Tables) -> Verdict:
    (row,) = pick(tables["figure6_auc"], way="m shared by all", nearer="same_context")
    return _nearer(row), f"nearer by {interval(row)}; {resampled(row)}"


def texts_of_pairs(tables: Tables) -> int:
    """Of how many texts the pairs of Figure 7 are."""
    return len({row["first"].split(":")[0].split("-")[0] for row in tables["figure7_pairs"]})


def _connected(tables: Tables) -> Verdict:
    line, curve = tables["figure7"]
    means = [float(row["accuracy mean"]) for row in (line, curve)]
    least = float(curve["least accuracy mean"])
    said = f"line {means[0]:.2f}, curve {means[1]:.2f}, at its worst place {least:.2f} (mean over pairs) and "
    said += f"{float(curve['least accuracy min']):.2f} (worst pair); {curve['pairs']} pairs, texts: "
    return means[0] < 0.9 and min(means[1], least) >= 0.95, f"{said}{texts_of_pairs(tables)}"


def _short(tables: Tables) -> Verdict:
    _, curve = tables["figure7"]
    mean, most = float(curve["length ratio mean"]), float(curve["length ratio max"])
    return most <= 1.2, f"mean {mean:.2f}, most {most:.2f}; {curve['pairs']} pairs, texts: {texts_of_pairs(tables)}"


def beyond_controls(tables: Tables) -> Rows:
    """Each start from e or m, against the control that saw the same true tokens, or other texts if it saw none."""
    controlled = [row for row in tables["access"] if row["compared with"] not in ("fitted", "rest")]
    if not controlled:
        raise KeyError("compared with: t")
    alone = {row["start"] for row in controlled}
    free = [row for row in pick(tables["access"], compared_with="fitted") if {"e", "m"} & set(row["start"].split())]
    return controlled + [row for row in free if row["start"] not in alone]


def _unreadable(tables: Tables) -> Verdict:
    """Text by text, by all measures at all temperatures; p is multiplied by how many these are (Bonferroni)."""
    rows = beyond_controls(tables)
    whole = {row["measure"]: float(row["own"]) for row in pick(tables["access"], start="one pass")}
    worst = min(rows, key=lambda row: float(row["p"]))
    p = min(1.0, len(rows) * float(worst["p"]))
    other = "other texts" if worst["compared with"] == "fitted" else f"the control {worst['compared with']}"
    most = max(float(row["difference"]) / whole[row["measure"]] for row in rows)
    said = f"most of all from {worst['start']}: {worst['measure']} {float(worst['own']):.2f}, {other} "
    said += f"{float(worst['other']):.2f} (one pass {whole[worst['measure']]:.2f}); p = {p:.2g} for {len(rows)} tests"
    said += f"; at most {most:.0%} of one pass beyond a control"
    if p < SIGNIFICANT:
        return False, said
    if len(rows) * 2.0 ** -int(worst["texts"]) >= SIGNIFICANT:
        return None, f"{said}; {worst['texts']} texts could not reach p = {SIGNIFICANT}"
    return (True if most < 0.1 else None), said


CLAIMS = (
    Claim("table1_arrangements", "Table 1: the arrangements are in this order, the last nearly perfect", _order),
    Claim("table1_arrangements", "Table 1: one vector alone lets no text of four or more tokens out", _not_alone),
    Claim("table2_sharing", "Table 2: all texts can share `m`, by the best seed", _sharing("m")),
    Claim("table2_sharing", "Table 2: all texts can share `e`, by the best seed, past the first token", _sharing("e")),
    Claim("table3_capacity", "Table 3: a shared `m` holds less than an own one", _own_above_shared),
    Claim("table3_capacity", "Table 3: fewer random words than tokens of natural text fit", _random_below),
    Claim("table3_capacity", "Table 3: the random words that fit hold more nats than the natural text", _random_above),
    Claim("figure3_information", "Figure 3: one pass holds less than autoregressive decoding, 1 vector", _less(1)),
    Claim("figure3_information", "Figure 3: one pass holds less than autoregressive decoding, 2 vectors", _less(2)),
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
            try:
                holds, said = claim.judge(tables) if tables else (None, "not yet recorded")
            except KeyError as missing:  # a record of an earlier card
                holds, said = None, f"the record has no column {missing}"
            cells.append(f"{WORDS[holds]}: {said}" if tables else said)
        lines.append(f"| {claim.says} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
