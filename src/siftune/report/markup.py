"""HTML and SVG text that is escaped by construction: only `tag` makes markup."""

import html
from typing import Any


class Markup(str):
    """Text that is markup already. Everything else is escaped where it is put into markup."""

    __slots__ = ()


def join(*parts: Any) -> Markup:
    return Markup("".join(p if isinstance(p, Markup) else html.escape(str(p)) for p in parts))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; `class_` and `aria_label` are the attributes class and aria-label."""
    written = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")
