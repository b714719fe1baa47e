"""Who stands behind the signature of a commit.

Rules:
- A key is known by its fingerprint, never by its id or comment. One that is listed twice, or whose
  id is that of another, stands for nobody.
- The time of a commit is given by the caller, who does not believe its date; a revoked key counts
  for nothing, whenever it signed.
- The author of a commit means something where a forge vouches for it, and nowhere else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from reconciler.core.authority.facts import Actor, CommitFacts, Signature, SignatureState
from reconciler.core.authority.grants import ROOT
from reconciler.core.authority.public_key import ssh_public_key
from reconciler.core.desired import StateObject
from reconciler.core.kinds.identity import Identity, IdentitySpec
from reconciler.core.kinds.keys import SignerKey
from reconciler.core.kinds.service_account import ServiceAccount
from reconciler.core.names import ObjectRef
from reconciler.core.printable import printable
from reconciler.core.problems import Problem
from reconciler.core.times import parse_time_ms

_SUBJECT_LENGTH_MAX = 72
_SIGN_AGAIN = "rewrite it with a key that counts (git rebase --exec 'git commit --amend -S'), push"
_UNVERIFIED: Mapping[SignatureState, tuple[str, str, str]] = {
    "none": ("commit_unsigned", "is not signed", "git config commit.gpgsign true; then rewrite it"),
    "bad": ("signature_bad", "has a signature that is not of this commit", _SIGN_AGAIN),
    "unsupported": ("signature_unsupported", "has a signature of a kind not taken", _SIGN_AGAIN),
    "too_large": ("commit_too_large", "is too large to be looked at", "commit less text at a time"),
    "no_key": ("signer_unknown", "is signed with a key that no Identity has", _SIGN_AGAIN),
}


@dataclass(frozen=True)
class Holder:
    """An Identity, and the key of it that was asked for."""

    ref: ObjectRef
    path: str
    spec: IdentitySpec
    key: SignerKey


@dataclass
class Signers:
    """Everybody's keys and addresses by one trust. `fingerprints` may be handed on to the next."""

    trust: Mapping[ObjectRef, StateObject]
    fingerprints: dict[str, str] = field(default_factory=dict, repr=False)
    _holders: dict[str, list[Holder]] = field(init=False, repr=False)
    _ids: dict[str, set[str]] = field(init=False, repr=False)
    _emails: dict[str, list[StateObject]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._holders, self._ids, self._emails = (
            defaultdict(list),
            defaultdict(set),
            defaultdict(list),
        )
        for ref, found in sorted(self.trust.items()):
            if not isinstance(found.manifest, Identity):
                continue
            spec = found.manifest.spec
            for key in spec.keys:
                fingerprint = self._fingerprint(key)
                self._holders[fingerprint].append(Holder(ref, found.path, spec, key))
                self._ids[key.id].add(fingerprint)
            for email in spec.emails if spec.type != "forge" else ():
                self._emails[email.lower()].append(found)

    def resolve(
        self, signature: Signature, facts: CommitFacts, at_ms: int, admin_keys: Iterable[str] = ()
    ) -> Actor | Problem:
        """Who a commit counts as at `at_ms`; `admin_keys` are OpenSSH lines that count by now."""
        if signature.state == "no_key" and signature.key:
            return _unknown(signature, facts)
        if signature.state != "good":
            code, what, hint = _UNVERIFIED[signature.state]
            return commit_problem(facts, code, what + _detail(signature), hint)
        if signature.key in {self._ssh_fingerprint(line) for line in admin_keys}:
            return replace(ROOT, key_id=signature.key)
        holders = self._holders.get(signature.key, ())
        if not holders:
            return _unknown(signature, facts)
        holder = holders[0]
        if len(holders) > 1 or len(self._ids[holder.key.id]) > 1:
            return _ambiguous(facts, holder, holders)
        return self._counting(holder, facts, at_ms) or self._actor(holder, facts)

    def _counting(self, holder: Holder, facts: CommitFacts, at_ms: int) -> Problem | None:
        """Why the identity, or its key, does not count; None when both do."""
        key, who = holder.key, holder.ref.name
        if holder.spec.disabled or self._account_disabled(holder.spec):
            what = f"is signed by {who}, who is disabled"
            return commit_problem(facts, "signer_disabled", what, _SIGN_AGAIN, holder.path)
        if key.revoked is not None:
            what = f"is signed with {key.id} of {who}, revoked: {printable(key.revoked.reason)}"
            return commit_problem(facts, "key_revoked", what, _SIGN_AGAIN, holder.path)
        first, last = _ms(key.valid_from), _ms(key.valid_until)
        if key.valid_from is not None and (first is None or at_ms < first):
            what = f"is signed with {key.id} of {who}, which is valid from {key.valid_from} on only"
            return commit_problem(facts, "key_not_yet_valid", what, _SIGN_AGAIN, holder.path)
        if key.valid_until is not None and (last is None or at_ms >= last):
            what = f"is signed with {key.id} of {who}, which was valid until {key.valid_until}"
            return commit_problem(facts, "key_expired", what, _SIGN_AGAIN, holder.path)
        return None

    def _account_disabled(self, spec: IdentitySpec) -> bool:
        account = ObjectRef("ServiceAccount", tuple((spec.service_account or "").split("/")))
        found = self.trust.get(account)
        return found is not None and _disabled_account(found)

    def _actor(self, holder: Holder, facts: CommitFacts) -> Actor | Problem:
        spec = holder.spec
        if spec.type == "forge" and spec.vouches_for_author:
            return self._author(holder, facts)
        if spec.type == "service_account" and spec.service_account is None:
            what = f"is signed by {holder.ref.name}, which stands for no service account"
            hint = "name one in spec.service_account of the Identity"
            return commit_problem(facts, "signer_unknown", what, hint, holder.path)
        return Actor(spec.type, spec.service_account or holder.ref.name, holder.key.id)

    def _author(self, forge: Holder, facts: CommitFacts) -> Actor | Problem:
        """Whom a forge names as the author. Addresses are ASCII: one that looks alike is none."""
        email, via = facts.author_email, forge.ref.name
        found = self._emails.get(email.lower(), ()) if email.isascii() else ()
        said = printable(email)[:100]
        if not found:
            what = f"was made in {via} by <{said}>, an address that no Identity has"
            hint = "add it to the emails of an Identity first, in a commit before this one"
            return commit_problem(facts, "forge_author_unknown", what, hint, forge.path)
        author = found[0]
        spec = getattr(author.manifest, "spec", None)
        if len(found) > 1 or not isinstance(spec, IdentitySpec):
            what = f"was made in {via} by <{said}>, an address of several identities"
            return commit_problem(facts, "signer_ambiguous", what, "keep it in one", author.path)
        name = author.ref.name
        if spec.disabled or self._account_disabled(spec):
            what = f"was made in {via} by {name}, who is disabled"
            return commit_problem(facts, "signer_disabled", what, _SIGN_AGAIN, author.path)
        if spec.type == "service_account":
            if spec.service_account is None:
                what = f"was made in {via} by {name}, which stands for no service account"
                hint = "name one in spec.service_account of the Identity"
                return commit_problem(facts, "signer_unknown", what, hint, author.path)
            name = spec.service_account
        return Actor(spec.type, name, forge.key.id, via)

    def _fingerprint(self, key: SignerKey) -> str:
        if key.type == "openpgp":
            return key.fingerprint or ""
        return self._ssh_fingerprint(key.public_key)

    def _ssh_fingerprint(self, line: str) -> str:
        """Of a line that is no key, one that nothing is signed with."""
        known = self.fingerprints.get(line)
        if known is None:
            key = ssh_public_key(line)
            known = self.fingerprints[line] = key.key_id if key is not None else f"no key: {line}"
        return known

    def is_admin_key(self, signature: Signature, admin_keys: Iterable[str]) -> bool:
        """Whether it is one of those that the operator gave."""
        return signature.state == "good" and signature.key in {
            self._ssh_fingerprint(line) for line in admin_keys
        }


def resolve_signer(
    signature: Signature,
    facts: CommitFacts,
    trust: Mapping[ObjectRef, StateObject],
    at_ms: int,
    admin_keys: Iterable[str] = (),
) -> Actor | Problem:
    """Who a commit counts as by `trust` at `at_ms`, or why it counts as nobody's."""
    return Signers(trust).resolve(signature, facts, at_ms, admin_keys)


def commit_problem(facts: CommitFacts, code: str, what: str, hint: str, path: str = "") -> Problem:
    """What is wrong with a commit, told so that it can be found."""
    subject = printable(facts.subject)
    if len(subject) > _SUBJECT_LENGTH_MAX:
        subject = f"{subject[: _SUBJECT_LENGTH_MAX - 1]}…"
    message = f"commit {facts.revision[:12]} ({subject}) {what}"
    return Problem(path, 0, 0, code, message, hint=hint)


def _detail(signature: Signature) -> str:
    return f": {printable(signature.detail)[:200]}" if signature.detail else ""


def _unknown(signature: Signature, facts: CommitFacts) -> Problem:
    key = printable(signature.key)
    what = f"is signed with {key}, a key that no Identity has{_detail(signature)}"
    hint = "somebody known adds it to an Identity first, in a commit before this one"
    return commit_problem(facts, "signer_unknown", what, hint)


def _ambiguous(facts: CommitFacts, holder: Holder, holders: Iterable[Holder]) -> Problem:
    names = sorted({one.ref.name for one in holders})
    what = f"is signed with {holder.key.id}, listed more than once (of {', '.join(names)})"
    hint = "each key, and each key id, belongs to one identity"
    return commit_problem(facts, "signer_ambiguous", what, hint, holder.path)


def _disabled_account(found: StateObject) -> bool:
    return isinstance(found.manifest, ServiceAccount) and found.manifest.spec.disabled


def _ms(text: str | None) -> int | None:
    """None also for what is no day of the calendar."""
    try:
        return parse_time_ms(text) if text else None
    except (ValueError, OverflowError):
        return None
