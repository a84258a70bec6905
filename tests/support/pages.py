"""A page of HTML as a reader sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_self_contained(text: str) -> Page:
    """No resource from elsewhere, no script, nothing that could not be computed."""
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base", "b>x<")]
    for _, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), key
            if key in ("src", "href", "xlink:href", "srcset", "data"):
                assert (value or "").startswith(("#", "review.html", "data:image/"))
    for address in re.findall(r"url\(\s*['\"]?([^)]*)", text):
        assert address.startswith(("#", "data:"))
    assert "@import" not in text
    assert not re.findall(r"\b(?:None|NaN|nan|Undefined|inf)\b", page.text)
    assert not re.findall(r"[a-z] %", page.text)  # a number is missing before it
    return page
