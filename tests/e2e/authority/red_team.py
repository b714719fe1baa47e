"""A control plane that asks for signatures, and everybody who wants something of it.

Rules:
- `gpuaas run` is a real process that fetches from a bare repository; commits are made by git and
  signed by ssh-keygen and gpg, as people make them.
- What counts is read from its store, what it says over HTTP, as `gpuaas status` has it.
- Whatever a test pushes is undone after it: a rejected branch is pushed again as it was, and what
  was accepted is undone in a commit signed by the admin.

Ada may do everything; the operator's key began the repository. Dora operates acme/research. `bot`
is a machine of that project, `forge` vouches for who merges in its page. Nobody knows Eve.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml

from reconciler.core.audit import DONE
from reconciler.core.authority.facts import RefusedChange
from reconciler.core.names import Revision
from reconciler.core.records import Accepted, AuditEntry
from reconciler.devkit import process
from reconciler.devkit.services import free_port
from reconciler.devkit.signing import SigningKey, git_config
from reconciler.ports import Store
from reconciler.settings import Settings
from reconciler.use_cases import audit as trail
from reconciler.wiring.ports import open_ports
from tests.cli.signed_state import binding, dumped, identity
from tests.core import builders
from tests.e2e.platform import READY_TIMEOUT_S, gpuaas, program
from tests.server.auth_world import Pair, pair
from tests.services.git_repo import GitRepo
from tests.waiting import LIMIT_S, wait_until

PEOPLE = "platform/iam/people.yaml"
MACHINES = "platform/iam/machines.yaml"
ROLES = "platform/iam/roles.yaml"
BOT = "tenants/acme/projects/research/service-accounts/bot.yaml"
SPY = "tenants/acme/projects/lab/service-accounts/spy.yaml"
LAB = "tenants/acme/projects/lab"
LAB_INSTANCE = f"{LAB}/instances/two.yaml"
INSTANCE_FILE, ENTITLEMENT_FILE = builders.INSTANCE_FILE, builders.ENTITLEMENT_FILE
NODE_FILE, ENVIRONMENT_FILE = builders.NODE_FILE, builders.ENVIRONMENT_FILE
INSTANCE, LAB_ONE = "AppInstance/acme/research/one", "AppInstance/acme/lab/two"
ENTITLEMENT = "Entitlement/acme/research/hello"
NODE = "Node/gpu-1"
ADMIN, DEVELOPER, FORGE, MACHINE, NOBODY = "ada", "dora", "forge", "bot", "eve"
OPERATOR = "operator"
SUBJECT = "edit"
CONTROL_PLANE = "control-plane"
NO_NODE = f"user/dora may not change {NODE}: fleet.node.edit is missing on the platform"
FORGE_ITSELF = ("Forge", "noreply@forge.example")

Document = dict[str, Any]
Files = Mapping[str, str | bytes | None]


class RedTeam:
    """One control plane under `root`, started by `start`, and a work tree that pushes to it."""

    def __init__(self, root: Path, settings: Mapping[str, str] | None = None) -> None:
        self.root = root
        names = (OPERATOR, ADMIN, DEVELOPER, FORGE, MACHINE, NOBODY)
        self.keys = {name: SigningKey.ssh(root / "keys", name) for name in names}
        self.pairs: dict[str, Pair] = {name: pair(f"{name}-token") for name in ("bot", "spy")}
        self.bare = GitRepo(root / "state.git", "--bare", config={}, make=True).folder
        self.repo = GitRepo(root / "work")
        self.listen = f"127.0.0.1:{free_port()}"
        self.environment = {
            "GPUAAS_STATE_DIR": str(root / "state"),
            "GPUAAS_REPO": str(self.bare),
            "GPUAAS_ENVIRONMENT": builders.ENVIRONMENT,
            "GPUAAS_LISTEN": self.listen,
            "GPUAAS_AGENTS_LISTEN": "127.0.0.1:0",
            "GPUAAS_SIGNATURES": "required",
            "GPUAAS_ADMIN_KEYS": json.dumps([self.keys[OPERATOR].public_line]),
            "GPUAAS_POLL_INTERVAL_S": "600",
            "GPUAAS_RESYNC_INTERVAL_S": "60",
            "GPUAAS_LEASE_TTL_S": "1.5",
            **(settings or {}),
        }
        self.base = Revision("")
        self._http = httpx.Client(base_url=f"http://{self.listen}", timeout=20.0, trust_env=False)
        self._service: process.Service | None = None
        self._opened = ExitStack()
        self._store: Store | None = None
        self._secret = ""
        self._audited = 0
        self._before = Accepted()

    # --- the process ------------------------------------------------------------------------------

    def begin(self) -> None:
        """The first commit, by the operator's key, and a control plane that accepted it."""
        self.base = self.commit(OPERATOR, first_files(self.keys, self.pairs), "The first one")
        self.push()
        self.start()
        self.wait_accepted(self.base)
        self.new_test()

    def start(self, *, ready: bool = True) -> None:
        argv = [program("gpuaas"), "run"]
        self._service = process.start(CONTROL_PLANE, argv, self.root, self.environment)
        if ready:
            answers = "/readyz"
            process.wait_ready(self._service, lambda: self._answers(answers), READY_TIMEOUT_S)
        else:
            process.wait_ready(self._service, lambda: self._answers("/healthz"), READY_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, said or cleaned up."""
        assert self._service is not None
        os.kill(self._service.identity.pid, signal.SIGKILL)
        self._service.stop()

    def stop(self) -> None:
        if self._service is not None:
            self._service.stop(grace_s=0.2)
        self._http.close()
        for key in self.keys.values():
            key.close()
        self._opened.close()

    def _answers(self, path: str) -> bool:
        try:
            return self._http.get(path).is_success
        except httpx.TransportError:
            return False

    # --- what people do ---------------------------------------------------------------------------

    def commit(
        self,
        who: str,
        files: Files | None = None,
        message: str = SUBJECT,
        *options: str,
        **variables: str,
    ) -> Revision:
        """Signed with the key of `who`; with none where that is empty."""
        self.write(files or {})
        self.repo.git("add", "--all")
        return self.recorded(
            who, "commit", "--quiet", "--allow-empty", "--message", message, *options, **variables
        )

    def write(self, files: Files) -> None:
        for path, content in files.items():
            place = self.repo.folder / path
            if content is None:
                place.unlink()
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())

    def recorded(self, who: str, *command: str, **variables: str) -> Revision:
        """Runs a git command that commits, signed by `who`; returns the new head."""
        options = git_config(self.keys[who]) if who else []
        self.repo.git(*options, *command, given=b"", **variables)
        return self.repo.head()

    def merge(self, who: str, branch: str, *options: str, **variables: str) -> Revision:
        command = ("merge", "--quiet", "--no-ff", "--message", f"Merge {branch}", *options, branch)
        return self.recorded(who, *command, **variables)

    def merge_in_forge(self, author: tuple[str, str], branch: str, *options: str) -> Revision:
        """As a forge does it for somebody on its page, signed with its own key."""
        return self.merge(FORGE, branch, *options, **by_forge(author))

    def text(self, path: str) -> str:
        return (self.repo.folder / path).read_text()

    def text_at_base(self, path: str) -> str:
        """As the first commit has it."""
        return self.repo.git("show", f"{self.base}:{path}")

    def edited(self, path: str, old: str, new: str) -> dict[str, str]:
        text = self.text(path)
        assert old in text, text
        return {path: text.replace(old, new)}

    def push(self, *options: str) -> None:
        """Pushes the work tree's head as main, whatever it replaces, and says so."""
        self.push_only(*options)
        if self._secret:
            self.webhook()

    def push_only(self, *options: str) -> None:
        """And tells nobody."""
        command = ("push", "--quiet", "--force", *options)
        self.repo.git(*command, str(self.bare), "HEAD:refs/heads/main")

    def webhook(self) -> None:
        body = json.dumps({"ref": "refs/heads/main"}).encode()
        digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={digest}", "Content-Type": "application/json"}
        answer = self._http.post("/v1/hooks/git", content=body, headers=headers)
        assert answer.status_code == 202, answer.text

    def send(self, who: str, files: Files, message: str = SUBJECT) -> Revision:
        """Commits and pushes it, and waits until it is accepted, refusals apart."""
        made = self.commit(who, files, message)
        self.push()
        self.wait_accepted(made)
        return made

    def person(self, name: str, role: str = "app-operator", **key: Any) -> SigningKey:
        """Ada lets somebody in, who operates acme/research; `key` is said of the key."""
        made = self.keys.get(name) or SigningKey.ssh(self.root / "keys", name)
        self.keys[name] = made
        who = identity(name, made)
        who["spec"]["keys"][0].update(key)
        bound = binding(f"{name}-may", name, role, {"project": "acme/research"})
        self.send(ADMIN, {f"platform/iam/{name}.yaml": dumped(who, bound)}, f"{name} is here")
        return made

    def openpgp_key(
        self, who: str, subkey: str = "", name: str = "", email: str = ""
    ) -> SigningKey:
        # gpg's sockets lie beside its keys, and the path of a socket has to be short.
        folder = self._opened.enter_context(TemporaryDirectory(prefix="gpg-"))
        email = email or f"{who}@acme.example"
        made = SigningKey.openpgp(Path(folder), name or who, email, subkey=subkey)
        self.keys[who] = made
        return made

    # --- what comes of it -------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        if self._store is None:
            settings = Settings(state_dir=self.root / "state", repo=str(self.bare))
            self._store = self._opened.enter_context(open_ports(settings, make=False)).store
        return self._store

    def accepted(self) -> Accepted:
        return self.store.accepted()

    def form(self, subject: str) -> Document | None:
        """The form that counts of an object."""
        return forms(self.accepted()).get(subject)

    def status(self) -> Document:
        document: Document = self._http.get("/v1/status").json()
        return document

    def findings(self, *codes: str) -> list[Document]:
        last = self.status()["last_pass"]
        found = last["findings"] if last else []
        return [one for one in found if one["code"] in codes or not codes]

    def cli(self, *args: str) -> str:
        """What `gpuaas` says; it has to end well."""
        done = gpuaas(*args, environment=self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def wait_accepted(self, revision: str) -> None:
        """Until a pass has ended with this revision as the one that counts."""

        def ask() -> bool:
            last = self.status()["last_pass"]
            return last is not None and last["revision"] == revision

        try:
            wait_until(ask, LIMIT_S)
        except AssertionError:
            raise AssertionError(self._story(f"{revision} is not accepted")) from None

    def wait_finding(self, code: str, message: str) -> Document:
        def ask() -> Document | None:
            return next((f for f in self.findings(code) if f["message"] == message), None)

        try:
            return wait_until(ask, LIMIT_S)
        except AssertionError:
            raise AssertionError(self._story(f"{code} is not said: {message}")) from None

    def wait_code(self, code: str) -> Document:
        """The first finding of that code, once there is one."""
        (found, *_) = wait_until(lambda: self.findings(code), LIMIT_S)
        return found

    def wait_failed(self, message: str) -> None:
        """Until a pass failed, for just that reason."""

        def ask() -> bool:
            last = self.status()["last_pass"]
            return last is not None and last["result"] == "failed" and message in last["message"]

        try:
            wait_until(ask, LIMIT_S)
        except AssertionError:
            raise AssertionError(self._story(f"it is not said: {message}")) from None

    def audit(self) -> list[AuditEntry]:
        """What the audit trail tells of since the test began."""
        return [row.entry for row in self.store.audit(self._audited, 2000)]

    def rejected(self, code: str, message: str) -> Document:
        """The revision that was pushed counts for nothing, and is said so everywhere."""
        found = self.wait_finding(code, message)
        now, head = self.accepted(), self.repo.head()
        assert now.revision == self._before.revision
        assert forms(now) == forms(self._before)
        told = [
            e for e in self.audit() if (e.action, e.object) == ("state.revision.rejected", head)
        ]
        assert [(entry.result, entry.reason) for entry in told] == [(code, message)]
        return found

    def refused(
        self, revision: str, subject: str, code: str, message: str, head: str = ""
    ) -> RefusedChange:
        """What that commit did to one object counts as not made, and is said so everywhere."""
        self.wait_accepted(head or revision)
        now = self.accepted()
        assert subject in now.refused, self._story(f"{subject} is not refused")
        refused = now.refused[subject]
        assert (refused.code, refused.revision) == (code, revision)
        assert refused.message == message, refused.message
        assert [f["message"] for f in self.findings(code) if f.get("object") == subject] == [
            message
        ]
        told = {(e.object, e.result) for e in self.audit() if e.revision == revision}
        assert (subject, code) in told
        assert forms(now).get(subject) == forms(self._before).get(subject)
        return refused

    def unchanged(self, *subjects: str) -> None:
        """These count as they did when the test began, or as they did at `note`; or everything."""
        now, before = forms(self.accepted()), forms(self._before)
        for subject in subjects or sorted({*now, *before}):
            assert now.get(subject) == before.get(subject), subject

    def made_by(self, subject: str) -> str:
        """Whose change gave an object the form that counts."""
        return self.accepted().objects[subject].by

    def done_by(self, revision: str) -> set[tuple[str, str]]:
        """Who changed what in a commit, as the audit trail has it: what counts of it."""
        rows = [e for e in self.audit() if e.revision == revision and e.result == DONE]
        return {(e.actor, e.object) for e in rows if e.object != revision}

    def log(self) -> str:
        return (self.root / f"{CONTROL_PLANE}.log").read_text()

    # --- from test to test ------------------------------------------------------------------------

    def new_test(self) -> None:
        if not self._secret:
            self._secret = self.cli("webhook").strip()
        self.note()

    def note(self) -> None:
        """What counts now is what is not to change from here on."""
        self._audited = self.store.audit_head()[0]
        self._before = self.accepted()

    def undo(self) -> None:
        """Back to how the first commit had it, by what its people would do."""
        verified = trail.verify_store(self.store, None)
        assert verified.broken is None, verified.broken
        good = self.accepted().revision
        self.repo.git("checkout", "--quiet", "--force", "-B", "main", str(good))
        self.repo.git("clean", "--quiet", "--force", "-d")
        self.repo.git("read-tree", "--reset", "-u", str(self.base))
        refused = [f"Approves: {subject}" for subject in self.accepted().refused]
        done = self.commit(ADMIN, {}, "\n".join(["As it was", "", *refused]))
        self.push()
        self.wait_accepted(done)
        assert not self.accepted().refused

    def _story(self, said: str) -> str:
        log = process.log_tail(self.root / f"{CONTROL_PLANE}.log")
        return "\n\n".join([said, json.dumps(self.findings(), indent=1), log])


def more_memory(team: RedTeam) -> dict[str, str]:
    """What Dora may change, and the bot."""
    return team.edited(INSTANCE_FILE, "memory_gib: 4", "memory_gib: 5")


def more_cores(team: RedTeam) -> dict[str, str]:
    """What Ada may change, and nobody else."""
    return team.edited(NODE_FILE, "cpu_cores: 32", "cpu_cores: 64")


def said(commit: str, what: str, subject: str = SUBJECT) -> str:
    return f"commit {commit[:12]} ({subject}) {what}"


def by_forge(author: tuple[str, str]) -> dict[str, str]:
    """Who a commit that a forge makes is by, as git takes it from its environment."""
    return {
        "GIT_AUTHOR_NAME": author[0],
        "GIT_AUTHOR_EMAIL": author[1],
        "GIT_COMMITTER_NAME": FORGE_ITSELF[0],
        "GIT_COMMITTER_EMAIL": FORGE_ITSELF[1],
    }


def dated(at_s: float) -> dict[str, str]:
    return {name: f"{int(at_s)} +0000" for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE")}


def stamp(at_s: float) -> str:
    """As a manifest has a time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def forms(accepted: Accepted) -> dict[str, Document]:
    """What counts, by object."""
    found = accepted.objects.items()
    return {subject: json.loads(stored.document_json) for subject, stored in found}


def with_subject(text: str, name: str) -> str:
    """The file of roles with one more subject of its first binding."""
    documents = list(yaml.safe_load_all(text))
    documents[0]["spec"]["subjects"].append({"identity": name})
    return dumped(*documents)


def changed_identity(text: str, name: str, **spec: Any) -> str:
    """The file of people with something else said of one of them."""
    documents = list(yaml.safe_load_all(text))
    (found,) = (one for one in documents if one["metadata"]["name"] == name)
    found["spec"].update(spec)
    return dumped(*documents)


def machine_identity(name: str, key: SigningKey, account: str) -> Document:
    return identity(name, key, type="service_account", service_account=account)


def service_account(name: str, keys: Sequence[Pair], **spec: Any) -> Document:
    entries = [one.entry() for one in keys]
    return {
        "apiVersion": "gpuaas.dev/v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name},
        "spec": {"roles": ["app-operator"], "public_keys": entries, **spec},
    }


def first_files(keys: Mapping[str, SigningKey], pairs: Mapping[str, Pair]) -> dict[str, str]:
    """Path → text of a small platform and of everybody who is known there."""
    documents = builders.world()
    builders.add_project(documents, "acme", "lab")
    builders.add(documents, LAB_INSTANCE, builders.instance_spec(gpu_count=0))
    # Nobody answers there, and says so at once.
    documents[ENVIRONMENT_FILE]["spec"]["registry"]["endpoint"] = "127.0.0.1:9"
    texts = {path: dumped(one) for path, one in documents.items()}
    texts[PEOPLE] = dumped(
        identity(ADMIN, keys[ADMIN], emails=["ada@acme.example"]),
        identity(DEVELOPER, keys[DEVELOPER], emails=["dora@acme.example"]),
    )
    texts[MACHINES] = dumped(
        identity(FORGE, keys[FORGE], type="forge", vouches_for_author=True),
        machine_identity(MACHINE, keys[MACHINE], "acme/research/bot"),
    )
    texts[ROLES] = dumped(
        binding("admins", ADMIN, "platform-admin", {"platform": True}),
        binding("developers", DEVELOPER, "app-operator", {"project": "acme/research"}),
    )
    texts[BOT] = dumped(service_account("bot", [pairs["bot"]]))
    texts[SPY] = dumped(service_account("spy", [pairs["spy"]]))
    return texts
