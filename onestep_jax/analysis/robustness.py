"""What stored vectors bear: Gaussian noise on them, another dtype, batch or attention kernel, PyTorch.

A token is right by its lead, the logits between it and the runner-up. Whatever moves logits by more than the least lead
of a text, its margin, may lose a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onestep_jax.devices.arithmetic import pinned
from onestep_jax.devices.placement import local_devices
from onestep_jax.errors import MOST_TEXTS, SIZE, Real, UserError, check_known, one_line
from onestep_jax.fitting.sizing import check_attention, check_kernel
from onestep_jax.model.decoder import Model
from onestep_jax.model.gguf import is_gguf
from onestep_jax.model.hub import locate
from onestep_jax.model.pytorch import import_torch, load_torch
from onestep_jax.model.untrained import PREFIX
from onestep_jax.prototokens.assembly import input_rows
from onestep_jax.prototokens.prefixes import prefix_rows
from onestep_jax.prototokens.reconstruction import BATCH, check_model, decode
from onestep_jax.prototokens.schemes import from_description
from onestep_jax.store.export import InputRows
from onestep_jax.store.results import Results, TextResult
from onestep_jax.tokens import id_words

DRAWS, SHARE = 32, 0.9  # noisy copies of a text, and how many of them must give every token
LADDER = 2.0 ** (np.arange(-48, 1) / 4)  # σ that are tried, from 1/4096 to 1 in steps of 19 %
TEXTS_AT_A_TIME = 16
TORCH_ATTENTION = {"plain": "eager", "sdpa": "sdpa"}
"""What --attention means in PyTorch → transformers' `attn_implementation`."""

Told = Callable[[int, int], None]


# --- noise ---


@pinned
def survival(
    model: Model, results: Results, sigmas: np.ndarray, *, draws: int = DRAWS, batch: int = BATCH
) -> np.ndarray:
    """Share of noisy copies of each text, (texts,), that still give every token in one pass.

    Each vector z becomes z + σ · rms(z) · n, with n from N(0, 1) and rms(z) the root mean square of its components. The
    n of a copy are a function of the text's identity and the number of the copy alone, and the same for every σ.

    Args:
      model: the model that the vectors were fitted on.
      results: of a fit, or read from a run directory.
      sigmas: (texts,) σ of each text.
      draws: noisy copies of a text.
      batch: texts in a forward pass.

    Raises:
      UserError: for another model, or numbers out of range.
    """
    SIZE.check("draws", draws)
    wordless = dataclasses.replace(model, tokenizer=None)  # no strings are made of what comes out
    shares: list[float] = []
    for first in range(0, len(results), TEXTS_AT_A_TIME):
        pairs = zip(results.texts[first:][:TEXTS_AT_A_TIME], sigmas[first:], strict=False)
        noisy = tuple(_noisy(text, sigma, draw) for text, sigma in pairs for draw in range(draws))
        exact = [one.accuracy == 1 for one in decode(wordless, dataclasses.replace(results, texts=noisy), batch=batch)]
        shares += np.reshape(exact, (-1, draws)).mean(axis=1).tolist()
    return np.array(shares)


def _noisy(text: TextResult, sigma: float, draw: int) -> TextResult:
    rng = np.random.default_rng([*id_words(text.text_id, 0).tolist(), draw])
    vectors = {}
    for name in sorted(text.vectors):
        vector = np.asarray(text.vectors[name], np.float32)
        rms = np.sqrt(np.mean(np.square(vector, dtype=np.float64), axis=-1, keepdims=True))
        vectors[name] = (vector + sigma * rms * rng.standard_normal(vector.shape)).astype(np.float32)
    return dataclasses.replace(text, vectors=vectors)


def noise_radii(
    model: Model,
    results: Results,
    *,
    draws: int = DRAWS,
    share: float = SHARE,
    batch: int = BATCH,
    progress: Told | None = None,
) -> np.ndarray:
    """The σ of Gaussian noise that each text survives, (texts,), found by bisection over `LADDER`.

    At this σ at least `share` of the copies of `survival` give every token, and at the next one of the ladder fewer do,
    unless it is the last. 0: not even the first does. NaN: the text is not exact without noise. The bisection takes
    6 rounds of `draws` forward passes of each text.

    Args:
      model, results, draws, batch: see `survival`.
      share: of the copies that must give every token, above 0.
      progress: called with the numbers of texts done and in all.
    """
    Real(0, 1, above=True).check("share", share)
    radii = []
    for first in range(0, len(results), TEXTS_AT_A_TIME):
        some = dataclasses.replace(results, texts=results.texts[first:][:TEXTS_AT_A_TIME])
        radii += _bisected(model, some, draws, share, batch)
        if progress is not None:
            progress(len(radii), len(results))
    return np.array(radii)


def _bisected(model: Model, results: Results, draws: int, share: float, batch: int) -> list[float]:
    """Radii of a few texts: rung `low` is survived and rung `high` is not."""
    exact = np.array([one.accuracy == 1 for one in decode(model, results, batch=batch)])
    low, high = np.full(len(results), -1), np.full(len(results), len(LADDER))
    while len(open_ := np.flatnonzero(exact & (high - low > 1))):
        middle = (low[open_] + high[open_]) // 2
        texts = tuple(results[int(i)] for i in open_)
        found = survival(model, dataclasses.replace(results, texts=texts), LADDER[middle], draws=draws, batch=batch)
        low[open_] = np.where(found >= share, middle, low[open_])
        high[open_] = np.where(found >= share, high[open_], middle)
    return np.where(exact, np.where(low < 0, 0.0, LADDER[low]), np.nan).tolist()


# --- elsewhere ---


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """How vectors are decoded otherwise than where they were fitted.

    Attributes:
      dtype: of weights and activations.
      slots: texts in a forward pass.
      attention: "plain" or a fused kernel; of PyTorch a key of `TORCH_ATTENTION`, or "own" for transformers' choice.
      backend: "jax" or "torch".
    """

    dtype: str
    slots: int = BATCH
    attention: str = "plain"
    backend: str = "jax"

    def __str__(self) -> str:
        named = {"plain": "plain attention", "own": "attention of its own choice"}
        attention = named.get(self.attention, f"attention {self.attention}")
        where = {"jax": "JAX", "torch": "PyTorch"}[self.backend]
        return f"{where}, {self.dtype}, {self.slots} texts at a time, {attention}"


@dataclasses.dataclass(frozen=True)
class Portability:
    """What of a run's texts comes out elsewhere.

    Attributes:
      way: elsewhere.
      texts: decoded.
      exact: texts of which every token came out.
      recorded: texts that are exact in the run.
      tokens: of all texts.
      tokens_exact: that came out.
      lost: text_id of each text that is exact in the run alone.
    """

    way: Elsewhere
    texts: int
    exact: int
    recorded: int
    tokens: int
    tokens_exact: int
    lost: list[str]


@pinned
def portability(
    model: Model,
    results: Results,
    way: Elsewhere,
    *,
    source: str | Path = "",
    revision: str | None = None,
    progress: Told | None = None,
) -> Portability:
    """Decode every text elsewhere, and count what comes out of it.

    Args:
      model: that the vectors were fitted on; for JAX in the dtype of `way`.
      results: of a fit, or read from a run directory.
      way: elsewhere.
      source, revision: of the checkpoint, for PyTorch; by default those of `model`.
      progress: called with the numbers of texts done and in all.

    Raises:
      UserError: for another model, a kernel that does not run here, or a checkpoint that PyTorch cannot load.
    """
    check_model(model, results)
    check_known("backend", [way.backend], ["jax", "torch"])
    MOST_TEXTS.check("slots", way.slots)
    if not len(results):
        made = []
    elif way.backend == "torch":
        given = (source, revision) if source else (model.source, model.revision)
        made = _in_torch(model, results, way, *given, progress)
    else:
        made = _in_jax(model, results, way, progress)
    right = [int(np.sum(ids == text.tokens)) for ids, text in zip(made, results, strict=True)]
    exact = [count == len(text.tokens) for count, text in zip(right, results, strict=True)]
    lost = [text.text_id for text, here in zip(results, exact, strict=True) if text.accuracy == 1 and not here]
    tokens = sum(len(text.tokens) for text in results)
    return Portability(way, len(results), sum(exact), results.solved, tokens, sum(right), lost)


def check_way(way: Elsewhere) -> None:
    """Refuse a way that this machine, or nobody, has; no model is needed for that.

    Raises:
      UserError: for an unknown attention, a kernel of another kind of device, or PyTorch that is not installed.
    """
    if way.backend == "jax":
        check_kernel(way.attention, local_devices()[0])
        return
    check_known("attention of PyTorch", [way.attention], ["own", *TORCH_ATTENTION])
    import_torch("leave --backend torch away")


def _in_jax(model: Model, results: Results, way: Elsewhere, progress: Told | None) -> list[np.ndarray]:
    prefix = prefix_rows([text.prefix for text in results])
    if way.attention != "plain" and prefix:
        raise UserError(f"attention {way.attention} cannot stand behind a prefix, which this run has; use plain")
    model = dataclasses.replace(model, attention=way.attention, tokenizer=None)
    longest = max(len(text.tokens) for text in results) + from_description(results.scheme).extra
    check_attention(model.network, model.dtype, longest, local_devices()[0])
    return [one.tokens for one in decode(model, results, batch=way.slots, progress=progress)]


def _in_torch(
    model: Model, results: Results, way: Elsewhere, source: str | Path, revision: str | None, progress: Told | None
) -> list[np.ndarray]:
    """What transformers' own model makes of the input vectors, as docs/elsewhere.md does it."""
    check_way(way)
    torch = import_torch("leave --backend torch away")
    folder = None if str(source).startswith(PREFIX) else locate(source, revision)
    if folder is None or is_gguf(folder):
        what = "a model of untrained weights" if folder is None else "a GGUF file"
        raise UserError(f"{source}: {what}, which PyTorch does not load as the run did; expected a checkpoint folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, attention = getattr(torch, way.dtype), TORCH_ATTENTION.get(way.attention)
    try:
        theirs = load_torch(folder, dtype, device, attention)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source}: transformers does not load it in PyTorch ({one_line(error)})") from error
    rows, made = input_rows(model, results), []
    for first in range(0, len(rows), way.slots):
        some, texts = rows[first:][: way.slots], results.texts[first:][: way.slots]
        made += _torch_argmax(torch, theirs, dtype, device, some, [len(text.tokens) for text in texts])
        if progress is not None:
            progress(len(made), len(rows))
    return made


def _torch_argmax(
    torch: Any, theirs: Any, dtype: Any, device: str, rows: Sequence[InputRows], counts: Sequence[int]
) -> list[np.ndarray]:
    """Argmax ids of some texts; padding stands behind, where a causal model does not look."""
    longest = max(len(row.vectors_PD) for row in rows)
    x_BPD = np.stack([np.pad(row.vectors_PD, ((0, longest - len(row.vectors_PD)), (0, 0))) for row in rows])
    with torch.inference_mode():
        given = torch.from_numpy(x_BPD).to(device=device, dtype=dtype)
        ids_BP = theirs(inputs_embeds=given, use_cache=False).logits.argmax(-1).cpu().numpy()
    return [ids_P[row.first :][:count] for ids_P, row, count in zip(ids_BP, rows, counts, strict=True)]
