"""What every message on the wire is: its base, and the one way it is written for a hash."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

MOUNT_PATH = r"^(?:/[A-Za-z0-9_][-._A-Za-z0-9]{0,127}){1,16}$"
"""An absolute path of plain parts: none is `.` or `..`, none holds a `:` or a `$`."""
SERVICES_MAX = 32
"""Of one topology."""

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=vars)


class Wire(BaseModel):
    """Base of every message: unknown fields are refused, nothing is coerced, nothing is mutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def canonical(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8. What gets hashed and signed."""
        return CANONICAL.encode(self.model_dump(mode="json")).encode()
