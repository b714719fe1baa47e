"""What a change of an object needs: one table, a row for every permission that a kind can ask for.

Rules:
- A change needs the permission of every row that it falls under. Labels and annotations count as
  the rest does.
- A manifest is plain JSON and may be invalid. What can't be made out falls under every row of its
  kind, and an object of an unknown kind needs everything.
- What no machine may be given is for humans, by `roles.MACHINE_PERMISSIONS`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from reconciler.core.authority.roles import ALL_PERMISSIONS, MACHINE_PERMISSIONS
from reconciler.core.names import ObjectRef

Manifest = Mapping[str, Any]
Where = Literal["platform", "tenant", "project"]


class Need(NamedTuple):
    """A permission that a change needs, and where. `words` say for what: `suspend`, `promote`."""

    permission: str
    scope: tuple[str, ...]
    human_only: bool
    words: str


class TableRow(NamedTuple):
    """A row of the table as people read it."""

    kind: str
    change: str
    permission: str
    scope: str
    human_only: bool
    notes: str


class _Change(NamedTuple):
    """`before` and `after` are None where the object is not there; never both."""

    before: Manifest | None
    after: Manifest | None

    @property
    def creates(self) -> bool:
        return self.before is None

    @property
    def deletes(self) -> bool:
        return self.after is None


class _Row(NamedTuple):
    kind: str
    words: str
    permission: str
    where: Where
    when: Callable[[_Change], bool]
    change: str
    notes: str = ""


class _UnclearError(Exception):
    """A manifest does not say what it would have to for a decision."""


# --- reading manifests that may be invalid -------------------------------------------------------

_MISSING: Final = object()
_Path = tuple[str, ...]


def _at(document: Manifest | None, path: _Path) -> Any:
    """What stands there, or _MISSING; _UnclearError where the way leads through no mapping."""
    found: Any = document if document is not None else {}
    for key in path:
        if not isinstance(found, Mapping):
            raise _UnclearError
        found = found.get(key, _MISSING)
        if found is _MISSING:
            return _MISSING
    return found


def _without(document: Any, *paths: _Path) -> Any:
    """The same without what stands there, and without mappings that this leaves empty."""
    for path in paths:
        if not isinstance(document, Mapping) or path[0] not in document:
            continue
        rest = _without(document[path[0]], path[1:]) if len(path) > 1 else None
        document = {key: value for key, value in document.items() if key != path[0]}
        if rest:
            document[path[0]] = rest
    return document


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: to Python 1, 1.0 and true are equal, to a workload they are not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return False
        return all(same(value, other[key]) for key, value in one.items())
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _changed(change: _Change, path: _Path) -> bool:
    return not same(_at(change.before, path), _at(change.after, path))


def _other_than(change: _Change, *paths: _Path) -> bool:
    """Whether an object that is there before and after differs in anything else."""
    if change.creates or change.deletes:
        return False
    return not same(_without(change.before, *paths), _without(change.after, *paths))


def _any(_: _Change) -> bool:
    return True


def _never(_: _Change) -> bool:
    return False


# --- Environment ---------------------------------------------------------------------------------

_APPROVALS = ("spec", "guards", "approvals")
_BREAK_GLASS = ("spec", "sync", "break_glass")


def _edits_environment(change: _Change) -> bool:
    if change.creates or change.deletes or _other_than(change, _BREAK_GLASS):
        return True
    return not _changed(change, _BREAK_GLASS)


def _approves(change: _Change) -> bool:
    return not change.deletes and _changed(change, _APPROVALS)


def _breaks_glass(change: _Change) -> bool:
    return not change.deletes and _changed(change, _BREAK_GLASS)


# --- states of artifacts and versions ------------------------------------------------------------

_STATE = ("spec", "state")


def _state(document: Manifest | None, states: _Path) -> int | None:
    """The place of the state in `states`; None where there is no object."""
    if document is None:
        return None
    state = _at(document, _STATE)
    if not isinstance(state, str) or state not in states:
        raise _UnclearError
    return states.index(state)


def _steps(*states: str, among: _Path, gone: str) -> Callable[[_Change], bool]:
    """Whether a change asks for one of these states, changes something that stays in one of them,
    or takes a later one of `among` back out of one of them. Deleted is as good as `gone`.
    """

    def when(change: _Change) -> bool:
        before = _state(change.before, among)
        after = among.index(gone) if change.deletes else _state(change.after, among)
        taken_back = before is not None and after is not None and after < before
        return (after is not None and among[after] in states) or (
            taken_back and before is not None and among[before] in states
        )

    return when


_ARTIFACT_STATES = ("published", "promoted", "deprecated", "retired", "revoked")
_VERSION_STATES = ("draft", "staged", "canary", "active", "deprecated", "retired")


def _artifact(state: str) -> Callable[[_Change], bool]:
    return _steps(state, among=_ARTIFACT_STATES, gone="retired")


def _registers(change: _Change) -> bool:
    published = _artifact("published")
    return change.creates or _other_than(change, _STATE) or published(change)


def _version(*states: str) -> Callable[[_Change], bool]:
    return _steps(*states, among=_VERSION_STATES, gone="retired")


# --- AppInstance ---------------------------------------------------------------------------------

_DESIRED = ("spec", "desired")
_SUSPEND = ("spec", "suspend")
_MOVED = ("spec", "moved_from")


def _ends(document: Manifest | None) -> bool:
    """Whether it says that it is to be taken down."""
    desired = _at(document, _DESIRED)
    if desired is not _MISSING and desired not in ("running", "stopped", "decommissioned"):
        raise _UnclearError
    return bool(desired == "decommissioned")


def _creates_instance(change: _Change) -> bool:
    if change.deletes:
        return False
    return change.creates or (_ends(change.before) and not _ends(change.after))


def _updates_instance(change: _Change) -> bool:
    if change.creates:
        return _at(change.after, _MOVED) is not _MISSING
    if change.deletes:
        return False
    turns = _ends(change.before) is not _ends(change.after)
    return _other_than(change, _SUSPEND, _DESIRED) or (_changed(change, _DESIRED) and not turns)


def _suspends_instance(change: _Change) -> bool:
    return not change.creates and not change.deletes and _changed(change, _SUSPEND)


def _deletes_instance(change: _Change) -> bool:
    return change.deletes or (_ends(change.after) and not _ends(change.before))


# --- the table -----------------------------------------------------------------------------------

_EDIT = "create, change or delete"


def _edited(kind: str, permission: str, where: Where, notes: str = "") -> _Row:
    return _Row(kind, "change", permission, where, _any, _EDIT, notes)


_IAM_NOTE = "who gives rights to somebody holds them himself, as widely and for as long"
_TAKEN_BACK = "also needed to go back from it"

TABLE: tuple[_Row, ...] = (
    _Row(
        "Environment", "change", "platform.environment.edit", "platform", _edits_environment,
        _EDIT, "not where sync.break_glass is all that changes",
    ),
    _Row(
        "Environment", "approve removals in", "platform.removals.approve", "platform", _approves,
        "change guards.approvals", "beside platform.environment.edit",
    ),
    _Row(
        "Environment", "break the glass of", "platform.sync.break_glass", "platform",
        _breaks_glass, "change sync.break_glass",
    ),
    _edited("TrustPolicy", "platform.trust.edit", "platform"),
    _edited("Identity", "platform.iam.edit", "platform", _IAM_NOTE),
    _edited("RoleBinding", "platform.iam.edit", "platform", _IAM_NOTE),
    _edited("FleetPolicy", "fleet.policy.edit", "platform"),
    _edited("Node", "fleet.node.edit", "platform"),
    _edited("PlatformRelease", "fleet.release.publish", "platform"),
    _edited("App", "apps.app.edit", "platform"),
    _edited("AppVersion", "apps.version.publish", "platform"),
    _Row(
        "Promotion", "promote", "apps.version.promote", "platform",
        _version("draft", "staged", "canary", "active"),
        "state draft, staged, canary or active", "no machine acts outside its own project",
    ),
    _Row(
        "Promotion", "deprecate or retire", "apps.version.deprecate", "platform",
        _version("deprecated", "retired"), "state deprecated or retired; delete", _TAKEN_BACK,
    ),
    _edited("Tenant", "tenants.tenant.edit", "tenant"),
    _edited("Project", "tenants.project.edit", "project"),
    _edited("Entitlement", "tenants.entitlement.edit", "project"),
    _edited("ServiceAccount", "tenants.service_account.edit", "project", _IAM_NOTE),
    _edited("Allocation", "tenants.allocation.edit", "project"),
    _Row(
        "Artifact", "register or change", "apps.artifact.register", "project", _registers,
        "create; state published; change anything but the state", "beside that of its state",
    ),
    _Row(
        "Artifact", "promote", "apps.artifact.promote", "project", _artifact("promoted"),
        "state promoted", _TAKEN_BACK,
    ),
    _Row(
        "Artifact", "deprecate", "apps.artifact.deprecate", "project", _artifact("deprecated"),
        "state deprecated", _TAKEN_BACK,
    ),
    _Row(
        "Artifact", "retire", "apps.artifact.retire", "project", _artifact("retired"),
        "state retired; delete", _TAKEN_BACK,
    ),
    _Row(
        "Artifact", "revoke", "apps.artifact.revoke", "project", _artifact("revoked"),
        "state revoked", "also needed to go back from it, and to delete it",
    ),
    _Row(
        "Artifact", "have verified", "apps.artifact.verify", "project", _never,
        "have it verified again", "asked for by a request; no manifest says it",
    ),
    _Row(
        "AppInstance", "create", "apps.instance.create", "project", _creates_instance,
        "create; desired no longer decommissioned",
    ),
    _Row(
        "AppInstance", "change", "apps.instance.update", "project", _updates_instance,
        "change anything but suspend; moved_from", "a rename needs create, update and delete",
    ),
    _Row(
        "AppInstance", "suspend", "apps.instance.suspend", "project", _suspends_instance,
        "change suspend",
    ),
    _Row(
        "AppInstance", "take down", "apps.instance.delete", "project", _deletes_instance,
        "delete; desired: decommissioned",
    ),
)  # fmt: skip


def _grouped(rows: tuple[_Row, ...]) -> Mapping[str, tuple[_Row, ...]]:
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[row.kind].append(row)
    return {kind: tuple(found) for kind, found in groups.items()}


_ROWS = _grouped(TABLE)
_DEPTH: Mapping[Where, int] = {"platform": 0, "tenant": 1, "project": 2}
_SCOPE_WORDS: Mapping[Where, str] = {
    "platform": "the platform",
    "tenant": "the tenant",
    "project": "the project",
}


def needs(ref: ObjectRef, before: Manifest | None, after: Manifest | None) -> tuple[Need, ...]:
    """What it takes to make `after` of `before`; nothing when they are the same."""
    if same(before, after):
        return ()
    rows = _ROWS.get(ref.kind)
    if rows is None:
        return tuple(
            Need(key, (), key not in MACHINE_PERMISSIONS, "change")
            for key in sorted(ALL_PERMISSIONS)
        )
    change = _Change(before, after)
    try:
        found = [row for row in rows if row.when(change)]
    except _UnclearError:
        found = [*rows]
    return tuple([_need(row, ref) for row in found or rows])


def _need(row: _Row, ref: ObjectRef) -> Need:
    human_only = row.permission not in MACHINE_PERMISSIONS
    return Need(row.permission, ref.path[: _DEPTH[row.where]], human_only, row.words)


def table_rows() -> list[TableRow]:
    """The table for people: kind by kind, what each change needs."""
    return [
        TableRow(
            row.kind,
            row.change,
            row.permission,
            _SCOPE_WORDS[row.where],
            row.permission not in MACHINE_PERMISSIONS,
            row.notes,
        )
        for row in TABLE
    ]
