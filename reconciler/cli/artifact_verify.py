"""`gpuaas artifact verify`: what a channel makes of an artifact, as it is signed now."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from reconciler.cli.artifact_options import credential_of, place_of, registry_options
from reconciler.cli.common import (
    EXIT_ERROR,
    EXIT_OK,
    cell,
    format_option,
    load_settings,
    out,
    print_json,
    settings_options,
)
from reconciler.core.trust.evidence import Proof
from reconciler.use_cases.artifact_trust import Verified, parse_artifact, verify_artifact
from reconciler.wiring.signing import desk

FORMAT = "gpuaas.dev/artifact-verification/v1"


@click.command(
    short_help="Say whether a channel takes an artifact.",
    epilog="Exit codes: 0 good for the channel, 1 not good, or an error.",
)
@click.argument("artifact", metavar="REPOSITORY@DIGEST")
@click.option("--channel", required=True, help="A channel that a TrustPolicy describes.")
@registry_options
@settings_options
@format_option
def verify(
    artifact: str,
    channel: str,
    tree: Path | None,
    registry: str | None,
    plain_http: bool,
    user: str | None,
    password_file: Path | None,
    output: str,
    **given: Any,
) -> int:
    """Look at the signatures and provenance of an artifact now, and say whether a channel takes it.

    The policies are those accepted on this host, or of the state repo at --tree. Nothing is kept:
    what the control plane knows of the artifact stays as it is.

    \b
    Examples:
      gpuaas artifact verify gpuaas/apps/acme/lab/site@sha256:9f… --channel stable -e prod
      gpuaas artifact verify gpuaas/apps/acme/lab/site@sha256:9f… --channel stable \\
        --tree . -e prod --format json
    """
    key = parse_artifact(artifact)
    place = place_of(tree, registry, plain_http=plain_http)
    credential = credential_of(user, password_file)
    with desk(load_settings(**given), place, credential) as at:
        rules, now_ms = at.policies.rules, at.clock.now_ms()
        known = None
        if tree is None:
            known = at.here.store.evidence([key]).get(key)
        found = verify_artifact(at.registry, at.endpoint, key, rules, channel, now_ms, known)
    if output == "json":
        print_json(_document(found))
    else:
        _print(found)
    return EXIT_OK if found.verdict.good else EXIT_ERROR


def _document(found: Verified) -> dict[str, Any]:
    evidence = found.evidence
    return {
        "format": FORMAT,
        "artifact": str(found.artifact),
        "channel": found.channel,
        "verdict": asdict(found.verdict),
        "proofs": [asdict(proof) for proof in evidence.proofs],
        "rejected": [asdict(one) for one in evidence.rejected],
        "checked_at_ms": evidence.checked_at_ms,
    }


def _print(found: Verified) -> None:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("FOUND", "FORM", "KEY", "SAYS", "IN"):
        table.add_column(title)
    for proof in found.evidence.proofs:
        table.add_row(
            proof.kind, proof.form, cell(proof.key_id), cell(_said(proof)), _short(proof.document)
        )
    for one in found.evidence.rejected:
        table.add_row(
            "rejected", "-", "-", cell(f"{one.code}: {one.message}"), _short(one.document)
        )
    console, verdict = out(), found.verdict
    if table.row_count:
        console.print(table)
    if verdict.good:
        console.print(cell(f"good for {found.channel}", "green"))
        return
    console.print(cell(f"not good for {found.channel}: {verdict.code}: {verdict.message}", "red"))
    if verdict.hint:
        console.print(cell(f"  {verdict.hint}"))


def _said(proof: Proof) -> str:
    if proof.kind == "provenance":
        sources = ", ".join(proof.sources) or "nothing named"
        return f"built by {proof.builder or 'nobody named'} from {sources}"
    return proof.predicate_type or "-"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
