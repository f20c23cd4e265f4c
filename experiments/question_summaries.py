"""What the recorded tables of the cards that the paper does not have say, in a line; for `summaries.ITEMS`."""

from __future__ import annotations

import numpy as np
from bounds import Tables, held, setting
from findings import pick
from question_findings import behind_prefixes, falls_short, of_dynamics, of_growth, of_vectors


def failures(tables: Tables) -> str:
    said = []
    for row in tables["failures_lengths"]:
        said.append(f"{float(row['accuracy mean']):.2f} at N = {row['length']}")
    longest = tables["failures_lengths"][-1]["length"]
    found = pick(tables["failures_association"], length=longest)
    aucs = ", ".join(f"{row['by']} {float(row['auc']):.2f}" for row in found if row["auc"] not in ("", "nan"))
    return f"accuracy {', '.join(said)}; AUC for being wrong at N = {longest}: {aucs}"


def absorption(tables: Tables) -> str:
    (row,) = tables["absorption"]
    return (
        f"rank correlation of evaluations with nats {float(row['rank correlation with nats']):.2f}, with position "
        f"{float(row['with position']):.2f}; median {float(row['evaluations median']):.0f} evaluations a token"
    )


def trajectories(tables: Tables) -> str:
    share = np.mean([float(row["displacement / length"]) for row in tables["trajectories"]])
    plane = np.mean([float(row["variance of axis 1"]) + float(row["variance of axis 2"])
                     for row in tables["trajectories_planes"]])  # fmt: skip
    walks = np.mean([float(row["axis 1 of random walks"]) + float(row["axis 2 of random walks"])
                     for row in tables["trajectories_planes"]])  # fmt: skip
    return f"displacement/length {share:.2f}; the plane holds {plane:.0%} of the variance, of random walks {walks:.0%}"


def control(tables: Tables) -> str:
    rows = tables["control_untrained"]
    longest = max(int(row["length"]) for row in rows)
    cells = (
        f"{row['weights']}{_of_part(row)} {float(row['accuracy mean']):.2f} ({float(row['steps mean']):.0f} steps)"
        for row in pick(rows, length=longest)
    )
    return f"accuracy at N = {longest}: {', '.join(cells)}"


def _of_part(row: dict[str, str]) -> str:
    """Which part of a model has these weights; nothing of a whole model, or in tables without parts."""
    part = row.get("part", "all")
    return "" if part in ("all", "none") else f" {part}"


def dynamics(tables: Tables) -> str:
    rows = tables["dynamics"]
    steps = [row for row in rows if row["step"]]
    chosen = [steps[0], steps[len(steps) // 2], steps[-1]] if len(steps) > 3 else rows
    cells = (
        f"{'step ' + row['step'] if row['step'] else row['checkpoint']} {of_dynamics(tables, row)} tokens "
        f"({float(row['evaluations mean']):.0f} evaluations, {float(row['nats per token']):.2f} nats a token)"
        for row in chosen
    )
    return f"capacity by checkpoint: {', '.join(cells)}"


def knockout(tables: Tables) -> str:
    rows = tables["knockout"]
    (kept,) = pick(rows, hidden="nothing")
    said = [f"nothing hidden {float(kept['accuracy mean']):.2f}"]
    for hidden in dict.fromkeys(row["hidden"] for row in rows if row["hidden"] != "nothing"):
        one = pick(rows, hidden=hidden, way="one")
        worst = min(one, key=lambda row: float(row["accuracy mean"]))
        whole = pick(rows, hidden=hidden, way="up to")[-1]
        harmless = sum(float(row["accuracy mean"]) >= 0.99 * float(kept["accuracy mean"]) for row in one)
        said.append(
            f"{hidden} hidden from m in one layer: least {float(worst['accuracy mean']):.2f} (layer {worst['first']}), "
            f"no loss in {harmless} of {len(one)} layers, in all layers {float(whole['accuracy mean']):.2f}"
        )
    return f"accuracy, {'; '.join(said)}"


def cramming(tables: Tables) -> str:
    cells = (
        f"K = {row['vectors']}, N = {row['length']}: {float(row['forced mean']):.2f} forced, "
        f"{float(row['generated mean']):.2f} generated"
        for row in tables["cramming"]
    )
    return "; ".join(cells) + _budget(tables)


def sink(tables: Tables) -> str:
    rows = tables["sink"]
    layers = max(int(row["layer"]) for row in rows)
    found = []
    for kind in ("trained", "permuted"):
        own = pick(rows, weights=kind, prefix="none")
        longest = max(float(row["norm at 0 / later"]) for row in own)
        drawn = np.mean([float(row["weight on 0"]) for row in own if int(row["layer"]) < layers])
        found.append(f"{kind}: first hidden states up to {longest:.3g} times as long, drawing {drawn:.0%} of attention")
    cells = (
        f"{row['e']} e, {row['prefix']}: {row['solved']} of {row['texts']}, first token {float(row['first token']):.2f}"
        for row in pick(tables["sink_fits"], weights="trained")
    )
    return f"{'; '.join(found)}. Fits, trained: {'; '.join(cells)}"


def _budget(tables: Tables) -> str:
    steps = setting(tables, "steps")
    return f"; within {steps} evaluations a fit" if steps else ""


def growth(tables: Tables) -> str:
    cells = (
        f"{row['way']} {of_growth(tables, row['way'])} tokens "
        f"({held(row, 'nats mean').said(0)} nats) in {float(row['evaluations']):,.0f} evaluations"
        for row in tables["growth"]
    )
    least, most = falls_short(of_growth(tables, "geometric"), of_growth(tables, "growth"))
    short = f"{least:.0%} of the tokens" if least == most else "a share that the longest length tried leaves open"
    return f"the geometric search falls short of growth by {short}. Means: {'; '.join(cells)}"


def prefix_suffix(tables: Tables) -> str:
    nats = behind_prefixes(tables, "nats mean")
    cells = (f"{name} {held} ({nats[name].said(0)} nats)" for name, held in behind_prefixes(tables).items())
    return f"mean capacity in tokens behind {', '.join(cells)}"


def encoder(tables: Tables) -> str:
    said = []
    for source in dict.fromkeys(row["texts"] for row in tables["encoder"]):
        own = pick(tables["encoder"], texts=source)
        last = max(int(row["corrections"]) for row in own)
        cells = (
            f"{float(row['accuracy']):.2f} at N = {row['length']}" for row in own if int(row["corrections"]) == last
        )
        said.append(f"{source}: {', '.join(cells)} of the tokens after {last} corrections")
    cells = (f"{float(row['ratio']):.2f} ({row['texts']}, N = {row['length']})" for row in tables["encoder_start"])
    return f"{'; '.join(said)}; evaluations of a fit from its start over those from random: {', '.join(cells)}"


def vectors(tables: Tables) -> str:
    said = []
    for series in dict.fromkeys(row["series"] for row in tables["vectors"]):
        own = pick(tables["vectors"], series=series)
        cells = (f"{row['number']}: {of_vectors(tables, row)}" for row in own)
        nats = f"{of_vectors(tables, own[-1], 'nats mean').said(0)} nats"
        control = series in ("plain", "memory")
        said.append(f"{series} {of_vectors(tables, own[0])}, {nats}" if control else f"{series} {', '.join(cells)}")
    return f"mean tokens by number of vectors or dimensions: {'; '.join(said)}{_budget(tables)}"


def margins(tables: Tables) -> str:
    def share(row: dict[str, str], column: str) -> str:
        return f"{float(row[column]):.0%}" if row[column] else "–"

    cells = (
        f"ε = {row['margin']}: {row['solved']} of {row['texts']} solved for {float(row['times ε = 0']):.1f} of the "
        f"evaluations, {share(row, 'exact in bfloat16')} exact in bfloat16, {share(row, 'exact in PyTorch')} in PyTorch"
        for row in tables["margins"]
    )
    capacity = (f"{held(row)} at ε = {row['margin']}" for row in tables["margins_capacity"])
    return f"{'; '.join(cells)}; mean capacity in tokens {', '.join(capacity)}"


def meaning(tables: Tables) -> str:
    rows = tables["meaning"]
    said = []
    for way, begin, column in (("anchor", "none", "correlation"), ("relational", "group", "correlation in groups")):
        own = [*pick(rows, way=begin), *pick(rows, way=way, teacher="true")]
        cells = (
            f"λ = {row['weight']} {float(row[column]):.2f} ({float(row['exact']):.0%} exact, "
            f"{float(row['evaluations']):.0f} evaluations)"
            for row in own
        )
        said.append(f"{way}, {column}: {', '.join(cells)}")
    (shuffled,) = pick(rows, way="anchor", teacher="shuffled")
    given, true = float(shuffled["correlation with what was given"]), float(shuffled["correlation"])
    said.append(f"a shuffled teacher as anchor: {given:.2f} with what was given, {true:.2f} with the true one")
    return f"rank correlation of distances with the teacher's; {'; '.join(said)}"
