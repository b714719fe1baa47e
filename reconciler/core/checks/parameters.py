"""Which launch parameters can be carried out, and with which values.

Rules:
- A parameter without a row here is refused rather than ignored, whatever an app's schema allows.
- The bounds are what every node can hold to; less may be leased, or asked by the app's own schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from reconciler.core.checks.capacity import number, whole
from reconciler.core.checks.packages import PIP_PACKAGES, refused_specs, spec_texts
from reconciler.core.names import nearest

NUMBERS: Mapping[str, tuple[str, float, float]] = {
    "cpu_cores": ("a number", 0.01, 65_536),
    "gpu_count": ("an integer", 0, 1024),
    "host_port": ("an integer", 1024, 65_535),
    "memory_gib": ("a number", 0.01, 1_048_576),
}
"""Parameter → what it must be, least and most. Ports below 1024 are the host's own services'."""
UNDERSTOOD: tuple[str, ...] = (*NUMBERS, PIP_PACKAGES)


class Unfit(NamedTuple):
    """What is wrong with a value. `suffix` is to be put behind the parameter's own pointer."""

    code: str
    message: str
    hint: str = ""
    suffix: str = ""


def unfit(name: str, value: object) -> Iterator[Unfit]:
    """Everything wrong with a parameter's value, whatever schema it has passed."""
    if name == PIP_PACKAGES:
        yield from _unfit_packages(value)
    elif name in NUMBERS:
        kind, least, most = NUMBERS[name]
        found = number(value) if kind == "a number" else whole(value)
        if found is None or not least <= found <= most:
            yield Unfit("invalid_parameter", f"{name} must be {kind} from {least} to {most}")
    else:
        near = nearest(name, UNDERSTOOD)
        hint = f"did you mean {near}?" if near else f"supported: {', '.join(UNDERSTOOD)}"
        yield Unfit("not_supported_yet", f"parameter {name} is not supported yet", hint)


def _unfit_packages(value: object) -> Iterator[Unfit]:
    specs = spec_texts(value)
    if specs is None:
        message = f"{PIP_PACKAGES} must be a list of texts, or one text with a package a line"
        yield Unfit("invalid_parameter", message)
        return
    for found in refused_specs(specs):
        suffix = "" if isinstance(value, str) else f"/{found.number}"
        yield Unfit(found.code, found.message, found.hint, suffix)
