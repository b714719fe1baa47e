"""What is said of a route: its path, who may call it, what it takes and what it answers.

Rule: a parameter that an operation does not name is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import QueryParams

from reconciler.core.names import NAME, InstanceKey
from reconciler.server.errors import ApiError

MEMBER = rf"{NAME}(?:\.{NAME})?"
KEY = re.compile(rf"{NAME}/{NAME}/{MEMBER}")
CALLER, OWN = "caller", "own"


@dataclass(frozen=True)
class Number:
    """A whole number in the query."""

    name: str
    says: str
    default: int
    maximum: int

    @property
    def schema(self) -> dict[str, Any]:
        limits = {"minimum": 0, "maximum": self.maximum, "default": self.default}
        return {"type": "integer", **limits}

    def read(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > self.maximum:
            expected = f"expected a number from 0 to {self.maximum}"
            raise ApiError(422, "invalid_parameter", f"{self.name}: {expected}")
        return int(text)


@dataclass(frozen=True)
class InstanceName:
    """An instance's key in the query."""

    name: str
    says: str
    default: None = None

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{KEY.pattern}$"}

    def read(self, text: str) -> InstanceKey:
        if not KEY.fullmatch(text):
            message = f"{self.name}: expected tenant/project/name[.member]"
            raise ApiError(422, "invalid_parameter", message)
        return InstanceKey(text)


@dataclass(frozen=True)
class Text:
    """Any text in the query."""

    name: str
    says: str
    default: str = ""

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Texts(Text):
    """The same, any number of times."""

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    `access` is what lets somebody call it: `public`, `caller` (any who proves who he is), a read
    permission for the platform, or one that is asked for each project (`by_project`). What has its
    own way to prove who calls is `own`; `proof` says which. `answers` names schema components, and
    `errors` those codes of refusals, by status, that access and parameters alone don't explain.
    """

    path: str
    id: str
    summary: str
    answers: str
    method: str = "GET"
    status: int = 200
    tag: str = "read"
    access: str = "public"
    by_project: bool = False
    query: tuple[Number | InstanceName | Text, ...] = ()
    errors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    takes: str = ""
    takes_as: tuple[str, ...] = ("application/json",)
    proof: str = ""
    media: str = "application/json"
    header: tuple[Text, ...] = ()
    further: Mapping[int, str] = field(default_factory=dict)
    """Further answers that are no refusals, by status; empty for one without a body."""

    @property
    def needs_token(self) -> bool:
        return self.access not in ("public", "own")


class Query:
    """The parameters of one request, read by the table."""

    def __init__(self, operation: Operation, given: QueryParams) -> None:
        """ApiError 422 for one that is unknown, given twice, or not well-formed."""
        known = {one.name: one for one in operation.query}
        self._values: dict[str, Any] = {name: one.default for name, one in known.items()}
        if operation.tag == "probes":
            return  # Probes and scrapers add what they like.
        for name in given:
            if name not in known:
                there = ", ".join(known) or "none"
                message = f"a parameter that is not known here; those known: {there}"
                raise ApiError(422, "unknown_parameter", message)
            if len(given.getlist(name)) > 1:
                raise ApiError(422, "invalid_parameter", f"{name}: given more than once")
            self._values[name] = known[name].read(given[name])

    def number(self, name: str) -> int:
        return int(self._values[name])

    def text(self, name: str) -> str:
        return str(self._values[name])

    def instance(self) -> InstanceKey | None:
        found: InstanceKey | None = self._values["instance"]
        return found
