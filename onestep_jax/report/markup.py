"""HTML and SVG in which every text is escaped unless it was made here."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})
_JOINERS = "\u200c\u200d"  # Persian and joined emojis need them
_LINES = "\n\t"


class Markup(str):
    """HTML that is escaped already."""

    __slots__ = ()


def tag(name: str, /, *content: str | int, **attributes: Any) -> Markup:
    """An element; text that is no `Markup` is escaped.

    Args:
      name: of the element.
      content: children in order.
      attributes: values, escaped; None and False leave one out, True is one without a value. `class_` is "class", and
        `aria_label` is "aria-label".
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[str | int]) -> Markup:
    """Pieces one after the other, escaped where they are no `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in parts))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def visible(text: str) -> str:
    """A text with its control and direction characters made visible; line feeds and tabs stay."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character in _LINES or character in _JOINERS or category not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if code < 32:
        return chr(0x2400 + code)
    return "\u2421" if code == 127 else f"⟨U+{code:04X}⟩"


def one_line(text: str) -> str:
    """A text as a table cell shows it: `visible`, with line feeds and tabs as signs."""
    return visible(text).replace("\n", "↵ ").replace("\t", "⇥ ")


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a script element whatever strings it holds."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)
