"""What is said of drift in a Vault: a line a field, a finding a thing. Pure.

Of a policy the lines say which paths it grants otherwise than it should, and never its whole text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reconciler.core.custody.diff import Change, FieldDrift, policy_words
from reconciler.core.plan import Finding

NOTHING = "(none)"
TEXT_LENGTH_MAX = 120
MEND_HINT = "`gpuaas vault bootstrap` puts it right; see who changed it in Vault's audit log"
REMAKE_HINT = (
    "it can't be changed where it is; if it was not you, take it for compromised: "
    "rotate what depends on it"
)
FOREIGN_HINT = "if nobody knows it, remove it with Vault's own tools"
_LINES_MAX = 4


def drift_lines(drift: FieldDrift) -> tuple[str, ...]:
    """One line, or for a policy one for each path on which it differs."""
    if drift.field == "policy":
        return tuple(_policy_lines(drift))
    return (f"{drift.field}: {_text(drift.found)} → {_text(drift.wanted)}",)


def findings_of(changes: Iterable[Change]) -> tuple[Finding, ...]:
    """As a pass tells them: what is, what should be. They hold nothing up."""
    return tuple(_finding(change) for change in changes)


def _finding(change: Change) -> Finding:
    if change.op == "foreign":
        message = "nobody declared it, and it is where only the control plane's things are"
        return Finding("info", "vault_foreign", change.object, message, FOREIGN_HINT)
    if change.op == "create":
        message = "it is not there"
        return Finding("info", "vault_drift", change.object, message, MEND_HINT)
    lines = [line for drift in change.fields for line in drift_lines(drift)]
    more = len(lines) - _LINES_MAX
    told = [*lines[:_LINES_MAX], *([f"and {more} more"] if more > 0 else [])]
    hint = REMAKE_HINT if change.op == "remake" else MEND_HINT
    message = "found → wanted: " + "; ".join(told)
    return Finding("info", "vault_drift", change.object, message, hint)


def _policy_lines(drift: FieldDrift) -> Iterator[str]:
    found, wanted = _stanzas(drift.found), _stanzas(drift.wanted)
    for path in sorted(found.keys() | wanted.keys()):
        has, should = found.get(path), wanted.get(path)
        if has != should:
            yield f"{path}: {_granted(has, should)} → {_granted(should, has)}"


def _granted(stanza: tuple[str, ...] | None, other: tuple[str, ...] | None) -> str:
    """The capabilities, or all of it where those alone would not tell it from the other."""
    if stanza is None:
        return NOTHING
    short = _capabilities(stanza)
    same = other is not None and short == _capabilities(other)
    return _text(" ".join(stanza) if same or not short else short)


def _capabilities(stanza: tuple[str, ...]) -> str:
    if "capabilities" not in stanza:
        return ""
    rest = stanza[stanza.index("capabilities") :]
    end = rest.index("]") if "]" in rest else len(rest)
    return ", ".join(word.strip('"') for word in rest[:end] if word.startswith('"'))


def _stanzas(policy: str) -> dict[str, tuple[str, ...]]:
    """Path → the words of all its stanzas. What stands before any path is under none."""
    found: dict[str, tuple[str, ...]] = {}
    words, path = policy_words(policy), ""
    for index, word in enumerate(words):
        if word == "path" and index + 1 < len(words):
            path = words[index + 1].strip('"')
        elif not (index and words[index - 1] == "path"):
            found[path] = (*found.get(path, ()), word)
    return found


def _text(value: str) -> str:
    cut = value if len(value) <= TEXT_LENGTH_MAX else value[: TEXT_LENGTH_MAX - 1] + "…"
    return cut or NOTHING
