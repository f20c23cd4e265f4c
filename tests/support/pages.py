"""A page as a browser's parser takes it, with what is wrong about its nesting; for the tests of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclasses.dataclass
class Element:
    """An element with its attributes and, in order, its texts and children."""

    name: str
    attributes: dict[str, str | None] = dataclasses.field(default_factory=dict)
    content: list[Element | str] = dataclasses.field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        for child in self.content:
            if isinstance(child, Element):
                yield child
                yield from child.walk()

    def all(self, *names: str) -> list[Element]:
        return [element for element in self.walk() if element.name in names]

    def by_id(self, name: str) -> Element:
        (found,) = [element for element in self.walk() if element.attributes.get("id") == name]
        return found

    def get(self, name: str) -> str:
        return self.attributes.get(name) or ""

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.content)


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("document")]
        self.errors: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.errors.append(f"<{tag}> repeats an attribute: {names}")
        element = Element(tag, dict(attrs))
        self.open[-1].content.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if self.open[-1].name != tag:
            self.errors.append(f"</{tag}> at {self.getpos()} closes <{self.open[-1].name}>")
        else:
            self.open.pop()

    def handle_data(self, data):
        self.open[-1].content.append(data)


def parse(html: str) -> Element:
    """The document; fails on an element that is not closed, or closed in the wrong place."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    left = [element.name for element in builder.open[1:]]
    assert not builder.errors, builder.errors
    assert not left, f"not closed: {left}"
    return builder.open[0]
