"""What moves a version or an artifact to another state, as a file to commit. Reads only.

Rules: an illegal step is refused before anything is written, and so is what would bring the state
repo a new problem. Only the fields that change are written; comments and order stay.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from reconciler.core.changes import FieldChange, field_changes
from reconciler.core.history import Form
from reconciler.core.kinds import KINDS
from reconciler.core.names import ObjectRef, Revision, nearest
from reconciler.core.parse import ParseLimits
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.promotion_steps import ILLEGAL_STEP, STEPS, illegal
from reconciler.core.splice import replaced, text_of
from reconciler.core.splice_fields import with_value, without_field
from reconciler.errors import Refused
from reconciler.use_cases.history import Commits, parse_target
from reconciler.use_cases.rollback import Check, in_the_way, index_of, verify
from reconciler.views.changes import field_line

_BY_DIGEST = re.compile(r"(?:artifact_store://)?[-_./0-9A-Za-z]+@sha256:[0-9a-f]{64}")
_GONE = object()
_Edits = Sequence[tuple[tuple[str, ...], Any]]
"""Fields by their way down, with what they are to be; _GONE for none."""


@dataclass(frozen=True)
class Asked:
    """`channels` None: as they are. The scope of a canary is what is given, and else as it is."""

    state: str
    reason: str
    channels: tuple[str, ...] | None = None
    percent: int | None = None
    projects: tuple[str, ...] | None = None
    failed_max: int | None = None


@dataclass(frozen=True)
class Promoting:
    """A commit to be made on top of `base`; the fields as in `use_cases.rollback.Rollback`."""

    ref: ObjectRef
    base: Revision
    state: str
    reason: str
    files: Mapping[str, bytes | None]
    before: Mapping[str, bytes | None]
    fields: tuple[FieldChange, ...]
    in_the_way: tuple[Problem, ...]

    @property
    def branch(self) -> str:
        """The name of the branch, when none is given."""
        return f"promote/{'-'.join(self.ref.path)}-{self.state}"


def find_target(words: Sequence[str], commits: Commits, base: Revision) -> ObjectRef:
    """`APP VERSION`, `Artifact/…` or `Promotion/…`, tenant/project/app/version/name, or a
    repository or source with its digest. Refused for anything else.
    """
    if len(words) == 2:
        return ObjectRef("Promotion", (words[0], words[1]))
    if len(words) != 1:
        raise _no_target("say which version, APP VERSION, or which artifact")
    (text,) = words
    if _BY_DIGEST.fullmatch(text):
        return _registered(text, commits, base)
    if text.count("/") == 4 and not text.startswith("Artifact/"):
        return ObjectRef("Artifact", tuple(text.split("/")))
    kind, _, rest = text.partition("/")
    if kind not in STEPS or not rest:
        raise _no_target(f"{printable(text)[:80]} is neither a version nor an artifact")
    ref = parse_target(text)
    assert isinstance(ref, ObjectRef)
    return ref


def _no_target(message: str) -> Refused:
    hint = "APP VERSION, or TENANT/PROJECT/APP/VERSION/NAME of an Artifact, or REPOSITORY@DIGEST"
    return Refused("no_such_object", message, hint=hint)


def _registered(text: str, commits: Commits, base: Revision) -> ObjectRef:
    """The one Artifact that names this place and digest."""
    place, _, digest = text.partition("@")
    found = []
    for ref in artifacts_in(commits, base):
        form = commits.form(ref, base)
        spec = _spec(form.document if form is not None else None)
        if spec.get("digest") == digest and place in (spec.get("repository"), spec.get("source")):
            found.append(ref)
    if len(found) == 1:
        return found[0]
    if not found:
        hint = "gpuaas artifact register writes one; gpuaas artifact list shows what there is"
        raise Refused("no_such_object", f"no Artifact names {text}", hint=hint)
    named = ", ".join(map(str, found))
    raise Refused("ambiguous_object", f"several Artifacts name {text}: {named}", hint="name one")


def artifacts_in(commits: Commits, base: Revision) -> Iterator[ObjectRef]:
    """The Artifacts that have a file of their own, by its name."""
    pattern = KINDS["Artifact"].pattern
    for path in commits.paths(base):
        match = pattern.fullmatch(path)
        if match is not None:
            yield ObjectRef("Artifact", match.groups())


def prepare(
    commits: Commits,
    ref: ObjectRef,
    base: Revision,
    asked: Asked,
    check: Check,
    limits: ParseLimits,
) -> Promoting:
    """The change of `ref` to what is asked. Refused for an illegal step, or no change at all."""
    now = commits.form(ref, base)
    path = now.path if now is not None else KINDS[ref.kind].path_of(ref.path)
    there = commits.content(base, path) is not None
    if there and (now is None or now.document is None):
        hint = "gpuaas validate shows what is wrong; mend that first"
        raise Refused("form_unreadable", f"{ref} can't be read", where=path, hint=hint)
    if now is None and not _may_begin(ref, commits, base):
        raise _unknown(ref, commits, base)
    wanted, edits = _wanted(ref, now, asked)
    document = now.document if now is not None else None
    wrong = illegal(ref, document, wanted)
    if wrong is not None:
        raise Refused(ILLEGAL_STEP, wrong.message, hint=wrong.hint)
    if document is not None and not field_changes(document, wanted):
        raise Refused("nothing_to_change", f"{ref} is {asked.state} already, and says the same")
    files = _files(commits, ref, base, now, wanted, edits, limits)
    return Promoting(
        ref=ref,
        base=base,
        state=asked.state,
        reason=asked.reason,
        files=files,
        before={path: commits.content(base, path) for path in files},
        fields=field_changes(document, wanted) if document is not None else (),
        in_the_way=in_the_way(commits.snapshot(base), files, check),
    )


def message_of(made: Promoting) -> str:
    """The commit message; the reason stands where the audit trail looks for it."""
    body = "\n".join(field_line(field) for field in made.fields)
    middle = f"{body}\n\n" if body else ""
    return f"Make {made.ref} {made.state}\n\n{middle}Reason: {printable(made.reason)}\n"


def _may_begin(ref: ObjectRef, commits: Commits, base: Revision) -> bool:
    """A Promotion is made for a version that is there; an Artifact is registered first."""
    version = ObjectRef("AppVersion", ref.path)
    return ref.kind == "Promotion" and commits.form(version, base) is not None


def _unknown(ref: ObjectRef, commits: Commits, base: Revision) -> Refused:
    kind = "AppVersion" if ref.kind == "Promotion" else ref.kind
    pattern = KINDS[kind].pattern
    matches = (pattern.fullmatch(path) for path in commits.paths(base))
    known = ["/".join(match.groups()) for match in matches if match is not None]
    near = nearest("/".join(ref.path), known)
    hint = f"did you mean {near}?" if near else f"add {KINDS[kind].path_of(ref.path)} first"
    return Refused(
        "no_such_object", f"there is no {kind}/{'/'.join(ref.path)} in {base[:12]}", hint=hint
    )


# --- what it is to say ---------------------------------------------------------------------------


def _wanted(ref: ObjectRef, now: Form | None, asked: Asked) -> tuple[Mapping[str, Any], _Edits]:
    known = {state for state in STEPS[ref.kind] if state}
    if asked.state not in known:
        near = nearest(asked.state, known)
        hint = f"did you mean {near}?" if near else f"states: {', '.join(sorted(known))}"
        raise Refused("unknown_state", f"{ref.kind} has no state {asked.state[:40]!r}", hint=hint)
    document: dict[str, Any] = _new(ref)
    if now is not None:
        document = copy.deepcopy(dict(now.document or {}))
    spec = document.setdefault("spec", {})
    edits = (
        _of_promotion(ref, spec, asked) if ref.kind == "Promotion" else _of_artifact(spec, asked)
    )
    for steps, value in edits:
        _put(document, steps, value)
    return document, edits


def _new(ref: ObjectRef) -> dict[str, Any]:
    return {"apiVersion": "gpuaas.dev/v1", "kind": ref.kind, "metadata": {"name": ref.name}}


def _of_promotion(ref: ObjectRef, spec: Mapping[str, Any], asked: Asked) -> _Edits:
    edits: list[tuple[tuple[str, ...], Any]] = [(("spec", "state"), asked.state)]
    given: dict[str, Any] = {}
    if asked.projects is not None:
        given["projects"] = [*asked.projects]
    if asked.percent is not None:
        given["percent"] = asked.percent
    if asked.failed_max is not None:
        given["step_back"] = {"failed_max": asked.failed_max}
    if asked.channels is not None:
        raise Refused("not_for_versions", "channels are of artifacts", hint="leave --channel out")
    if given and asked.state != "canary":
        hint = "leave --project, --percent and --step-back out, or say --to canary"
        raise Refused(
            "not_a_canary", f"only a canary has a scope, and not {asked.state}", hint=hint
        )
    if isinstance(spec.get("canary"), Mapping):
        edits += [(("spec", "canary", name), value) for name, value in given.items()]
    elif given:
        edits.append((("spec", "canary"), given))
    elif asked.state == "canary":
        message = f"nobody would get {ref} as a canary"
        hint = "--project TENANT/PROJECT, or --percent N, or both"
        raise Refused("canary_without_scope", message, hint=hint)
    return [*edits, (("spec", "reason"), asked.reason)]


def _of_artifact(spec: Mapping[str, Any], asked: Asked) -> _Edits:
    if any(one is not None for one in (asked.percent, asked.projects, asked.failed_max)):
        hint = "leave --project, --percent and --step-back out"
        raise Refused("not_a_canary", "an artifact has channels, and no canary scope", hint=hint)
    edits: list[tuple[tuple[str, ...], Any]] = [(("spec", "state"), asked.state)]
    if asked.channels is not None and asked.state != "promoted":
        hint = "leave --channel out, or say --to promoted"
        raise Refused("not_promoted", "channels are of an artifact that is promoted", hint=hint)
    if asked.channels is not None:
        edits.append((("spec", "channels"), [*asked.channels]))
    elif "channels" in spec and asked.state != "promoted":
        edits.append((("spec", "channels"), _GONE))
    return edits


def _put(document: dict[str, Any], steps: tuple[str, ...], value: Any) -> None:
    place = document
    for step in steps[:-1]:
        place = place[step]
    if value is _GONE:
        place.pop(steps[-1], None)
    else:
        place[steps[-1]] = value


def _spec(document: Mapping[str, object] | None) -> Mapping[str, Any]:
    spec = (document or {}).get("spec")
    return spec if isinstance(spec, Mapping) else {}


# --- files ---------------------------------------------------------------------------------------


def _files(
    commits: Commits,
    ref: ObjectRef,
    base: Revision,
    now: Form | None,
    wanted: Mapping[str, Any],
    edits: _Edits,
    limits: ParseLimits,
) -> dict[str, bytes | None]:
    if now is None:
        return {KINDS[ref.kind].path_of(ref.path): _anew(wanted).encode()}
    content = commits.content(base, now.path) or b""
    index = index_of(ref, now.path, content, limits)
    then = Form(now.path, "", wanted)
    refused: Refused | None = None
    for text in (_in_place(text_of(content, index), edits), _anew(wanted)):
        if text is None:
            continue
        files: dict[str, bytes | None] = {now.path: replaced(content, index, text.encode())}
        try:
            verify(ref, commits, base, files, then, limits)
        except Refused as error:
            refused = error
        else:
            return files
    assert refused is not None
    raise refused


def _in_place(text: bytes, edits: _Edits) -> str | None:
    try:
        edited: str | None = text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    for steps, value in edits:
        if edited is None:
            return None
        gone = value is _GONE
        edited = without_field(edited, steps) if gone else with_value(edited, steps, value)
    return edited


def _anew(document: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=1000)
    return text
