"""What the recorded tables of each card say, in a line, beside what the paper found; for the page of overview.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from bounds import Tables, held
from findings import (
    beyond_controls,
    interval,
    longest_lossless,
    number,
    of_table3,
    pick,
    resampled,
    texts_of_pairs,
)
from question_summaries import (
    absorption,
    control,
    cramming,
    dynamics,
    encoder,
    failures,
    growth,
    knockout,
    margins,
    meaning,
    prefix_suffix,
    sink,
    trajectories,
    vectors,
)

SECONDS = {32: 11.0, 64: 15.0, 128: 27.0, 256: 87.0}
"""Tokens → the paper's seconds a text on one A100 or H100 (Table 4, Llama-3.2-1B)."""

Fits = Iterable[tuple[int, int]]


class Item(NamedTuple):
    """One row.

    Attributes:
      paper: what the paper found.
      ours: the same of our tables.
      fits: (how many, of so many tokens) at the card's full size.
    """

    paper: str
    ours: Callable[[Tables], str]
    fits: Callable[[Any], Fits]


def table1(tables: Tables) -> str:
    rows = tables["table1"]
    longest = max(int(row["length"]) for row in rows)
    names = list(dict.fromkeys(row["arrangement"] for row in rows))
    found = {
        length: ", ".join(f"{number(rows, 'accuracy mean', arrangement=name, length=length):.2f}" for name in names)
        for length in (4, longest)
    }
    return f"{found[4]} at N = 4; {found[longest]} at N = {longest}"


def table2(tables: Tables) -> str:
    rows = tables["table2"]
    said = []
    for leaf in "em":
        own = pick(rows, shared=leaf)
        cells = (f"{float(row['max mean']):.2f}/{float(row['avg mean']):.2f}" for row in own)
        rest = (f"{float(row['max rest mean']):.2f}/{float(row['avg rest mean']):.2f}" for row in own)
        said.append(f"{leaf}: {', '.join(cells)} (without the first token {', '.join(rest)})")
    groups = ", ".join(row["texts a group"] for row in pick(rows, shared="m"))
    return f"max/avg at S_g = {groups}, N = {rows[0]['length']}: {'; '.join(said)}"


def table3(tables: Tables) -> str:
    said = []
    of_m = {m: of_table3(tables, m) for m in ("own", "shared")}
    for kind, m in itertools.product(of_m["own"], of_m):
        row = of_m[m][kind]
        best = held(row, "C_tokens max").said(0)
        tokens, nats = (held(row, column).said(0) for column in ("C_tokens mean", "H_LM mean, nats"))
        said.append(f"{kind}, m {m}: {best} tokens (mean {tokens}), {nats} nats")
    for row in tables.get("table3_search", []):
        said.append(
            f"search of {row['texts from'].split(':')[0]}: same capacity for {float(row['same capacity']):.0%} of the "
            f"texts with {float(row['work, evaluations × tokens']):.2f} of the work"
        )
    return "; ".join(said)


def table4(tables: Tables) -> str:
    rows = tables["table4"]
    cells = (f"N = {row['length']}, {row['fitted']}: {_seconds(row)}" for row in rows)
    what = "median and range" if "seconds median" in rows[0] else "mean ± standard deviation"
    return f"{what} over {rows[0]['texts']} texts: {'; '.join(cells)}"


def _seconds(row: dict[str, str]) -> str:
    if "seconds median" not in row:  # a record of an earlier card
        return f"{float(row['seconds mean']):.1f} ± {float(row['seconds std']):.1f} s"
    median, least, most = (float(row[f"seconds {name}"]) for name in ("median", "least", "most"))
    return f"{median:.1f} s ({least:.1f} to {most:.1f})"


def figure3(tables: Tables) -> str:
    signs = {(True, False): "≥ ", (False, True): "≤ ", (False, False): ""}
    cells = []
    for row in tables["figure3_summary"]:
        first, second = (float(row[f"{way}tokens at the longest length"]) > 0 for way in ("", "autoregressive "))
        ratio = f"{float(row['ratio median']):.2f}"
        both = f"{ratio}, but both reach the longest length tried"
        told = both if first and second else f"{signs[first, second]}{ratio}"
        cells.append(f"with {row['vectors']} trained {told}")
    return f"median ratio of nats, {'; '.join(cells)}"


def figure4(tables: Tables) -> str:
    cells = (f"×{float(row['ratio']):.1f} at batch {row['batch']}" for row in tables["figure4_longest"] if row["ratio"])
    return f"one pass faster by {', '.join(cells)} ({longest_lossless(tables, tables['figure4_longest'][0])})"


def figure5(tables: Tables) -> str:
    cells = (f"{row['measure']} distance: nearer by {interval(row)}" for row in tables["figure5_gap"])
    row = tables["figure5_gap"][0]
    return f"{'; '.join(cells)}, in brackets 95 %; {resampled(row)}, share: {row['share']}"


def figure6(tables: Tables) -> str:
    said = []
    for way in dict.fromkeys(row["way"] for row in tables["figure6"]):
        cells = (f"{float(row['mean']):.2f}" for row in pick(tables["figure6"], way=way))
        exact = float(pick(tables["figure6"], way=way)[0]["exact"])
        said.append(f"{way}: {', '.join(cells)} (same text, same context, different; {exact:.0%} of the fits exact)")
    return "; ".join(said)


def figure7(tables: Tables) -> str:
    cells = (
        f"{row['way']}: mean accuracy {float(row['accuracy mean']):.2f}, least (mean over pairs) "
        f"{float(row['least accuracy mean']):.2f}"
        for row in tables["figure7"]
    )
    ratio = max(float(row["length ratio max"]) for row in tables["figure7"])
    of = f"{tables['figure7'][0]['pairs']} pairs, texts: {texts_of_pairs(tables)}"
    return f"{'; '.join(cells)}; length ratio ≤ {ratio:.2f} ({of})"


def access(tables: Tables) -> str:
    one_pass = number(tables["access"], "own", start="one pass", measure="exact")
    worst = max(
        (row for row in beyond_controls(tables) if row["measure"] == "exact"), key=lambda row: float(row["own"])
    )
    other = "against other texts" if worst["compared with"] == "fitted" else f"from {worst['compared with']} alone"
    return (
        f"one pass {one_pass:.2f} of the tokens; by generation at most {float(worst['own']):.2f} "
        f"(from {worst['start']}, {float(worst['other']):.2f} {other}, p = {float(worst['p']):.2g})"
    )


def attention(tables: Tables) -> str:
    share = np.array([float(row["e mean"]) for row in tables["attention"]])
    uniform = float(tables["attention"][0]["e uniform"])
    prefix = np.mean([float(row["prefix mean"]) for row in tables["attention"]])
    drawn = f", of the prefix {prefix:.2f} (uniform {float(tables['attention'][0]['prefix uniform']):.2f})"
    dropped = max(float(row["accuracy mean"]) for row in tables["ablations"] if row["replaced"] != "kept")
    return (
        f"share of e {share.mean():.2f} on average (uniform {uniform:.2f}), {share.max():.2f} in the highest head"
        f"{drawn if prefix else ''}; "
        f"accuracy after replacing e or m ≤ {dropped:.2f}"
    )


def seed_stability(tables: Tables) -> str:
    cells = (
        f"{row['leaf']}: {float(row['within mean']):.2f} within a text, {float(row['between mean']):.2f} between"
        for row in tables["seed_stability"]
    )
    swapped = number(tables["exchange"], "accuracy mean", m="m of another seed")
    return f"cosine distances, {'; '.join(cells)}; accuracy with m of another seed {swapped:.2f}"


ITEMS = {
    "table1_arrangements": Item(
        "0.17, 0.12, 1.00, 1.00, 1.00 at N = 4; 0.01, 0.01, 0.17, 0.97, 0.99 at N = 256",
        table1,
        lambda c: [(5 * c.count, n) for n in c.lengths],
    ),
    "table2_sharing": Item(
        "max/avg at S_g = 1, 16, 256, N = 256: e 1.00/0.98, 0.99/0.90, 0.99/0.86; m 1.00/0.98, 1.00/0.86, 1.00/0.83",
        table2,
        lambda c: [((2 * len(c.groups) - 1) * c.count * c.seeds, c.length)],
    ),
    "table3_capacity": Item(
        "Llama-3.2-1B: random 256 tokens (1551 nats) own m, 181 shared; PG-19 362 (994 nats) own, 181 shared",
        table3,
        lambda c: [(len(c.texts) * len(c.m) * c.seeds * c.count, n) for n in c.lengths],
    ),
    "table4_training_time": Item(
        "Llama-3.2-1B: 11, 15, 27, 87 s at N = 32, 64, 128, 256",
        table4,
        lambda c: [(2 * len(c.texts) * c.count, n) for n in c.lengths],
    ),
    "figure3_information": Item(
        "one pass holds about half of the nats, sometimes a fifth",
        figure3,
        lambda c: [(4 * c.count, n) for n in c.lengths],
    ),
    "figure4_throughput": Item("×279 on average", figure4, lambda c: [(2 * c.count, n) for n in c.lengths]),
    "figure5_text_distance": Item(
        "same-context pairs slightly closer at equal text distance",
        figure5,
        lambda c: [(c.count * (c.continuations - 1 + c.seeds), c.length)],
    ),
    "figure6_distances": Item(
        "same text nearest (0.7–0.9), same context nearer than different contexts",
        figure6,
        lambda c: [(len(c.share) * c.count * (c.continuations - 1 + c.seeds), c.length)],
    ),
    "figure7_connectivity": Item(
        "accuracy falls along the chord, stays near 1 along the curve; length ratio ≤ 1.2",
        figure7,
        lambda c: [(c.count * c.solutions, c.length)],
    ),
    "access": Item("nothing related", access, lambda c: [(c.count * c.per_context, c.length)]),
    "attention": Item("(asked by arXiv:2602.18301)", attention, lambda c: [(c.count, c.length)]),
    "knockout": Item("(not in the paper)", knockout, lambda c: [(c.count, c.length)]),
    "seed_stability": Item("(asked by arXiv:2602.18301)", seed_stability, lambda c: [(c.count * c.copies, c.length)]),
    "failures": Item("(not in the paper)", failures, lambda c: [(c.count, n) for n in c.lengths]),
    "absorption": Item("(not in the paper)", absorption, lambda c: [(c.count, c.length)]),
    "trajectories": Item("(not in the paper)", trajectories, lambda c: [(c.count * c.copies, c.length)]),
    "control_untrained": Item(
        "(not in the paper)",
        control,
        lambda c: [(c.count * (1 + (len(c.kinds) - 1) * c.weights), n) for n in c.lengths],
    ),
    "dynamics": Item(
        "(not in the paper)",
        dynamics,
        lambda c: [(c.count * len(c.models or c.revisions), n) for n in c.lengths],
    ),
    "baseline_cramming": Item(
        "K = 1: 512 tokens teacher-forced on Llama-3.2-1B",
        cramming,
        lambda c: [(len(c.vectors) * c.count, n) for n in c.lengths],
    ),
    "sink": Item("(not in the paper)", sink, lambda c: [(8 * c.count, c.length)]),
    "vectors": Item(
        "(not in the paper; asked by Progressive Cramming)",
        vectors,
        lambda c: [
            (c.count * (2 + 3 * len(c.vectors) + (len(c.series) - 4) * len(c.dimensions)), n) for n in c.lengths
        ],
    ),
    "growth": Item(
        "(not in the paper; Progressive Cramming, autoregressive: a geometric search falls short by 18 to 28 %)",
        growth,
        lambda c: [(2 * c.count, n) for n in (*c.lengths, *range(min(c.lengths), max(c.lengths) + 1, c.stride))],
    ),
    "margins": Item(
        "(not in the paper; autoregressively ε ≥ 0.5 brings 68–70 % to 90–100 %)",
        margins,
        lambda c: [(len(c.margins) * c.count, c.length), *((2 * c.count, n) for n in c.lengths)],
    ),
    "meaning": Item(
        "(not in the paper; arXiv:2602.18301, autoregressive: an anchor costs accuracy, relations little)",
        meaning,
        lambda c: [((4 + len(c.anchors) + len(c.relations)) * c.count * c.continuations, c.length)],
    ),
    "prefix_suffix": Item(
        "(not in the paper; near to its outlook)",
        prefix_suffix,
        lambda c: [(3 * c.count, n) for n in c.lengths],
    ),
    "encoder": Item(
        "(its outlook: an encoder into this space)",
        encoder,
        lambda c: [(2 * len(c.texts) * c.fitted, n) for n in c.lengths],
    ),
}


def paper_hours(item: Item, settings: Any) -> float:
    """Hours of one A100 or H100 at the card's full size, by the paper's seconds a text."""

    def seconds(length: int) -> float:
        if length > 256:
            return SECONDS[256] * length / 256
        return float(np.interp(length, list(SECONDS), list(SECONDS.values())))

    return sum(count * seconds(length) for count, length in item.fits(settings)) / 3600
