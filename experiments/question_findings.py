"""Which sentences of the paper's successors, and which likely guesses, hold on each model; see `findings`.

A claim is judged from the tables of one card and says by how much. Where a text that reached the longest length tried
could turn the answer, or two ways tie on the tried lengths, it cannot be told from these tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bounds import Held, Rows, Tables, every, held, less, shortest, unheld, unheld_at_most
from findings import Claim, Verdict, number, pick

SHORT = 0.18  # Progressive Cramming: a geometric search falls short by 18 to 28 % of the tokens
MARGIN = 0.5  # in logits, from which on 90 to 100 % of the solutions are exact elsewhere (Progressive Cramming)
DEARER = 1.25  # times as many evaluations: what is said to cost little costs less than that


def of_growth(tables: Tables, way: str) -> Held:
    """Mean capacity of a way of the card on growth."""
    (row,) = pick(tables["growth"], way=way)
    return held(row, below=unheld(pick(tables["growth_texts"], way=way)), shortest=shortest(tables))


def falls_short(one: Held, other: Held) -> tuple[float, float]:
    """By which share one capacity is less than another, at least and at most."""
    return 1 - one.high / other.low, 1 - one.low / other.high


def _underestimates(tables: Tables) -> Verdict:
    geometric, fresh, grown = (of_growth(tables, way) for way in ("geometric", "every, fresh", "growth"))
    least, most = falls_short(geometric, grown)
    said = f"{geometric} against {grown} tokens"
    if least == most:
        said += f", short by {least:.1%}"
    return least >= SHORT or (None if most >= SHORT else False), f"{said}; every length from random vectors {fresh}"


def _warm_alone(tables: Tables) -> Verdict:
    warm, grown = (of_growth(tables, way) for way in ("geometric, warm", "growth"))
    work = [number(tables["growth"], "evaluations", way=way) for way in ("geometric, warm", "growth")]
    said = f"{warm} against {grown} tokens, for {work[0] / work[1]:.2f} of the evaluations"
    return every([less(grown, warm), work[0] < work[1]]), said


def of_vectors(tables: Tables, row: Mapping[str, str], column: str = "tokens mean") -> Held:
    """Mean capacity of a scheme of the card on vectors; the shortest length bounds tokens, and no nats."""
    own = pick(tables["vectors_texts"], series=row["series"], number=row["number"])
    return held(row, column, below=unheld(own), shortest=shortest(tables) if column.startswith("tokens") else 0)


def _more(series: str) -> Callable[[Tables], Verdict]:
    def judge(tables: Tables) -> Verdict:
        (plain,) = pick(tables["vectors"], series="plain")
        one = of_vectors(tables, plain)
        found = {row["number"]: of_vectors(tables, row) for row in pick(tables["vectors"], series=series)}
        said = ", ".join(f"{count}: {capacity}" for count, capacity in found.items())
        return every(less(one, capacity) for capacity in found.values()), f"mean tokens of one {one}, of {said}"

    return judge


def _fewer_dimensions(tables: Tables) -> Verdict:
    (plain,) = pick(tables["vectors"], series="plain")
    one = of_vectors(tables, plain)
    rows = [row for row in tables["vectors"] if row["series"] in ("fixed", "own", "shared")]
    best = max(rows, key=lambda row: float(row["tokens mean"]))
    most = max(of_vectors(tables, row).high for row in rows)
    said = f"at most {of_vectors(tables, best)} ({best['series']}, {best['number']} dimensions) against {one} tokens"
    if float(best["tokens mean"]) >= 3 * one.high:
        return True, said
    return (False if most < 3 * one.low else None), said


def _margin_carries_over(tables: Tables) -> Verdict:
    rows = [row for row in tables["margins"] if float(row["margin"]) >= MARGIN]
    said = ", ".join(f"{float(row['exact in bfloat16']):.0%} at ε = {row['margin']}" for row in rows)
    without = number(tables["margins"], "exact in bfloat16", margin="0")
    return all(
        float(row["exact in bfloat16"]) >= 0.9 for row in rows
    ), f"exact in bfloat16 {without:.0%} without, {said}"


def _anchor_costs(tables: Tables) -> Verdict:
    none = number(tables["meaning"], "accuracy mean", way="none")
    worst = min(float(row["accuracy mean"]) for row in pick(tables["meaning"], way="anchor", teacher="true"))
    return worst < none - 0.01, f"least accuracy with an anchor {worst:.3f}, without {none:.3f}"


def _relations_are_cheap(tables: Tables) -> Verdict:
    (none,) = pick(tables["meaning"], way="group")
    rows = pick(tables["meaning"], way="relational", teacher="true")
    accuracy = min(float(row["accuracy mean"]) for row in rows)
    times = max(float(row["evaluations"]) for row in rows) / float(none["evaluations"])
    said = f"least accuracy {accuracy:.3f}, at most {times:.2f} times the evaluations of groups without"
    return accuracy >= float(none["accuracy mean"]) - 0.01 and times <= DEARER, said


def of_control(tables: Tables, weights: str, part: str) -> Held:
    """Mean capacity of a model of the untrained control."""
    models, lengths = (
        [{"part": "none" if row["weights"] == "trained" else "all"} | row for row in tables[name]]
        for name in ("control_untrained_models", "control_untrained")
    )
    (row,) = pick(models, weights=weights, part=part)
    return _of_lengths(row, pick(lengths, weights=weights, part=part))


def of_dynamics(tables: Tables, row: Mapping[str, str]) -> Held:
    """Mean capacity of a checkpoint of the card on dynamics."""
    return _of_lengths(row, pick(tables["dynamics_lengths"], checkpoint=row["checkpoint"]))


def _of_lengths(row: Mapping[str, str], lengths: Rows) -> Held:
    least = min(int(one["length"]) for one in lengths)
    return held(row, "c_tokens mean", "at longest", below=unheld_at_most(lengths), shortest=least)


def _holds_less(kind: str, part: str = "all") -> Callable[[Tables], Verdict]:
    """Whether these weights, of the whole model or of a part alone, cost capacity."""

    def judge(tables: Tables) -> Verdict:
        trained, other = of_control(tables, "trained", "none"), of_control(tables, kind, part)
        longest = max(int(row["length"]) for row in tables["control_untrained"])
        return less(other, trained), f"mean tokens {other} against {trained}, the longest length tried {longest}"

    return judge


def _of_training(tables: Tables) -> Verdict:
    first, *_, last = [row for row in tables["dynamics"] if row["step"]]
    tokens = [of_dynamics(tables, row) for row in (first, last)]
    said = f"{tokens[0]} tokens at step {first['step']}, {tokens[1]} at step {last['step']}"
    return less(*tokens), said


def _some_layers_need_no_e(tables: Tables) -> Verdict:
    kept = number(tables["knockout"], "accuracy mean", hidden="nothing")
    one = [float(row["accuracy mean"]) for row in pick(tables["knockout"], hidden="e", way="one")]
    free = sum(accuracy >= 0.99 * kept for accuracy in one)
    return free > 0, f"no loss in {free} of {len(one)} layers; accuracy {max(one):.2f} without the one needed least"


def behind_prefixes(tables: Tables, column: str = "tokens mean") -> dict[str, Held]:
    """Mean capacity behind each prefix."""
    rows = {row["prefix"]: row for row in tables["prefix_suffix"]}
    unknown = {name: unheld(pick(tables["prefix_suffix_texts"], prefix=name)) for name in rows}
    least = shortest(tables) if column.startswith("tokens") else 0
    capped = "texts at the longest length"
    return {name: held(row, column, capped, below=unknown[name], shortest=least) for name, row in rows.items()}


def _own_prefix_helps(tables: Tables) -> Verdict:
    found = behind_prefixes(tables)
    said = "mean tokens behind " + ", ".join(f"{name} {capacity}" for name, capacity in found.items())
    return every(less(found[name], found["true"]) for name in ("other", "bos")), said


def _surprise_costs(tables: Tables) -> Verdict:
    (row,) = tables["absorption"]
    rho = float(row["position taken off"])
    return rho > 0.1, f"rank correlation {rho:.2f} with position taken off, {row['tokens']} tokens"


def _collapses(tables: Tables) -> Verdict:
    rows = tables["encoder"]
    length = max(int(row["length"]) for row in rows if row["texts"] == "random")
    last = max(int(row["corrections"]) for row in rows)
    found = {row["texts"]: float(row["accuracy"]) for row in pick(rows, length=length, corrections=last)}
    best = max(value for name, value in found.items() if name != "random")
    said = f"{found['random']:.2f} of the tokens of random text, {best:.2f} of held-out text, N = {length}"
    return found["random"] < best / 2, said


QUESTIONS = (
    Claim("growth", "Progressive Cramming: a geometric search falls short of growth by 18 % or more", _underestimates),
    Claim("growth", "The last solution as a start is what helps, not each length", _warm_alone),
    Claim("vectors", "Several `e` hold more than one", _more("e")),
    Claim("vectors", "Several `m` in turn hold more than one", _more("m")),
    Claim("vectors", "Progressive Cramming: an `e` of few dimensions holds three times as much", _fewer_dimensions),
    Claim("margins", "Progressive Cramming: a lead of 0.5 carries 90 % over to bfloat16", _margin_carries_over),
    Claim("meaning", "arXiv:2602.18301: an anchor costs accuracy", _anchor_costs),
    Claim("meaning", "arXiv:2602.18301: relations cost little", _relations_are_cheap),
    Claim("control_untrained", "Trained weights in random order hold less than trained ones", _holds_less("permuted")),
    Claim("control_untrained", "Fresh weights hold less than trained ones", _holds_less("init")),
    Claim("control_untrained", "Fresh weights in the head alone cost capacity", _holds_less("init", "head")),
    Claim("control_untrained", "Fresh weights in the attention alone cost capacity", _holds_less("init", "attention")),
    Claim("control_untrained", "Fresh weights in the MLPs alone cost capacity", _holds_less("init", "mlp")),
    Claim("dynamics", "Capacity grows with training", _of_training),
    Claim("knockout", "Some layers do without seeing `e`", _some_layers_need_no_e),
    Claim("prefix_suffix", "More tokens fit behind the text's own beginning", _own_prefix_helps),
    Claim("absorption", "A surprising token costs more evaluations", _surprise_costs),
    Claim("encoder", "Encoders collapse on random tokens", _collapses),
)  # fmt: skip
