"""`gpuaas artifact`: register one, list them, look at one, have its signatures checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.artifact_export import export
from reconciler.cli.artifact_verify import verify
from reconciler.cli.common import (
    EXIT_ERROR,
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    out,
    print_json,
    table_width,
)
from reconciler.cli.diff import print_lines
from reconciler.cli.proposed import in_the_way, next_steps
from reconciler.core.names import nearest
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.use_cases.registering import (
    Asked,
    Registered,
    Registration,
    asked_for,
    endpoint_in,
    registered_as,
    registered_in,
    registration,
    seen_in_registry,
    seen_in_store,
)
from reconciler.use_cases.validation import Checked, check, check_path
from reconciler.views.changes import Line
from reconciler.wiring.artifacts import open_blob_store, registry_for
from reconciler.wiring.history import commit_on_branch, local_history, remotes

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "gpuaas.dev/artifact/v1"
_REPO = click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The state repo, a folder.  [default: the current one]",
)
_IN_SHOW = ("VISIBILITY", "VERSIONS")
_WRAPPED = ("ARTIFACT", "CHANNELS", "VERSIONS")
_VERSIONS_COLUMNS_MIN = 20
_REF = click.option("--ref", help="As it is in this commit.  [default: as the files are]")


@click.group(epilog="Exit codes: 0 as asked, 1 an error.")
def artifact() -> None:
    """Register artifacts by digest, and see which there are.

    \b
    Examples:
      gpuaas artifact register REPOSITORY@DIGEST --project acme/lab --app hello \\
        --version 1.1.0 --name image
      gpuaas artifact list --project platform/catalog
      gpuaas artifact show platform/catalog/hello/1.1.0/image
    """


@artifact.command(
    short_help="Look at an artifact, and write its manifest.",
    epilog="Exit codes: 0 written, 1 an error or something in the way.",
)
@click.argument("place", metavar="REPOSITORY@DIGEST")
@click.option("--project", required=True, metavar="TENANT/PROJECT", help="Whose it is.")
@click.option("--app", required=True, help="The app that it is for.")
@click.option("--version", required=True, help="The version that it is for.")
@click.option("--name", required=True, help="Its own name, such as image.")
@click.option("--tag", default="", help="A label for people; it decides nothing.")
@click.option(
    "--visibility",
    type=click.Choice(["project", "tenant", "platform"]),
    default="project",
    show_default=True,
    help="Who may use it.",
)
@click.option("--media-type", default="", help="[default: as the registry says, hashed]")
@click.option("--source-url", default="", help="Where its sources are, https://…")
@click.option("--source-commit", default="", help="The commit it was built from.")
@click.option("--builder", default="", help="Who built it.")
@click.option("--environment", "-e", help="Whose registry to look at.  [default: the only one]")
@click.option("--branch", help="Commit it on this new branch.  [default: write the file]")
@_REPO
@format_option
def register(
    place: str,
    project: str,
    app: str,
    version: str,
    name: str,
    tag: str,
    visibility: str,
    media_type: str,
    source_url: str,
    source_commit: str,
    builder: str,
    environment: str | None,
    branch: str | None,
    repo: Path,
    output: str,
) -> int:
    """Look at an artifact where it is served, and write the manifest that registers it.

    Every byte of its manifests and configs is fetched and hashed; what the registry says of them
    decides nothing. The manifest begins as published: gpuaas promote moves it on. For a blob, name
    artifact_store://…@DIGEST; then the artifact store is asked, on the control plane's host.

    \b
    Examples:
      gpuaas artifact register gpuaas/apps/acme/lab/hello@sha256:… --project acme/lab \\
        --app hello --version 1.1.0 --name image --tag 1.1.0
    """
    settings = load_settings(environment=environment)
    asked = asked_for(place, project, app, version, name)
    claims = {"repository_url": source_url, "commit": source_commit, "builder": builder}
    source = tuple((field, value) for field, value in claims.items() if value)
    asked = Asked(asked.ref, asked.place, asked.digest, visibility, tag, media_type, source)
    made = _look(asked, repo, branch, settings)
    if made.in_the_way:
        return _refuse(made, output)
    if branch is None:
        _write(repo, made)
    else:
        _commit(repo, made, branch, settings)
    _tell(made, repo, branch, output)
    return EXIT_OK


def _look(asked: Asked, repo: Path, branch: str | None, settings: Settings) -> Registration:
    """What is checked is what is committed to: the files, or with a branch the newest commit."""
    checked = check_path(repo, "HEAD" if branch is not None else None, _everywhere(settings))
    if asked.is_blob:
        asked, proof = seen_in_store(asked, open_blob_store(settings))
    else:
        endpoint = endpoint_in(checked.candidate.objects, settings.environment)
        with registry_for(endpoint, settings) as registry:
            asked, proof = seen_in_registry(asked, registry, endpoint)
    every = _everywhere(settings)
    return registration(asked, proof, checked.snapshot, lambda s: check(s, every).problems)


def _everywhere(settings: Settings) -> Settings:
    """Whose registry it is in is one question; what is wrong anywhere is another."""
    return settings.model_copy(update={"environment": ""})


def _write(repo: Path, made: Registration) -> None:
    """A new file, through no link that leads out of the folder."""
    path = repo / made.path
    try:
        if not path.resolve().is_relative_to(repo.resolve()):
            raise ValueError("a link in the folder leads out of it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(made.text)
    except (OSError, ValueError) as error:
        raise Refused("not_written", str(error), where=str(path)) from None


def _commit(repo: Path, made: Registration, branch: str, settings: Settings) -> None:
    parent = local_history(repo, settings).resolve("HEAD")
    message = f"Register {made.ref}\n\n{made.proof}\n"
    files = {made.path: made.text.encode()}
    commit_on_branch(repo, parent=parent, branch=branch, files=files, message=message)


def _tell(made: Registration, repo: Path, branch: str | None, output: str) -> None:
    if output == "json":
        print_json(_document(made, branch))
        return
    lines = [Line(f"{made.ref}: {made.proof}", "title")]
    if branch is None:
        lines += [Line(f"wrote {repo / made.path}"), Line("Review and commit it.", "dim")]
        print_lines(lines)
        return
    lines += [Line(f"  branch {branch}, {made.path}")]
    print_lines([*lines, *next_steps(branch, remotes(repo))])


def _refuse(made: Registration, output: str) -> int:
    if output == "json":
        print_json(_document(made, None))
        return EXIT_ERROR
    count = len(made.in_the_way)
    title = f"Not registered: with {made.ref}, {count} problem(s) would be new"
    print_lines([*in_the_way(title, made.in_the_way)])
    return EXIT_ERROR


def _document(made: Registration, branch: str | None) -> dict[str, Any]:
    from reconciler.views.changes import problem_document  # noqa: PLC0415 - for JSON alone

    return {
        "format": FORMAT,
        "object": str(made.ref),
        "path": made.path,
        "branch": branch,
        "proof": made.proof,
        "manifest": made.text,
        "in_the_way": [problem_document(problem) for problem in made.in_the_way],
    }


# --- what is there -------------------------------------------------------------------------------


def _checked(repo: Path, ref: str | None) -> Checked:
    return check_path(repo, ref, load_settings())


@artifact.command(
    "list",
    short_help="Show what is registered.",
    epilog="Exit codes: 0 as asked, 1 an error.",
)
@click.option("--project", default="", metavar="TENANT/PROJECT", help="Of this project alone.")
@click.option("--state", default="", help="In this state alone.")
@_REPO
@_REF
@format_option
def list_(project: str, state: str, repo: Path, ref: str | None, output: str) -> int:
    """Show what is registered: state, channels, digest, and which versions name it.

    \b
    Examples:
      gpuaas artifact list --project platform/catalog --state promoted
      gpuaas artifact list --ref origin/main --format json
    """
    objects = _checked(repo, ref).candidate.objects
    if not objects:
        raise Refused("no_state_repo", "it has no manifest", where=str(repo), hint="pass --repo")
    projects = ["/".join(one.path) for one in objects if one.kind == "Project"]
    if project and project not in projects:
        near = nearest(project, projects)
        hint = f"did you mean {near}?" if near else ""
        raise Refused("no_such_project", f"no project {project}", hint=hint)
    found = registered_in(objects, project, state)
    if output == "json":
        print_json({"format": FORMAT, "artifacts": [_shown(one) for one in found]})
        return EXIT_OK
    if not found:
        out().print("No artifact is registered here.")
        return EXIT_OK
    print_artifacts(out(), found)
    return EXIT_OK


@artifact.command(short_help="Show one artifact.", epilog="Exit codes: 0 as asked, 1 an error.")
@click.argument("name", metavar="ARTIFACT")
@_REPO
@_REF
@format_option
def show(name: str, repo: Path, ref: str | None, output: str) -> int:
    """Show one artifact, by TENANT/PROJECT/APP/VERSION/NAME or REPOSITORY@DIGEST.

    \b
    Examples:
      gpuaas artifact show platform/catalog/hello/1.1.0/image
    """
    found = registered_as(name, _checked(repo, ref).candidate.objects)
    if output == "json":
        print_json({"format": FORMAT, **_shown(found)})
        return EXIT_OK
    console = out()
    console.print(cell(str(found.ref), "bold"))
    for label, value in _rows(found):
        console.print(cell(f"  {label:<12}{value}"))
    return EXIT_OK


def _rows(one: Registered) -> list[tuple[str, str]]:
    spec = one.spec
    source = spec.source_metadata
    channels = ", ".join(spec.channels) or "all"
    state = f"{spec.state} for {channels}" if spec.state == "promoted" else spec.state
    rows = [
        ("state", state),
        ("next", " or ".join(one.next_states) or "nothing: it stays so"),
        ("place", one.place),
        ("digest", spec.digest),
        ("tag", spec.tag or ""),
        ("media type", spec.media_type or ""),
        ("visibility", spec.visibility),
        ("source", (source.repository_url or "") if source is not None else ""),
        ("commit", (source.commit or "") if source is not None else ""),
        ("builder", (source.builder or "") if source is not None else ""),
        ("named by", ", ".join(one.versions) or "no version"),
        ("file", one.path),
    ]
    return [row for row in rows if row[1]]


def _shown(one: Registered) -> dict[str, Any]:
    spec = one.spec.model_dump(mode="json", exclude_none=True)
    return {
        "artifact": one.name,
        "path": one.path,
        **spec,
        "next_states": [*one.next_states],
        "versions": [*one.versions],
    }


def print_artifacts(console: Console, found: Sequence[Registered]) -> None:
    """Where all columns don't fit some are left out, and that is said: no cell is cut."""
    from rich import box  # noqa: PLC0415 - see `cli.common`
    from rich.table import Table  # noqa: PLC0415

    rows = [_table_row(one) for one in found]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    # What is named by many versions is wrapped in any case.
    widths["VERSIONS"] = min(widths["VERSIONS"], _VERSIONS_COLUMNS_MIN)
    fits = table_width(widths.values()) <= console.width
    columns = [name for name in widths if fits or name not in _IN_SHOW]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in _WRAPPED)
    for row in rows:
        table.add_row(*(cell(row[name]) for name in columns))
    if not fits:
        table.padding = (0, 1, 0, 0)
    console.print(table)
    if not fits:
        left_out = " and ".join(name.lower() for name in _IN_SHOW)
        console.print(f"{left_out}: gpuaas artifact show ARTIFACT", style="dim", markup=False)


def _table_row(one: Registered) -> dict[str, str]:
    spec = one.spec
    return {
        "ARTIFACT": one.name,
        "KIND": spec.kind,
        "STATE": spec.state,
        "CHANNELS": ", ".join(spec.channels) or ("all" if spec.state == "promoted" else ""),
        "VISIBILITY": spec.visibility,
        "DIGEST": spec.digest[7:19],
        "VERSIONS": ", ".join(version.partition("/")[2] for version in one.versions),
    }


artifact.add_command(export)
artifact.add_command(verify)
