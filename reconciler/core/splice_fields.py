"""Changes single fields of a YAML document as a person would: comments and order stay.

Rules: pure. Block style is edited in place; whoever asks reads the result again and compares, since
a text has more ways to be written than are foreseen here. None: it can't be done in this text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

Steps = Sequence[str | int]
"""From the document's root: names of fields and places in lists."""
_NoPair = tuple[None, None]
_NO_PAIR: _NoPair = (None, None)


def with_scalar(text: str, steps: Steps, value: str | int | bool) -> str | None:
    """The text with another scalar at that place, added to its mapping where it is not there."""
    *above, last = steps
    holder = _node(text, above)
    if not isinstance(holder, yaml.MappingNode) or not holder.value:
        return None
    there = _child(holder, last)
    if there is not None:
        if not isinstance(there, yaml.ScalarNode):
            return None
        return text[: there.start_mark.index] + _scalar(value) + text[there.end_mark.index :]
    if holder.flow_style:
        at = holder.end_mark.index - 1
        return f"{text[:at]}, {last}: {_scalar(value)}{text[at:]}"
    indent = " " * holder.value[0][0].start_mark.column
    return _inserted(text, _end_line(text, holder), f"{indent}{last}: {_scalar(value)}\n")


def with_value(text: str, steps: Steps, value: Any) -> str | None:
    """The text with any value at that place, on one line, quoted where YAML asks for it."""
    *above, last = steps
    holder = _node(text, above)
    if not isinstance(holder, yaml.MappingNode) or not holder.value:
        return None
    key, there = _pair(holder, last)
    new = f"{last}: {_flow(value)}"
    if key is None or there is None:
        if holder.flow_style:
            at = holder.end_mark.index - 1
            return f"{text[:at]}, {new}{text[at:]}"
        indent = " " * holder.value[0][0].start_mark.column
        return _inserted(text, _end_line(text, holder), f"{indent}{new}\n")
    start = key.start_mark.index
    on_a_line = there.style not in ("|", ">") if isinstance(there, yaml.ScalarNode) else False
    if on_a_line or getattr(there, "flow_style", False):
        return text[:start] + new + text[there.end_mark.index :]
    return f"{text[:start]}{new}\n{text[_end_line(text, there) :]}"


def without_field(text: str, steps: Steps) -> str | None:
    """The text without a field of a mapping in block style, and the lines that are its value's."""
    *above, last = steps
    holder = _node(text, above)
    if not isinstance(holder, yaml.MappingNode) or holder.flow_style or len(holder.value) < 2:
        return None
    key, there = _pair(holder, last)
    if key is None or there is None:
        return None
    start = key.start_mark.index - key.start_mark.column
    if text[start : key.start_mark.index].strip():
        return None
    return text[:start] + text[_end_line(text, there) :]


def with_entry(text: str, steps: Steps, lines: Sequence[str]) -> str | None:
    """The text with one more mapping at the end of a list; `lines` are its fields, unindented."""
    *above, last = steps
    holder = _node(text, above)
    if not isinstance(holder, yaml.MappingNode) or not holder.value or holder.flow_style:
        return None
    found = _child(holder, last)
    at = " " * holder.value[0][0].start_mark.column
    if found is None:
        new = [f"{at}{last}:", *_entry(at + "  ", lines)]
        return _inserted(text, _end_line(text, holder), "\n".join(new) + "\n")
    if not isinstance(found, yaml.SequenceNode) or found.flow_style or not found.value:
        return None
    dash = " " * found.start_mark.column
    new_text = "\n".join(_entry(dash, lines)) + "\n"
    return _inserted(text, _end_line(text, found), new_text)


def _entry(indent: str, lines: Sequence[str]) -> list[str]:
    marks = ("- ", *("  " for _ in lines[1:]))
    return [f"{indent}{mark}{line}".rstrip() for mark, line in zip(marks, lines, strict=True)]


def _node(text: str, steps: Steps) -> yaml.Node | None:
    try:
        # Not the one in C: its marks count bytes in some releases, and characters in others.
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    for step in steps:
        if node is None:
            return None
        node = _child(node, step)
    return node


def _pair(holder: yaml.MappingNode, name: str | int) -> tuple[yaml.Node, yaml.Node] | _NoPair:
    return next(((key, value) for key, value in holder.value if key.value == name), _NO_PAIR)


def _child(node: yaml.Node, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        pairs = (value for key, value in node.value if key.value == step)
        return next(pairs, None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        found: yaml.Node = node.value[step]
        return found
    return None


def _end_line(text: str, node: yaml.Node) -> int:
    """Where the line after the last one that has content of the node begins."""
    last = _last(node)
    end = last.end_mark.index
    # A block scalar's end is the start of what follows it.
    while end > last.start_mark.index and text[end - 1] in " \n":
        end -= 1
    found = text.find("\n", end)
    return len(text) if found < 0 else found + 1


def _last(node: yaml.Node) -> yaml.Node:
    while not getattr(node, "flow_style", True) and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(node, yaml.MappingNode) else last
    return node


def _inserted(text: str, at: int, new: str) -> str:
    head = text[:at]
    return f"{head if head.endswith(chr(10)) else head + chr(10)}{new}{text[at:]}"


def _flow(value: Any) -> str:
    made: str = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=100_000
    )
    return made.strip().removesuffix("\n...")


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
