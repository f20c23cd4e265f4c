"""Which sentences of the paper's successors, and which likely guesses, hold on each model; see `findings`.

A claim is judged from the tables of one card and says by how much. Where all ways reach the longest length that was
tried, it cannot be told from these tables.
"""

from __future__ import annotations

from collections.abc import Callable

from findings import Claim, Tables, Verdict, number, pick

SHORT = 0.18  # Progressive Cramming: a geometric search falls short by 18 to 28 % of the tokens
MARGIN = 0.5  # in logits, from which on 90 to 100 % of the solutions are exact elsewhere (Progressive Cramming)
DEARER = 1.25  # times as many evaluations: what is said to cost little costs less than that


def _underestimates(tables: Tables) -> Verdict:
    short = number(tables["growth"], "short of growth, tokens", way="geometric")
    fresh = number(tables["growth"], "short of growth, tokens", way="every, fresh")
    return short >= SHORT, f"short by {short:.1%} of the tokens, every length from random vectors by {fresh:.1%}"


def _warm_alone(tables: Tables) -> Verdict:
    (warm,), (grown,) = (pick(tables["growth"], way=way) for way in ("geometric, warm", "growth"))
    tokens = [float(row["tokens mean"]) for row in (warm, grown)]
    work = [float(row["evaluations"]) for row in (warm, grown)]
    said = f"{tokens[0]:.1f} against {tokens[1]:.1f} tokens, for {work[0] / work[1]:.2f} of the evaluations"
    return tokens[0] >= tokens[1] and work[0] < work[1], said


def _more(series: str) -> Callable[[Tables], Verdict]:
    def judge(tables: Tables) -> Verdict:
        one = number(tables["vectors"], "tokens mean", series="plain")
        rows = pick(tables["vectors"], series=series)
        said = ", ".join(f"{row['number']}: {float(row['tokens mean']):.1f}" for row in rows)
        return all(float(row["tokens mean"]) > one for row in rows), f"mean tokens of one {one:.1f}, of {said}"

    return judge


def _fewer_dimensions(tables: Tables) -> Verdict:
    plain = number(tables["vectors"], "tokens mean", series="plain")
    rows = [row for row in tables["vectors"] if row["series"] in ("fixed", "own", "shared")]
    best = max(rows, key=lambda row: float(row["tokens mean"]))
    said = f"at most {float(best['tokens mean']):.1f} ({best['series']}, {best['number']} dimensions)"
    return float(best["tokens mean"]) >= 3 * plain, f"{said} against {plain:.1f} tokens"


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


def _holds_less(kind: str, part: str = "all") -> Callable[[Tables], Verdict]:
    """Whether these weights, of the whole model or of a part alone, cost capacity."""

    def judge(tables: Tables) -> Verdict:
        rows = [{"part": "all"} | row for row in tables["control_untrained_models"]]
        trained = number(rows, "c_tokens mean", weights="trained")
        other = number(rows, "c_tokens mean", weights=kind, part=part)
        longest = max(int(row["length"]) for row in tables["control_untrained"])
        if trained == other == longest:
            return None, f"all reach the longest length, {longest} tokens"
        return other < trained, f"mean tokens {other:.1f} against {trained:.1f}, of at most {longest}"

    return judge


def _of_training(tables: Tables) -> Verdict:
    first, *_, last = [row for row in tables["dynamics"] if row["step"]]
    tokens = [float(row["c_tokens mean"]) for row in (first, last)]
    said = f"{tokens[0]:.1f} tokens at step {first['step']}, {tokens[1]:.1f} at step {last['step']}"
    return tokens[1] > tokens[0], said


def _some_layers_need_no_e(tables: Tables) -> Verdict:
    kept = number(tables["knockout"], "accuracy mean", hidden="nothing")
    one = [float(row["accuracy mean"]) for row in pick(tables["knockout"], hidden="e", way="one")]
    free = sum(accuracy >= 0.99 * kept for accuracy in one)
    return free > 0, f"no loss in {free} of {len(one)} layers; accuracy {max(one):.2f} without the one needed least"


def _own_prefix_helps(tables: Tables) -> Verdict:
    rows = {row["prefix"]: row for row in tables["prefix_suffix"]}
    tokens = {name: float(row["tokens mean"]) for name, row in rows.items()}
    best = max(("other", "bos"), key=lambda name: tokens[name])
    said = "mean tokens behind " + ", ".join(f"{name} {value:.1f}" for name, value in tokens.items())
    if all(rows[name]["texts at the longest length"] == rows[name]["texts"] for name in ("true", best)):
        return None, f"{said}, the longest length tried"
    return tokens["true"] > tokens[best], said


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
