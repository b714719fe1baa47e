"""`gpuaas sign`: signs an artifact in a registry with the key in custody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.artifacts.looking import look_anew
from reconciler.artifacts.signing import FORMS, Form, Made, find_again, sign_artifact
from reconciler.cli.artifact_options import credential_of, place_of, registry_options
from reconciler.cli.common import (
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    local_actor,
    out,
    print_json,
    settings_options,
)
from reconciler.core.names import ArtifactKey
from reconciler.core.records import AuditEntry
from reconciler.errors import Refused
from reconciler.use_cases.artifact_trust import parse_artifact
from reconciler.wiring.signing import Desk, desk

FORMAT = "gpuaas.dev/signed/v1"
SIGNED = "artifacts.signature.made"
_PROVENANCE_BYTES_MAX = 4 * 1024 * 1024


@click.command(epilog="Exit codes: 0 signed, 1 an error; then run it again, which harms nothing.")
@click.argument("artifact", metavar="REPOSITORY@DIGEST")
@click.option(
    "--form",
    type=click.Choice([*FORMS, "both"]),
    default="bundle",
    show_default=True,
    help="bundle: a sigstore bundle that refers to the artifact; classic: a tag of cosign's.",
)
@click.option(
    "--provenance",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a SLSA provenance of this build, to be signed and attached too.",
)
@click.option(
    "--login",
    "logins",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with ci-role-id and ci-secret-id, as `gpuaas vault bootstrap --issue ci` writes "
    "them.  [default: the custody of the control plane on this host]",
)
@registry_options
@settings_options
@format_option
def sign(
    artifact: str,
    form: str,
    provenance: Path | None,
    logins: Path | None,
    tree: Path | None,
    registry: str | None,
    plain_http: bool,
    user: str | None,
    password_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Sign an artifact by its digest, with the key `artifacts`; the key never leaves custody.

    What is signed is looked up and hashed in the registry first. Cosign verifies it:
    `gpuaas keys show artifacts > cosign.pub`, then `cosign verify --key cosign.pub
    --insecure-ignore-tlog REGISTRY/REPOSITORY@DIGEST`.

    A provenance is signed as it is given: whoever signs it vouches that this build made this
    artifact. It is a predicate of SLSA v1 or v0.2, or an in-toto statement around one.

    \b
    Examples:
      gpuaas sign gpuaas/apps/acme/lab/site@sha256:9f… --environment prod
      gpuaas sign gpuaas/apps/acme/lab/site@sha256:9f… --provenance slsa.json --form both
      gpuaas sign gpuaas/apps/acme/lab/site@sha256:9f… --registry registry.example:5000 \\
        --login ./logins --user ci --password-file credential
    """
    key = parse_artifact(artifact)
    place = place_of(tree, registry, plain_http=plain_http)
    credential = credential_of(user, password_file)
    forms: tuple[Form, ...] = FORMS if form == "both" else tuple(f for f in FORMS if f == form)
    statement = _read(provenance) if provenance is not None else None
    settings = load_settings(**given)
    with desk(settings, place, credential, logins) as at:
        made = sign_artifact(at.registry, at.endpoint, key, at.secrets, forms, statement)
        _tell(at, key, made)
        find_again(at.registry, at.endpoint, key, made)
    if output == "json":
        print_json(_document(key, made))
    else:
        for one in made:
            out().print(cell(f"{one.what} ({one.form}) attached as {one.digest}"))
    return EXIT_OK


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(_PROVENANCE_BYTES_MAX + 1)
    if len(content) > _PROVENANCE_BYTES_MAX:
        message = f"larger than {_PROVENANCE_BYTES_MAX} bytes"
        raise Refused("provenance_malformed", message, where=str(file))
    return content


def _tell(at: Desk, key: ArtifactKey, made: tuple[Made, ...]) -> None:
    """In the audit trail, where there is one; of a CI job's, Vault keeps the account."""
    if not at.is_here:
        return
    entries = [
        AuditEntry(
            at_ms=at.clock.now_ms(),
            actor=local_actor(),
            requester_type="user",
            action=SIGNED,
            object=str(key),
            after=one.digest,
            reason=f"{one.what}, {one.form}",
        )
        for one in made
    ]
    at.here.store.append_audit(entries)
    look_anew(at.here.store, key)
    at.here.store.request_pass("signed", at.clock.now_ms())


def _document(key: ArtifactKey, made: tuple[Made, ...]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "artifact": str(key),
        "attached": [{"what": one.what, "form": one.form, "digest": one.digest} for one in made],
    }
