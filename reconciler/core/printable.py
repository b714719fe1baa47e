"""Text from others, made safe to show: to a terminal, in a log, in a comment. Pure.

What nodes report, files hold and registries answer may carry escape sequences, line breaks and
marks that turn text around. They are shown as escapes, so that they do nothing and hide nothing.
"""

from __future__ import annotations

import re

_ACTIVE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def printable(text: str) -> str:
    """`text` on one line, without anything that a terminal acts on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_json(text: str) -> str:
    """A JSON text that means the same; JSON itself escapes only what is below the space."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
