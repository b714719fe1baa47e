"""`gpuaas can`: whether somebody may make a change, and who may if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.cli.common import EXIT_ERROR, EXIT_OK, err, format_option, load_settings, print_json
from reconciler.cli.diff import print_lines
from reconciler.core.authority.answers import Answer
from reconciler.core.authority.facts import Actor
from reconciler.core.names import nearest
from reconciler.core.validate import validate
from reconciler.errors import GpuaasError, Refused
from reconciler.settings import Settings
from reconciler.use_cases.authority_questions import (
    VERBS,
    Questions,
    Trust,
    named_actor,
    parse_object,
    trust_of,
)
from reconciler.views.authority import answer_lines, answers_document
from reconciler.views.changes import Line
from reconciler.wiring.authority import LocalTrust, now_ms
from reconciler.wiring.files import read_local, schema_set

_EXIT_USAGE = 2


class _Command(click.Command):
    """1 means no: what can't be answered is 2, a wrong command line included."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(_EXIT_USAGE) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.show()
        except GpuaasError as error:
            err().print("error:", str(error), markup=False)
        return _EXIT_USAGE


@click.command(
    cls=_Command,
    epilog="Exit codes: 0 may, 1 may not, 2 a wrong command line or an error.",
)
@click.argument("actor")
@click.argument("change", nargs=-1, metavar="[PERMISSION [SCOPE] | VERB OBJECT...]")
@click.option("--diff", "base", metavar="REF", help="Each object that differs from this commit.")
@click.option(
    "--repo",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The state repo, a Git repository here.  [default: the current folder]",
)
@click.option(
    "--ref",
    help="By the identities of this commit; with --diff, the commit that is compared.  [default: "
    "HEAD; with --diff the folder as it is]",
)
@format_option
def can(
    actor: str, change: tuple[str, ...], base: str | None, repo: Path, ref: str | None, output: str
) -> int:
    """Say whether ACTOR may make a change, and if not, why and who may.

    ACTOR is an Identity's name, or a service account as TENANT/PROJECT/NAME. Asked about is a
    PERMISSION at a SCOPE (platform, TENANT or TENANT/PROJECT), a VERB (create, update, delete) and
    objects, or all that differs from a commit, judged by that commit's identities. What a document
    says can need more than its kind: --diff looks at the documents.

    \b
    Examples:
      gpuaas can ada apps.instance.create acme/lab
      gpuaas can acme/lab/ci update acme/lab/notebook
      gpuaas can ada delete Node/gpu-7 Node/gpu-8
      gpuaas can ada --diff origin/main
    """
    if (base is None) == (not change):
        raise click.UsageError("name a change, or pass --diff")
    settings = load_settings()
    if base is not None:
        who, answers = _of_difference(actor, base, repo, ref, settings)
    else:
        here = LocalTrust(repo, settings)
        trust = here.at(here.resolve(ref or "HEAD"))
        who = named_actor(actor, trust)
        answers = _of_words(who, change, trust, repo, ref or "HEAD", settings)
    if output == "json":
        print_json(answers_document(who, answers))
    elif answers:
        print_lines(answer_lines(answers))
    else:
        print_lines([Line(f"Nothing differs from {base}.", "good")])
    return EXIT_OK if all(one.may for one in answers) else EXIT_ERROR


def _of_difference(
    actor: str, base: str, repo: Path, ref: str | None, settings: Settings
) -> tuple[Actor, tuple[Answer, ...]]:
    schemas, limits = schema_set(), settings.parse_limits
    before = validate(read_local(repo, base, settings), schemas, limits)
    after = validate(read_local(repo, ref, settings), schemas, limits)
    trust = trust_of(before.objects)
    who = named_actor(actor, trust)
    return who, Questions(trust, now_ms()).difference(who, before, after)


def _of_words(
    who: Actor, change: tuple[str, ...], trust: Trust, repo: Path, ref: str, settings: Settings
) -> tuple[Answer, ...]:
    questions = Questions(trust, now_ms())
    first, *rest = change
    if first in VERBS:
        if not rest:
            raise click.UsageError(f"{first} what? Name Kind/scope/name, or tenant/project/name")
        refs = [parse_object(text) for text in rest]
        found = validate(read_local(repo, ref, settings), schema_set(), settings.parse_limits)
        return tuple(questions.verb(who, first, one, found.objects.get(one)) for one in refs)
    if "." not in first:
        near = nearest(first, VERBS)
        hint = f"did you mean {near}?" if near else f"verbs are {', '.join(VERBS)}"
        raise Refused("no_such_verb", f"neither a verb nor a permission: {first[:80]}", hint=hint)
    return tuple(questions.holds(who, first, _scope(text)) for text in rest or ("platform",))


def _scope(text: str) -> tuple[str, ...]:
    path = () if text == "platform" else tuple(text.split("/"))
    if len(path) > 2 or not all(path):
        hint = "platform, TENANT or TENANT/PROJECT"
        raise Refused("bad_scope", f"no scope: {text[:120]!r}", hint=hint)
    return path
