"""The gate that a revision has to pass, where signatures count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.settings import Settings
from reconciler.wiring.source import mirror_dir

if TYPE_CHECKING:
    from reconciler.core.authority.facts import Walked
    from reconciler.core.names import Revision
    from reconciler.core.records import Accepted
    from reconciler.gate import Gate
    from reconciler.ports import Ports


def gate_of(settings: Settings, ports: Ports) -> Gate | None:
    """None where commits count whoever signed them."""
    if settings.signatures == "off":
        return None
    # Most commands walk no commits; those need not wait for what it takes.
    from reconciler.adapters.git_chain import GitCommitLog  # noqa: PLC0415
    from reconciler.gate import Gate  # noqa: PLC0415
    from reconciler.wiring.files import schema_set  # noqa: PLC0415

    log = GitCommitLog(mirror_dir(settings), settings)
    return Gate(ports.source, log, ports.clock, settings, schema_set())


def walked_to(
    head: Revision, last: Accepted, settings: Settings, ports: Ports
) -> Walked | None:
    """What the commits up to the head of the branch come to; None where nobody asks."""
    gate = gate_of(settings, ports)
    return gate.walk(head, last) if gate is not None else None
