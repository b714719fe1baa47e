"""Changes of ServiceAccount manifests: files for a person to review, commit and sign.

Rules: pure. Comments and the rest of a file stay as they are; a document that can't be edited in
place is written anew, and only that one. What comes out is read again before it is handed on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from reconciler.core.desired import Candidate, StateObject
from reconciler.core.history import document_in, names
from reconciler.core.kinds import KINDS
from reconciler.core.kinds.identity import Identity
from reconciler.core.kinds.role_binding import RoleBinding
from reconciler.core.names import ObjectRef, nearest
from reconciler.core.parse import ParseLimits, parse_file
from reconciler.core.schema import SchemaSet
from reconciler.core.source import Snapshot, SourceFile
from reconciler.core.splice import removed, replaced, text_of
from reconciler.core.splice_fields import with_entry, with_scalar
from reconciler.core.times import parse_time_ms, time_text
from reconciler.core.validate import validate
from reconciler.errors import Refused

_KIND = "ServiceAccount"
Steps = tuple[str | int, ...]


@dataclass(frozen=True)
class AccountKey:
    """A public key as a manifest has it; `valid_until` may be empty."""

    id: str
    scheme: str
    public_key: str
    valid_until: str = ""

    @property
    def fields(self) -> dict[str, str]:
        found = {"id": self.id, "scheme": self.scheme, "public_key": self.public_key}
        return {**found, **({"valid_until": self.valid_until} if self.valid_until else {})}


@dataclass(frozen=True)
class Edited:
    """A file as it should be; `content` None: it goes. `told` says what is different, for people.

    `mentions` are objects that name an account which goes.
    """

    ref: ObjectRef
    path: str
    content: bytes | None
    told: tuple[str, ...]
    mentions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Set:
    steps: Steps
    value: str | int | bool


@dataclass(frozen=True)
class _Add:
    steps: Steps
    fields: Mapping[str, str]


@dataclass(frozen=True)
class _Found:
    """One account as it stands in its file."""

    ref: ObjectRef
    path: str
    content: bytes
    document: Mapping[str, Any]

    @property
    def keys(self) -> Sequence[Mapping[str, Any]]:
        keys: Sequence[Mapping[str, Any]] = self.document["spec"].get("public_keys") or ()
        return keys


def parse_account(text: str) -> ObjectRef:
    """`tenant/project/name`, with or without `ServiceAccount/` before it."""
    path = tuple(text.removeprefix(f"{_KIND}/").split("/"))
    if len(path) != 3 or not all(path):
        hint = "a service account is TENANT/PROJECT/NAME"
        raise Refused("bad_account", f"no name of an account: {text[:120]!r}", hint=hint)
    return ObjectRef(_KIND, path)


class Accounts:
    """The service accounts of a checkout as it is."""

    def __init__(self, source: Snapshot, schemas: SchemaSet, limits: ParseLimits) -> None:
        self._source = source
        self._schemas = schemas
        self._limits = limits

    def all(self) -> list[StateObject]:
        """Those that can be read, sorted."""
        return [found for ref, found in sorted(self._objects().items()) if ref.kind == _KIND]

    def create(
        self, ref: ObjectRef, roles: Sequence[str], display_name: str, key: AccountKey | None
    ) -> Edited:
        """A new file. Refused account_exists, and for what no manifest takes."""
        if self._where(ref) is not None:
            hint = f"gpuaas service-account rotate {'/'.join(ref.path)} gives it another key"
            raise Refused("account_exists", f"{ref} is there already", hint=hint)
        path = KINDS[_KIND].path_of(ref.path)
        if any(file.path == path for file in self._source.files):
            raise Refused("account_exists", "the file is there already", where=path)
        lines = ["apiVersion: gpuaas.dev/v1", f"kind: {_KIND}", "metadata:"]
        lines += [f"  name: {json.dumps(ref.name)}", "spec:"]
        if display_name:
            lines.append(f"  display_name: {json.dumps(display_name, ensure_ascii=False)}")
        lines.append(f"  roles: [{', '.join(sorted(roles))}]")
        if key is not None:
            lines += ["  public_keys:", *(f"    {line}" for line in _entry(key.fields, "- "))]
        told = (f"roles {', '.join(sorted(roles))}", *([f"key {key.id}"] if key else []))
        return self._checked(ref, path, ("\n".join(lines) + "\n").encode(), told)

    def keys(self, ref: ObjectRef) -> int:
        """How many keys it has."""
        return len(self._one(ref).keys)

    def rotate(self, ref: ObjectRef, key: AccountKey, ends_ms: int) -> Edited:
        """Adds a key; those that would be valid longer end at `ends_ms`."""
        found = self._one(ref)
        if any(one.get("id") == key.id for one in found.keys):
            hint = "--key-id names it otherwise; ids stay, also of keys that ended"
            raise Refused("key_id_taken", f"{ref} has a key {key.id} already", hint=hint)
        until = time_text(ends_ms)
        ending = [i for i, one in enumerate(found.keys) if _longer(one, ends_ms)]
        edits: list[_Set | _Add] = [
            _Set(("spec", "public_keys", index, "valid_until"), until) for index in ending
        ]
        edits.append(_Add(("spec", "public_keys"), key.fields))
        told = [f"new key {key.id}"]
        told += [f"key {found.keys[index].get('id')} ends at {until}" for index in ending]
        return self._edited(found, edits, told)

    def set_disabled(self, ref: ObjectRef, *, disabled: bool) -> Edited:
        found = self._one(ref)
        if bool(found.document["spec"].get("disabled")) == disabled:
            raise Refused("nothing_to_change", f"{ref} is {_able(disabled)} already")
        return self._edited(found, [_Set(("spec", "disabled"), disabled)], [_able(disabled)])

    def delete(self, ref: ObjectRef) -> Edited:
        """Takes its document away, and tells who names it."""
        found = self._one(ref)
        content = removed(found.content, self._index(found))
        mentions = tuple(_mentions("/".join(ref.path), self._objects()))
        return Edited(ref, found.path, content, ("deleted",), mentions)

    # --- finding -----------------------------------------------------------------------------

    def _files(self, ref: ObjectRef) -> Iterator[SourceFile]:
        folder = KINDS[_KIND].path_of(ref.path).rpartition("/")[0]
        for file in self._source.files:
            if file.path.rpartition("/")[0] == folder and file.kind == "file":
                yield file

    def _where(self, ref: ObjectRef) -> _Found | None:
        for file in self._files(ref):
            document = document_in(ref, file.path, file.content, self._limits)
            if isinstance(document, Mapping) and isinstance(document.get("spec"), Mapping):
                return _Found(ref, file.path, file.content, document)
            if document is not False:
                hint = "gpuaas validate shows what is wrong; mend that first"
                message = f"{ref} can't be read"
                raise Refused("account_unreadable", message, where=file.path, hint=hint)
        return None

    def _one(self, ref: ObjectRef) -> _Found:
        found = self._where(ref)
        if found is None:
            known = ["/".join(one.ref.path) for one in self.all()]
            near = nearest("/".join(ref.path), known)
            hint = f"did you mean {near}?" if near else "gpuaas service-account list"
            raise Refused("no_such_account", f"{ref} is not in this checkout", hint=hint)
        return found

    def _objects(self) -> Mapping[ObjectRef, StateObject]:
        kinds = (KINDS[_KIND], KINDS["Identity"])
        files = (f for f in self._source.files if any(k.pattern.fullmatch(f.path) for k in kinds))
        return self._read(files).objects

    def _read(self, files: Iterable[SourceFile]) -> Candidate:
        snapshot = Snapshot(self._source.revision, tuple(files), "", "", 0)
        return validate(snapshot, self._schemas, self._limits)

    # --- editing -----------------------------------------------------------------------------

    def _index(self, found: _Found) -> int:
        documents, _ = parse_file(found.path, found.content, self._limits)
        return next(d.index for d in documents if names(d.value, found.path) == found.ref)

    def _edited(self, found: _Found, edits: Sequence[_Set | _Add], told: Sequence[str]) -> Edited:
        wanted = _applied(found.document, edits)
        index = self._index(found)
        for text in (_in_place(text_of(found.content, index), edits), _anew(wanted)):
            if text is None:
                continue
            content = replaced(found.content, index, text.encode())
            if self._says(found, content, wanted):
                return self._checked(found.ref, found.path, content, told)
        hint = "edit it by hand"
        raise Refused("file_not_cut", "it can't be edited here", where=found.path, hint=hint)

    def _says(self, found: _Found, content: bytes, wanted: Mapping[str, Any]) -> bool:
        """Whether the result reads as wanted, and the rest of the file as before."""
        before, _ = parse_file(found.path, found.content, self._limits)
        after, problems = parse_file(found.path, content, self._limits)
        mine = [names(one.value, found.path) == found.ref for one in before]
        expected = [
            wanted if is_mine else one.value for is_mine, one in zip(mine, before, strict=True)
        ]
        return not problems and repr([one.value for one in after]) == repr(expected)

    def _checked(self, ref: ObjectRef, path: str, content: bytes, told: Sequence[str]) -> Edited:
        problems = self._read([SourceFile(path, "", content)]).problems
        if problems:
            first = problems[0]
            message = f"{first.message} (at {first.pointer})" if first.pointer else first.message
            raise Refused(first.code, message, where=str(ref), hint=first.hint)
        return Edited(ref, path, content, tuple(told))


def _longer(key: Mapping[str, Any], ends_ms: int) -> bool:
    """Whether a key would still be taken after that."""
    if key.get("revoked") is not None:
        return False
    try:
        return parse_time_ms(str(key["valid_until"])) > ends_ms
    except (KeyError, ValueError, OverflowError):
        return True


def _able(disabled: bool) -> str:
    return "disabled" if disabled else "enabled"


def _entry(fields: Mapping[str, str], dash: str = "") -> list[str]:
    """The fields of one list entry, one or more lines each."""
    lines: list[str] = []
    for name, value in fields.items():
        if "\n" in value:
            lines += [f"{name}: |", *(f"  {line}" for line in value.splitlines())]
        else:
            lines.append(f"{name}: {value if value.isidentifier() else json.dumps(value)}")
    marks = (dash, *(" " * len(dash) for _ in lines[1:]))
    return [mark + line for mark, line in zip(marks, lines, strict=True)]


def _in_place(text: bytes, edits: Sequence[_Set | _Add]) -> str | None:
    try:
        edited: str | None = text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    for edit in edits:
        if edited is None:
            return None
        if isinstance(edit, _Set):
            edited = with_scalar(edited, edit.steps, edit.value)
        else:
            edited = with_entry(edited, edit.steps, _entry(edit.fields))
    return edited


def _anew(document: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _applied(document: Mapping[str, Any], edits: Sequence[_Set | _Add]) -> dict[str, Any]:
    after: dict[str, Any] = copy.deepcopy(dict(document))
    for edit in edits:
        place: Any = after
        for step in edit.steps[:-1]:
            place = place[step]
        if isinstance(edit, _Set):
            place[edit.steps[-1]] = edit.value
        else:
            place[edit.steps[-1]] = [*(place.get(edit.steps[-1]) or ()), dict(edit.fields)]
    return after


def _mentions(account: str, objects: Mapping[ObjectRef, StateObject]) -> Iterator[str]:
    for ref, found in sorted(objects.items()):
        manifest = found.manifest
        named: list[str | None] = []
        if isinstance(manifest, Identity):
            named = [manifest.spec.service_account]
        elif isinstance(manifest, RoleBinding):
            named = [one.service_account for one in manifest.spec.subjects]
        if account in named:
            yield str(ref)
