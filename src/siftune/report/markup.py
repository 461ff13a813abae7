"""HTML and SVG text that is escaped by construction: only `tag` creates markup."""

import html
from typing import Any


class Markup(str):
    """Text that is already markup. All other text is escaped when it is put into markup."""

    __slots__ = ()


def join(*parts: Any) -> Markup:
    """Joins the parts, and escapes those that are not markup."""
    return Markup("".join(p if isinstance(p, Markup) else html.escape(str(p)) for p in parts))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """Returns an element. `class_` and `aria_label` set the attributes class and aria-label."""
    text = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{text}>{join(*children)}</{name}>")
