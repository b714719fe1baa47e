"""What is known of commits: values that an adapter reads from Git, and what is made of them.

Rule: a signature is one thing, trust in its key is another. `Signature` says what the cryptography
says, which never changes and may be remembered for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from reconciler.core.names import ObjectRef, Revision
from reconciler.core.problems import Problem

SignatureState = Literal["good", "none", "bad", "no_key", "unsupported", "too_large"]
"""`no_key`: an OpenPGP key that nobody gave us, so that it can't be checked. `unsupported`: X.509,
several signatures in one commit, or what no program here can read. `too_large`: the commit itself.
"""
TRUST_KINDS = frozenset(("Identity", "RoleBinding", "ServiceAccount"))
"""What decides who somebody is and what they may do."""
SignerType = Literal["user", "service_account", "forge"]
ActorType = Literal["user", "service_account", "forge", "instance"]
"""An instance signs no commits: it reads, with a token."""

REFUSALS = frozenset(
    (
        "change_not_allowed",
        "illegal_step",
        "keeps_refused_change",
        "last_admin",
        "more_than_own_rights",
        "needs_human",
        "outside_own_project",
        "unread_change",
    )
)
"""Why a change counts as not made. What counts instead is as good as any: nothing is invalid."""


@dataclass(frozen=True)
class Signature:
    """`key` is `SHA256:...` of an SSH key, or the upper-case fingerprint of an OpenPGP primary key;
    empty unless the state is good or no_key.
    """

    state: SignatureState
    key: str = ""
    detail: str = ""


@dataclass(frozen=True)
class CommitFacts:
    """A commit as it says of itself. `message` is cut at some length; nothing here is verified."""

    revision: Revision
    parents: tuple[Revision, ...]
    author_name: str
    author_email: str
    committed_at_ms: int
    message: str

    @property
    def subject(self) -> str:
        return self.message.partition("\n")[0]


@dataclass(frozen=True)
class FileForm:
    """A file as one commit has it; `content` is None where it is too large to be read."""

    blob_id: str
    content: bytes | None


@dataclass(frozen=True)
class TouchedFile:
    """A manifest file (.yaml, .yml) that differs between two commits; None: it is not there."""

    path: str
    before: FileForm | None
    after: FileForm | None


@dataclass(frozen=True)
class SideCommit:
    """A commit that a merge brings in, and what it touched since its own first parent."""

    facts: CommitFacts
    touched: tuple[TouchedFile, ...] = ()


@dataclass(frozen=True)
class ChainStep:
    """One commit of the line from the last accepted revision to the head, oldest first.

    `onto` is the parent it is judged against: the first one that is, or comes after, the revision
    the line starts from; None for the first commit of a repository. `touched` is what differs from
    there. `side` is what a merge brings in beside: whatever it has that `onto` has not.
    """

    facts: CommitFacts
    onto: Revision | None
    touched: tuple[TouchedFile, ...] = ()
    side: tuple[SideCommit, ...] = ()


@dataclass(frozen=True)
class Actor:
    """Who stands behind a change. `via` is the forge that vouched for its author, if one did.

    `name` is the Identity's, or `tenant/project/name` of a service account.
    """

    type: ActorType
    name: str
    key_id: str = ""
    via: str = ""

    def __str__(self) -> str:
        """`user/ada`, `service_account/acme/lab/deployer`."""
        return f"{self.type}/{self.name}"


@dataclass(frozen=True)
class RefusedChange:
    """A change that counts as not made, until somebody who may makes it, or it is undone.

    `subject` is an ObjectRef as text, or the path of a file that could not be read. `form_json` is
    what counts instead (None: the object is not there), canonical JSON as in AcceptedObject, and
    `wanted_json` what the repo has, which whoever may can approve. For a file, `form_json` are the
    objects it held when it was read last: ObjectRef as text → canonical JSON. For an object that
    stands in several files, `wanted_json` are its forms by their paths.
    """

    subject: str
    path: str
    revision: Revision
    actor: str
    code: str
    message: str
    hint: str = ""
    form_json: str | None = None
    wanted_json: str | None = None

    @property
    def is_file(self) -> bool:
        return self.subject == self.path


@dataclass(frozen=True)
class SignedChange:
    """One object changed by one commit: who did it, and whether that counts.

    `before` and `after` are content digests, empty where the object is not there.
    """

    ref: ObjectRef
    path: str
    revision: Revision
    actor: Actor
    at_ms: int
    reason: str
    before: str
    after: str
    refusal: str = ""
    """The code of why it does not count; empty when it does."""


@dataclass(frozen=True)
class Walked:
    """What the commits from one revision to another come to.

    `rejection`: the newer revision can't be trusted at all, and nothing of it counts. Otherwise
    `refused` is all that counts as not made at the head, by subject, older refusals included.
    """

    head: Revision
    rejection: Problem | None = None
    refused: Mapping[str, RefusedChange] = field(default_factory=dict)
    changes: tuple[SignedChange, ...] = ()
    commits: int = 0
    at_ms: int = 0
    """Time of the head, as keys are judged by: never before a commit it was built on."""
