"""`onestep fit`: losses beside the reconstruction, which give the vectors a meaning."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onestep_jax.errors import WEIGHT, UserError
from onestep_jax.fitting.optimizers import preset_of
from onestep_jax.model.decoder import Model
from onestep_jax.prototokens.auxiliary import (
    ANCHOR,
    TEACHER,
    Anchor,
    AuxiliaryLoss,
    Relational,
    anchor_points,
    size_of_e,
)
from onestep_jax.prototokens.prefixes import settle_prefix
from onestep_jax.prototokens.schemes import Scheme
from onestep_jax.prototokens.targets import prepare

_KINDS: dict[str, tuple[Callable[..., AuxiliaryLoss], str]] = {
    "anchor": (Anchor, ANCHOR),
    "relational": (Relational, TEACHER),
}
"""Option → its loss, and the name of the rows that it reads."""


class Losses(NamedTuple):
    """The arguments of `fit` of these names."""

    losses: dict[str, AuxiliaryLoss]
    context: dict[str, Any]


def add_loss_options(parser: argparse.ArgumentParser) -> None:
    """--anchor and --relational."""
    group = parser.add_argument_group(
        "meaning",
        "a loss beside the reconstruction, LAMBDA times as strong; TEACHER is minilm (Figure 5's encoder, "
        "downloaded), its folder, model (the frozen model's own hidden states), or FILE.npy with a row for each text",
    )
    group.add_argument(
        "--anchor", metavar="TEACHER:LAMBDA", help="pull each e to the teacher's embedding of its text, by their cosine"
    )
    group.add_argument(
        "--relational",
        metavar="TEACHER:LAMBDA",
        help="match the cosines of the e of a group to the teacher's; needs --group",
    )


def losses_of(
    args: argparse.Namespace, model: Model, texts: Sequence[Any], prefixes: Sequence[Any] | None, scheme: Scheme
) -> Losses:
    """The losses of the options for the texts of a fit, and what they know of them."""
    asked = asked_losses(args)
    if not asked:
        return Losses({}, {})
    from onestep_jax.texts.embeddings import text_embeddings

    size = size_of_e(scheme, model.embed_width)  # before anything is downloaded or computed
    usual = preset_of(args.preset, args.run).prefix
    settled, before = settle_prefix(scheme, model, usual, prefixes, len(texts))
    tokens = prepare(model, texts, args.length, settled, before)
    embedded = {teacher: text_embeddings(model, tokens, teacher) for teacher, _ in asked.values()}
    found = Losses({}, {})
    for name, (teacher, weight) in asked.items():
        loss, rows = _KINDS[name]
        # By its name alone: where the file lies does not make another run, and is nobody's business who gets it. Of its
        # content the identity has a hash.
        found.losses[name] = loss(weight, Path(teacher).name)
        found.context[rows] = embedded[teacher]
    if ANCHOR in found.context:
        found.context[ANCHOR] = anchor_points(found.context[ANCHOR], size)
    return found


def asked_losses(args: argparse.Namespace) -> dict[str, tuple[str, float]]:
    """Option → teacher and weight, of the losses that are asked for.

    Raises:
      UserError: for an option of another form.
    """
    return {name: _parse(name, value) for name in _KINDS if (value := getattr(args, name)) is not None}


def _parse(name: str, value: str) -> tuple[str, float]:
    """Teacher and weight."""
    teacher, colon, weight = value.rpartition(":")
    if not colon or not teacher:
        raise UserError(f"--{name} {value}: expected TEACHER:LAMBDA, such as minilm:1")
    return teacher, float(WEIGHT.parse(weight))
