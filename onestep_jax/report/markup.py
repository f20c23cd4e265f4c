"""HTML and SVG. All text is escaped, except the `Markup` that these functions return."""

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
    """Make an element; text that is no `Markup` is escaped.

    Args:
      name: of the element.
      content: its children in order.
      attributes: name → value, which is escaped. An attribute with None or False is left out, one with True has no
        value. `class_` gives "class", and `aria_label` gives "aria-label".
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[str | int]) -> Markup:
    """Concatenate pieces; those that are no `Markup` are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in parts))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def visible(text: str) -> str:
    """Make control and direction characters of a text visible; line feeds and tabs stay as they are."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character in _LINES or character in _JOINERS or category not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if code < 32:
        return chr(0x2400 + code)
    return "\u2421" if code == 127 else f"⟨U+{code:04X}⟩"


def one_line(text: str) -> str:
    """Make a text `visible` for a table cell, with signs for line feeds and tabs."""
    return visible(text).replace("\n", "↵ ").replace("\t", "⇥ ")


def embedded(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever strings it holds."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)
