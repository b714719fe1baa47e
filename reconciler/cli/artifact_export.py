"""`gpuaas artifact export`: a digest from one environment into another, verified on arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from reconciler.cli.artifact_options import credential_of
from reconciler.cli.common import (
    EXIT_OK,
    cell,
    err,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.core.names import ArtifactKey, Digest
from reconciler.errors import Refused
from reconciler.ports import RegistryEndpoint
from reconciler.settings import Settings
from reconciler.use_cases.artifact_trust import Policies, parse_artifact, policies_of_tree
from reconciler.wiring.signing import Credential

FORMAT = "gpuaas.dev/export/v1"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    short_help="Bring an artifact to another environment.",
    epilog="Exit codes: 0 it arrived and is good there, 1 an error; run it again then.",
)
@click.argument("artifact", metavar="REPOSITORY@DIGEST")
@click.option("--from", "source", required=True, metavar="ENVIRONMENT", help="Where it is.")
@click.option("--to", "target", required=True, metavar="ENVIRONMENT", help="Where it goes.")
@click.option(
    "--into",
    required=True,
    metavar="REPOSITORY",
    help="There: the place that a publish intent of that environment named.",
)
@click.option("--tag", default="", help="A label for people; it decides nothing.")
@click.option(
    "--tree",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The state repo, a folder: Environments and TrustPolicies.  [default: the current one]",
)
@click.option("--from-user", help="Name for the source's token server: a pull intent's id.")
@click.option("--from-password-file", type=_FILE, help="File with its password.")
@click.option("--to-user", help="Name for the target's token server: the publish intent's id.")
@click.option("--to-password-file", type=_FILE, help="File with its password.")
@settings_options
@format_option
def export(
    artifact: str,
    source: str,
    target: str,
    into: str,
    tag: str,
    tree: Path,
    from_user: str | None,
    from_password_file: Path | None,
    to_user: str | None,
    to_password_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Bring an artifact, with its signatures and attestations, into another environment's registry.

    The channel of the target's Environment decides: what it would not take is not moved, and what
    arrived is looked at again there. Nothing is promoted by it. Complete the publish intent and
    register the digest in the target's state repo, as for any other artifact.

    Bytes go through this host. What the target has already is not sent again, so that one which
    broke off goes on.

    \b
    Examples:
      gpuaas artifact export gpuaas/apps/acme/lab/site@sha256:9f… --from staging --to prod \\
        --into gpuaas/intents/2f… --to-user 2f… --to-password-file credential
    """
    settings, key = load_settings(**given), parse_artifact(artifact)
    sides = (
        _side(tree, source, settings, credential_of(from_user, from_password_file)),
        _side(tree, target, settings, credential_of(to_user, to_password_file)),
    )
    document = _export(settings, key, (sides[0], sides[1]), into, tag)
    if output == "json":
        print_json(document)
    else:
        _print(document, target)
    return EXIT_OK


_Side = tuple[Policies, RegistryEndpoint, Credential | None]


def _side(tree: Path, name: str, settings: Settings, credential: Credential | None) -> _Side:
    policies = policies_of_tree(tree, name, settings)
    assert policies.endpoint is not None
    if policies.endpoint.layout_path is not None:
        message = f"Environment {name} has a folder for a registry"
        raise Refused("layout_read_only", message, hint="export between two registries")
    return policies, replace(policies.endpoint, token_auth=credential is not None), credential


def _export(
    settings: Settings, key: ArtifactKey, sides: tuple[_Side, _Side], into: str, tag: str
) -> dict[str, Any]:
    # HTTP and cryptography take longer to load than a wrong name takes to tell.
    from reconciler.use_cases.export import Demand, export  # noqa: PLC0415
    from reconciler.wiring.exporting import exporter, now_ms  # noqa: PLC0415

    (_, source, source_credential), (policies, target, target_credential) = sides
    demand = Demand(policies.rules, policies.channel)
    with exporter(
        settings, (source, source_credential), (target, target_credential), _progress()
    ) as between:
        done = export(between, source, key, target, into, demand, now_ms(), tag)
    return {
        "format": FORMAT,
        "artifact": str(done.key),
        "media_type": done.seen.media_type,
        "size_bytes": done.seen.size_bytes,
        "channel": policies.channel,
        "signed_by": sorted({proof.key_id for proof in done.evidence.proofs}),
        "sent": {"blobs": done.carried.blobs, "size_bytes": done.carried.size_bytes},
    }


def _progress() -> Callable[[Digest, int], None]:
    def told(digest: Digest, size_bytes: int) -> None:
        if err().is_terminal:
            err().print(f"sent {digest.short} ({size_bytes:,} bytes)", highlight=False)

    return told


def _print(document: dict[str, Any], target: str) -> None:
    sent = document["sent"]
    console = out()
    console.print(cell(f"{document['artifact']} is in {target}"), soft_wrap=True)
    signers = ", ".join(document["signed_by"]) or "nobody that the policies know"
    good = f"good for {document['channel']}" if document["channel"] else "no channel is asked for"
    console.print(cell(f"  {good}; signed by {signers}"), soft_wrap=True)
    console.print(cell(f"  sent {sent['blobs']} blobs, {sent['size_bytes']:,} bytes"))
    console.print(cell("  now complete the publish intent, and register the digest there"))
