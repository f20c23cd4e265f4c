"""`encode`: proto-tokens of many texts by an encoder, as results like those of a fit."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onestep_jax.devices.arithmetic import computed_with, pinned
from onestep_jax.devices.compile_cache import use_cache
from onestep_jax.devices.placement import local_devices
from onestep_jax.encoder.design import Encoder
from onestep_jax.encoder.encoding import BATCH, check_steps, ways_of
from onestep_jax.encoder.objective import Program, Way
from onestep_jax.encoder.reading import check_room
from onestep_jax.errors import MOST_TEXTS, UserError, check_kind, check_list
from onestep_jax.model.decoder import Model
from onestep_jax.model.likelihood import first_term, text_nats
from onestep_jax.prototokens.reconstruction import Decoded, decode
from onestep_jax.prototokens.schemes import OneStep
from onestep_jax.prototokens.targets import prepare
from onestep_jax.store.results import Results, TextResult, Trial
from onestep_jax.store.run import open_run
from onestep_jax.store.sessions import versions
from onestep_jax.store.storage import run_path
from onestep_jax.tokens import text_ids, texts_digest

_AT_A_TIME = 512  # texts that are recorded as one part

ENCODED, REFINED = "encoded", "refined"


def encode(
    model: Model,
    encoder: Encoder,
    texts: Sequence[str] | Sequence[Sequence[int]] | Sequence[np.ndarray],
    *,
    length: int | None = None,
    refine: int | None = None,
    run: str | Path | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Make proto-tokens of texts without optimisation, and with the encoder's learned corrections.

    Args:
      model: the frozen decoder of the encoder.
      encoder: see `load_encoder`.
      texts: strings, or lists of token ids.
      length: tokens of each text to keep; None for all. Texts longer than the encoder was trained for are encoded with
        a warning.
      refine: the most corrections of a text, by default those that the encoder has; each is one gradient evaluation. A
        text that the decode program finds exact takes no more. Else the best vectors on the way are kept: most tokens
        exact, then the lowest loss.
      run: run directory to record in; an existing one is gone on with.
      batch: texts at a time.
      progress: called with the numbers of texts done and in all.

    Returns:
      Results of status "encoded", or "refined" after corrections, in source order; `steps` are those that were made.

    Raises:
      UserError: for texts that cannot be encoded, an encoder of another model, or a run directory of another run.
    """
    use_cache()
    check_kind("what load_model returns", Model, model=model)
    check_kind("what load_encoder returns", Encoder, encoder=encoder)
    texts = check_list("strings, or lists of token ids", "texts", texts)
    MOST_TEXTS.check("batch", batch)
    if encoder.model != model.fingerprint:
        raise UserError(f"the encoder belongs to model {encoder.model}, not to {model.source!r} ({model.fingerprint})")
    steps = check_steps(encoder, refine)
    scheme = OneStep(encoder.design.arrangement, prefix=encoder.design.prefix)
    tokens = prepare(model, texts, length, scheme)
    ids = text_ids(tokens)
    check_room(model.config, encoder.design, max(map(len, tokens)))
    _warn_of_long_texts(encoder, tokens)
    work = _Work(model, encoder, scheme, steps, batch)
    if run is None:
        found = work.results(tokens, ids, range(len(ids)), progress)
        return Results(tuple(found), scheme.describe(), model.fingerprint, model.source, model.revision)
    return _recorded(work, run_path(run), tokens, ids, length, progress)


def _warn_of_long_texts(encoder: Encoder, tokens: Sequence[np.ndarray]) -> None:
    longest = max(map(len, tokens))
    if longest > encoder.design.length:
        trained = f"the encoder was trained for {encoder.design.length} tokens"
        warnings.warn(f"{trained}, and a text has {longest}: expect little of those behind", stacklevel=3)


def _recorded(
    work: _Work,
    folder: Path,
    tokens: Sequence[np.ndarray],
    ids: Sequence[str],
    length: int | None,
    progress: Callable[[int, int], None] | None,
) -> Results:
    """Encode what a run directory does not hold yet."""
    if jax.process_count() > 1:
        raise UserError("encode runs in one process; give each process of a job texts and a run directory of its own")
    model = work.model
    identity = {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "texts": texts_digest(ids),
        "length": length,
        "scheme": work.scheme.describe(),
        "encoder": work.encoder.fingerprint,
        "refine": work.steps,
    }
    settings = {
        "model": model.source,
        "revision": model.revision,
        "h_lm of the first token": first_term(model, len(work.encoder.design.prefix)),
        **computed_with(local_devices()),
        **versions(),
    }
    with open_run(folder, identity, settings, list(zip(ids, tokens, strict=True))) as run:
        there = run.recorded()
        left = [i for i, text_id in enumerate(ids) if text_id not in there]

        def told(done: int, before: int) -> None:
            if progress is not None:
                progress(len(there) + before + done, len(ids))

        for first in range(0, len(left), _AT_A_TIME):
            part = left[first : first + _AT_A_TIME]
            run.append(work.results(tokens, ids, part, lambda done, _, first=first: told(done, first)))
        return run.results()


class _Work:
    """Encodes texts of one call."""

    def __init__(self, model: Model, encoder: Encoder, scheme: OneStep, steps: int, batch: int):
        self.model, self.encoder, self.scheme, self.steps, self.batch = model, encoder, scheme, steps, batch
        self._prefix = np.asarray(encoder.design.prefix, np.int32)

    @pinned
    def results(
        self,
        tokens: Sequence[np.ndarray],
        ids: Sequence[str],
        indices: Sequence[int],
        progress: Callable[[int, int], None] | None,
    ) -> list[TextResult]:
        """Results of the texts of some indices, in that order."""
        model, prefix = self.model, self._prefix
        chosen = [tokens[i] for i in indices]
        nats = text_nats(model, chosen, prefixes=[prefix] * len(chosen))
        program, began = Program(model.network, self.encoder.design), time.perf_counter()
        made: dict[int, TextResult] = {}
        for rows, ways in ways_of(
            program, model.params, self.encoder.weights, chosen, self.steps, self.batch, progress, self._emitted
        ):
            spent, points = time.perf_counter() - began, sum(len(way.nats_K) for way in ways)
            for row, way in zip(rows, ways, strict=True):
                about = {"index": indices[row], "text_id": ids[indices[row]], "tokens": chosen[row], "prefix": prefix}
                known = np.full(len(chosen[row]) - len(nats[row].nats), np.nan, np.float32)
                about |= {"nats": np.concatenate([known, nats[row].nats]), "h_lm": nats[row].total}
                made[row] = self._result(about, way, spent * len(way.nats_K) / points)
            began = time.perf_counter()
        results = [made[row] for row in range(len(chosen))]
        decoded = decode(model, results, scheme=self.scheme)
        return [_settled(text, one) for text, one in zip(results, decoded, strict=True)]

    def _emitted(self, tokens_RT: np.ndarray, z_RLD: np.ndarray) -> np.ndarray:
        """The ids (R, T) that the decode program makes of vectors; in bfloat16 a correction rounds elsewhere."""
        nothing = np.zeros(1, np.float32)
        about = {"index": 0, "text_id": "", "prefix": self._prefix, "nats": nothing, "h_lm": 0.0}
        ways = [Way(z_LD[None], nothing, tokens_T[None]) for tokens_T, z_LD in zip(tokens_RT, z_RLD, strict=True)]
        texts = [self._result(about | {"tokens": way.predicted_KT[0]}, way, 0.0) for way in ways]
        return np.stack([one.tokens for one in decode(self.model, texts, scheme=self.scheme)])

    def _result(self, about: Mapping[str, Any], way: Way, seconds: float) -> TextResult:
        """The best vectors on the way of one text."""
        hits_KT, leaves = way.predicted_KT == about["tokens"], self.encoder.design.leaf_names
        accuracy_K = hits_KT.mean(axis=1)
        steps = len(way.nats_K) - 1
        best = max(range(steps + 1), key=lambda k: (accuracy_K[k], -way.nats_K[k]))
        first_hit = np.where(hits_KT.any(axis=0), hits_KT.argmax(axis=0), -1)
        status = REFINED if steps else ENCODED
        loss, accuracy = float(way.nats_K[best]), float(accuracy_K[best])
        trace = np.stack([np.arange(steps + 1), way.nats_K, accuracy_K], axis=1).astype(float)
        trial = Trial(
            seed=0,
            status=status,
            accuracy=accuracy,
            loss=loss,
            steps=steps,
            best_step=best,
            trace=trace,
            first_hit=first_hit.astype(np.int32),
        )
        return TextResult(
            **about,
            # Copies, or a result would keep the vectors of its whole group alive.
            vectors={name: row.copy() for name, row in zip(leaves, way.z_KLD[best], strict=True)},
            predicted=way.predicted_KT[best].astype(np.int32),
            accuracy=accuracy,
            c_tokens=int(hits_KT[best].sum()),
            loss=loss,
            steps=steps,
            best_step=best,
            seconds=seconds,
            seed=0,
            status=status,
            trials=(trial,),
        )


def _settled(text: TextResult, decoded: Decoded) -> TextResult:
    """A result with what the decode program makes of its vectors, which `verify` will compare."""
    correct = int((decoded.tokens == text.tokens).sum())
    accuracy = correct / len(text.tokens)
    found = {"predicted": decoded.tokens.copy(), "c_tokens": correct, "accuracy": accuracy, "margin": decoded.margin}
    return dataclasses.replace(text, **found, trials=(dataclasses.replace(text.trials[0], accuracy=accuracy),))
