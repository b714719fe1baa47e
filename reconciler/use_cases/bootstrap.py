"""The first files of a state repo: one environment, and one person who may do everything in it.

Rules: pure. What is written passes `gpuaas validate`; who holds the key can let others in.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core.authority.public_key import PublicKey
from reconciler.core.names import NAME, Revision
from reconciler.core.source import Snapshot, SourceFile
from reconciler.errors import Refused

IAM_FOLDER = "platform/iam/"
MESSAGE = "Say who may do what"
_LOOPBACK = re.compile(r"(?:localhost|127\.[0-9.]+|\[::1\])(?::|$)")


@dataclass(frozen=True)
class Beginning:
    """What is asked for. `email` may be empty; `registry` is host:port."""

    key: PublicKey
    admin: str
    email: str
    environment: str
    registry: str


def files_for(asked: Beginning, there: frozenset[str]) -> dict[str, bytes]:
    """Path → content. An Environment is added where there is none, the rest only to a new repo.

    Refused init_exists when somebody may do something there already, or a file is in the way.
    """
    _refuse_names(asked)
    known = sorted(path for path in there if path.startswith(IAM_FOLDER))
    if known:
        hint = "gpuaas whoami says who you are to it; an admin adds you there"
        message = "this repo says already who may do what"
        raise Refused("init_exists", message, where=known[0], hint=hint)
    texts = {f"{IAM_FOLDER}{asked.admin}.yaml": _iam(asked)}
    if not any(path.startswith("environments/") for path in there):
        texts[f"environments/{asked.environment}.yaml"] = _environment(asked)
    if not there:
        texts |= {"README.md": _README, ".gitignore": _IGNORED, ".pre-commit-config.yaml": _HOOK}
    return {path: text.encode() for path, text in sorted(texts.items())}


def as_snapshot(files: Mapping[str, bytes]) -> Snapshot:
    """The files alone, to be checked as a revision."""
    read = ".yaml"
    found = (SourceFile(p, "", text if p.endswith(read) else b"") for p, text in files.items())
    return Snapshot(Revision("0" * 40), tuple(found), "", "", 0)


def signing_config(key: PublicKey, path: str) -> dict[str, str]:
    """How Git is told to sign with it; `path` is that of the public key's file."""
    named = path if key.type == "ssh" else key.key_id
    return {"gpg.format": key.type, "user.signingKey": named}


def commit_command(folder: str, config: Mapping[str, str]) -> str:
    """What a person types where we could not sign."""
    options = [word for name, value in config.items() for word in ("-c", f"{name}={value}")]
    return shlex.join(["git", "-C", folder, *options, "commit", "-S", "-m", MESSAGE])


def settings_text(
    asked: Beginning, repo: str, branch: str, root: Revision | None, *, existing: bool
) -> str:
    """What `gpuaas.toml` says of it. An SSH key is trusted by itself; anything else, and what was
    there before, by the commit. `root` None: not committed yet.
    """
    lines = [
        "# What this control plane works on, and who it believes to begin with.",
        f"repo = {json.dumps(repo)}",
        f"branch = {json.dumps(branch)}",
        f"environment = {json.dumps(asked.environment)}",
    ]
    if existing or asked.key.type != "ssh":
        lines.append(f"trust_root = {json.dumps(root or 'the id of that commit')}")
    else:
        lines.append(f"admin_keys = [{json.dumps(asked.key.text)}]")
    return "\n".join(lines) + "\n"


def _refuse_names(asked: Beginning) -> None:
    named = {"--admin-name": asked.admin, "--environment": asked.environment}
    for option, name in named.items():
        if not re.fullmatch(NAME, name):
            hint = "lower-case letters, digits and hyphens, at most 63"
            raise Refused("bad_name", f"{option}: not a name: {name[:80]!r}", hint=hint)


def _iam(asked: Beginning) -> str:
    lines = [
        "# Who may sign commits, and who may do what. Each commit is judged by what stood here",
        "# before it. To let somebody in, add an Identity with a key, and a RoleBinding.",
        *_head("Identity", asked.admin),
        "  type: user",
        f"  display_name: {asked.admin}",
        *([f"  emails: [{json.dumps(asked.email)}]"] if asked.email else []),
        "  keys:",
        f"    - id: {asked.admin}-1",
        f"      type: {asked.key.type}",
        *_key_lines(asked.key),
        "---",
        *_head("RoleBinding", "platform-admins"),
        "  subjects:",
        f"    - identity: {asked.admin}",
        "  role: platform-admin",
        "  scope:",
        "    platform: true",
    ]
    return "\n".join(lines) + "\n"


def _key_lines(key: PublicKey) -> list[str]:
    if key.type == "ssh":
        return [f"      public_key: {key.text}"]
    block = [f"        {line}".rstrip() for line in key.text.splitlines()]
    return [f'      fingerprint: "{key.key_id}"', "      public_key: |", *block]


def _environment(asked: Beginning) -> str:
    plain = bool(_LOOPBACK.match(asked.registry))
    lines = [
        *_head("Environment", asked.environment),
        f"  domain: {asked.environment}.gpuaas.internal",
        "  registry:",
        f"    endpoint: {json.dumps(asked.registry)}",
        *(["    plain_http: true"] if plain else []),
        "  guards:",
        "    removals_max: 5",
        "    removals_max_percent: 30",
    ]
    return "\n".join(lines) + "\n"


def _head(kind: str, name: str) -> tuple[str, ...]:
    envelope = ("apiVersion: gpuaas.dev/v1", f"kind: {kind}")
    return (*envelope, "metadata:", f"  name: {name}", "spec:")


_README = """# State repo

What should run on our GPUs, and who may say so. `gpuaas` makes it so, from signed commits only.

| folder | what |
|---|---|
| `platform/iam/` | who may sign, and who may do what |
| `environments/` | where it runs |
| `platform/nodes/` | the hosts (`gpuaas import node NAME` writes them) |
| `catalog/` | apps, their versions and promotions |
| `tenants/` | tenants, projects, what they may use, and their instances |

Before you commit: `gpuaas validate`. Who you are to this repo: `gpuaas whoami`. What you may do:
`gpuaas can NAME --diff HEAD`.
"""
_IGNORED = """# Saved plans, and settings of who works in this checkout: no part of the record.
/plan*.json
/gpuaas.toml
"""
_HOOK = """repos:
  - repo: local
    hooks:
      - id: gpuaas-validate
        name: gpuaas validate
        entry: gpuaas validate
        language: system
        pass_filenames: false
        files: \\.ya?ml$
"""
