"""`gpuaas init`: a state repo whose first commit is signed by whoever may do everything in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, format_option, load_settings, print_json
from reconciler.cli.diff import print_lines
from reconciler.core.names import Revision
from reconciler.errors import Refused
from reconciler.use_cases.bootstrap import (
    MESSAGE,
    Beginning,
    as_snapshot,
    commit_command,
    files_for,
    settings_text,
    signing_config,
)
from reconciler.use_cases.validation import check
from reconciler.views.changes import Line
from reconciler.wiring.keys import Place, commit_signed, knows_who, look, read_public_key, stage

FORMAT = "gpuaas.dev/init/v1"
_NOT_SIGNED = ("git_cannot_sign", "git_no_identity")


@dataclass(frozen=True)
class _Made:
    """What came of it. `commit` None: staged only, since `why`."""

    asked: Beginning
    place: Place
    files: tuple[str, ...]
    commit: Revision | None
    command: str
    settings: str
    settings_file: Path | None
    why: str = ""


@click.command(
    epilog="Exit codes: 0 the commit is there, 1 an error, or it could not be signed; then all is "
    "staged, and the command that commits it is shown."
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--admin-key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key of the first admin: an OpenSSH .pub file, or an armored OpenPGP key.",
)
@click.option("--admin-name", default="admin", show_default=True, help="Name of that identity.")
@click.option("--admin-email", default="", help="Address in that identity, and of the commit.")
@click.option(
    "--environment", "-e", default="prod", show_default=True, help="Name of the Environment."
)
@click.option(
    "--registry",
    default="127.0.0.1:5000",
    show_default=True,
    help="host:port of the OCI registry that artifacts come from.",
)
@click.option("--branch", default="main", show_default=True, help="Branch of a new repository.")
@click.option(
    "--existing",
    is_flag=True,
    help="Add to a repository with commits: what is there counts on your word, as of this commit.",
)
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the control plane's gpuaas.toml, outside the repo.  [default: beside "
    "FOLDER, where there is none yet]",
)
@format_option
def init(
    folder: Path,
    admin_key: Path,
    branch: str,
    existing: bool,
    settings_file: Path | None,
    output: str,
    **given: str,
) -> int:
    """Make a state repo at FOLDER, in which the holder of one key may do everything.

    Writes an Environment, an Identity with that key and its RoleBinding, and commits them, signed
    with that key. From then on only what somebody signs who may counts. Nothing that is there is
    written over. A private key is neither asked for nor read: Git signs, with the file beside the
    public key, an agent, or gpg.

    \b
    Examples:
      gpuaas init state --admin-key ~/.ssh/id_ed25519.pub --admin-name ada
      gpuaas init state --admin-key ada.asc --admin-name ada --environment dev
      gpuaas init . --existing --admin-key ~/.ssh/id_ed25519.pub --admin-name ada
    """
    key = read_public_key(admin_key)
    email = given["admin_email"]
    asked = Beginning(key, given["admin_name"], email, given["environment"], given["registry"])
    place = look(folder, branch)
    _refuse_history(place, existing=existing)
    files = files_for(asked, place.files)
    _refuse_invalid(files)
    _settings_place(folder.resolve(), settings_file)
    config = _config(asked, admin_key)
    stage(place, files, {} if existing else {**config, "commit.gpgSign": "true"})
    made = _commit(asked, place, files, config)
    made = _with_settings(made, settings_file, existing=existing)
    if output == "json":
        print_json(_document(made))
    else:
        print_lines([*_lines(made)])
    return EXIT_OK if made.commit else EXIT_ERROR


def _refuse_history(place: Place, *, existing: bool) -> None:
    where = str(place.folder)
    if place.head is not None and not existing:
        hint = "--existing adds to it, and takes what is there on your word"
        raise Refused("init_exists", "this repository has commits", where=where, hint=hint)
    if place.head is None and existing:
        message = "there is no commit to add to"
        raise Refused("init_nothing_there", message, where=where, hint="leave --existing out")
    if place.head is None and place.files:
        first = min(place.files)
        hint = "name a new or empty folder; or commit what is there, and use --existing"
        raise Refused("init_exists", f"the folder holds {first} already", where=where, hint=hint)


def _refuse_invalid(files: Mapping[str, bytes]) -> None:
    """What was asked for may be no registry or no address."""
    # An existing repo has its own Environment: what is checked here is what we write.
    found = check(as_snapshot(files), load_settings(file=False, environment=None)).problems
    told = [problem for problem in found if problem.pointer]
    if told:
        raise Refused(told[0].code, told[0].message, where=told[0].where, hint=told[0].hint)


def _config(asked: Beginning, path: Path) -> dict[str, str]:
    return signing_config(asked.key, str(path.expanduser().absolute()))


def _commit(
    asked: Beginning, place: Place, files: Mapping[str, bytes], config: Mapping[str, str]
) -> _Made:
    who = {}
    if asked.email or not knows_who(place.folder):
        email = {"user.email": asked.email} if asked.email else {}
        who = {"user.name": asked.admin, **email}
    both = {**config, **who}
    command = commit_command(str(place.folder), both)
    made = _Made(asked, place, tuple(files), None, command, "", None)
    try:
        commit = commit_signed(place, files, MESSAGE, both)
    except Refused as error:
        if error.code not in _NOT_SIGNED:
            raise
        return replace(made, why=f"{error.code}: {error.message}")
    return replace(made, commit=commit)


def _with_settings(made: _Made, file: Path | None, *, existing: bool) -> _Made:
    folder = made.place.folder.resolve()
    branch = made.place.branch
    text = settings_text(made.asked, str(folder), branch, made.commit, existing=existing)
    chosen = _settings_place(folder, file)
    written: Path | None = None
    if made.commit is not None and (file is not None or not chosen.exists()):
        try:
            with chosen.open("x", encoding="utf-8") as new:
                new.write(text)
            written = chosen
        except OSError as error:
            if file is not None:
                raise Refused("not_written", f"{error.strerror}", where=str(chosen)) from None
    return replace(made, settings=text, settings_file=written)


def _settings_place(folder: Path, file: Path | None) -> Path:
    chosen = file or folder.parent / "gpuaas.toml"
    if chosen.resolve().is_relative_to(folder):
        message = "whoever may push could change it there"
        raise Refused("init_settings", message, where=str(chosen), hint="name one outside the repo")
    return chosen


def _lines(made: _Made) -> Iterator[Line]:
    where = str(made.place.folder)
    yield from (Line(f"wrote {where}/{path}", "added") for path in made.files)
    yield Line("")
    if made.commit is None:
        yield Line(f"Staged, not committed: {made.why}", "problem")
        yield Line("Only a signed commit counts. To commit it yourself:", "title")
        yield Line(f"  {made.command}")
    else:
        signed = f"signed with {made.asked.key.key_id} of {made.asked.admin}"
        yield Line(f"commit {made.commit[:12]} on {made.place.branch}, {signed}", "good")
    yield Line("")
    if made.settings_file is not None:
        yield Line(f"wrote {made.settings_file}", "added")
    else:
        yield Line("The control plane's gpuaas.toml has to say:", "title")
    yield from (Line(f"  {line}", "dim") for line in made.settings.splitlines())
    yield Line("")
    yield from _next(made)


def _next(made: _Made) -> Iterator[Line]:
    folder = shlex.quote(str(made.place.folder))
    yield Line("Next:", "title")
    if made.place.head is not None:
        for name, value in {**_signing(made), "commit.gpgSign": "true"}.items():
            yield Line(f"  git -C {folder} config {name} {shlex.quote(value)}")
    yield Line(f"  gpuaas whoami --repo {folder}       # who you are to it")
    yield Line("  gpuaas run                        # start the control plane with gpuaas.toml")
    yield Line("  gpuaas node join NAME             # let a host in; then gpuaas import node NAME")


def _signing(made: _Made) -> dict[str, str]:
    key = made.asked.key
    named = "FILE.pub" if key.type == "ssh" else key.key_id
    return {"gpg.format": key.type, "user.signingKey": named}


def _document(made: _Made) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "folder": str(made.place.folder),
        "branch": made.place.branch,
        "files": list(made.files),
        "commit": made.commit,
        "signed_with": made.asked.key.key_id,
        "not_signed": made.why,
        "command": made.command if made.commit is None else None,
        "settings": made.settings,
        "settings_file": str(made.settings_file) if made.settings_file else None,
    }
