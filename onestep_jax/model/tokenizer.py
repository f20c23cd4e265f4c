"""The tokenizer of a checkpoint, by transformers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from onestep_jax.errors import UserError
from onestep_jax.model.gguf import gguf_tokenizer, is_gguf

_T = TypeVar("_T")
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# Times that replacement rules may lengthen a text, all of them together; the rules of real tokenizers lengthen none, or
# a space to the three bytes of "▁".
_MOST_GROWTH = 64


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's transformers tokenizer, or None if it has none. Code that lies in the folder is never run.

    It may have more ids than the embedding table has rows. A text that has such an id is refused where it is used.

    Raises:
      UserError: if it is damaged, needs code of the folder, or could make a text grow without measure.
    """
    gguf = is_gguf(folder)
    if not gguf and not any((folder / name).exists() for name in _FILES):
        return None
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from transformers import AutoTokenizer

    if not gguf:
        for path in _rule_files(folder):
            _check_growth(path)
    try:
        return gguf_tokenizer(folder) if gguf else AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            reason = "its tokenizer is code in that folder (auto_map in tokenizer_config.json), which is never run"
            cure = "take auto_map out and name one of transformers' own classes as tokenizer_class"
            raise UserError(f"{folder}: {reason}; {cure}") from error
        raise UserError(f"{folder}: the tokenizer cannot be read ({error})") from error


class _Named(msgspec.Struct):
    """What tokenizer_config.json says of other files: transformers takes the newest of these that it knows."""

    fast_tokenizer_files: list[str] = []


def _rule_files(folder: Path) -> list[Path]:
    """The files that a tokenizer may be read from, all in the folder itself.

    Raises:
      UserError: if tokenizer_config.json is damaged, or names a file anywhere else.
    """
    path = folder / "tokenizer_config.json"
    named = _decoded(path, _Named).fast_tokenizer_files if path.exists() else []
    for name in named:
        if Path(name).name != name or "\\" in name:
            told = f"fast_tokenizer_files names {name!r}, which is not in the folder itself"
            raise UserError(f"{path}: {told}; get it from where the model is from")
    return [folder / name for name in dict.fromkeys(["tokenizer.json", *named])]


def _decoded(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are of ValueError
        raise UserError(f"{path}: the tokenizer cannot be read ({error}); download it again") from error


class _Rules(msgspec.Struct):
    """The parts of a tokenizer.json that change text; the vocabulary, which is long, is skipped."""

    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None


def _check_growth(path: Path) -> None:
    """Refuse rules which one after the other could turn a short text into gigabytes."""
    if not path.exists():
        return
    rules = _decoded(path, _Rules)
    # Text passes the normalizer and the pre-tokenizer on its way in, and the decoder on its way out.
    for parts in ((rules.normalizer, rules.pre_tokenizer), (rules.decoder,)):
        growth = math.prod(_growth(rule) for part in parts for rule in _replacements(part))
        if growth > _MOST_GROWTH:
            told = f"its replacement rules may make a text {growth:.3g} times as long; expected at most {_MOST_GROWTH}"
            raise UserError(f"{path}: {told}; get it from where the model is from")


def _replacements(part: Any) -> list[dict[str, Any]]:
    """The "Replace" rules below a part of a tokenizer.json."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = [part] if isinstance(part, dict) and part.get("type") == "Replace" else []
    return own + [rule for one in inner if isinstance(one, dict | list) for rule in _replacements(one)]


def _growth(rule: dict[str, Any]) -> float:
    """How many times as long a rule can make a text; a regular expression may match a single character, or nothing."""
    pattern, content = rule.get("pattern"), str(rule.get("content", ""))
    found = pattern.get("String", "") if isinstance(pattern, dict) else ""
    return max(1.0, len(content) / max(1, len(str(found))))
