"""`gpuaas-agent`: the command line of the node agent. The only place here that prints or exits."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TextIO

import click
import structlog

from node_agent.blob_files import BLOBS_FOLDER
from node_agent.disk import StateUnusable
from node_agent.engines.base import Engine
from node_agent.engines.compose import COMPOSE_FOLDER, ComposeEngine
from node_agent.engines.docker import DockerEngine
from node_agent.engines.process import ProcessEngine
from node_agent.link import AgentKey, Away, JoinRefused, join, parse_join_token
from node_agent.no_dumps import keep_out_of_dumps
from node_agent.runtime import Agent, agent_version
from node_agent.secret_files import SecretFiles
from node_agent.state import Identity, StateStore
from node_agent.tasks import ISSUED_AHEAD_MAX_MS
from node_agent.wire import key_id

EXIT_ERROR, EXIT_NOT_JOINED, EXIT_JOIN_REFUSED = 1, 3, 4
EXIT_LOCKED, EXIT_CORRUPT, EXIT_AWAY = 5, 6, 7
STOP_S = 1.0
GIB = 1024**3

_EPILOG = """\b
Examples:
  gpuaas-agent join --token-file join-token.txt
  gpuaas-agent run --engine docker --engine process
  gpuaas-agent status --json
\b
Exit codes:
  0  done (run: asked to stop)
  1  something else went wrong
  2  wrong usage
  3  not joined yet, or by an agent of before there were certificates
  4  the join token was refused, or the server's CA is not the one it pins
  5  another agent uses the state folder
  6  the state could not be read and was moved aside; join again
  7  the control plane does not answer
"""
_JOIN_EPILOG = """\b
Examples:
  gpuaas-agent join --token-file join-token.txt
  GPUAAS_JOIN_TOKEN=… gpuaas-agent join
  gpuaas-agent join --again --token-file - < join-token.txt

Exit codes: 0 joined, 1 an error, 2 wrong usage, 4 refused, 5 another agent uses the state folder,
6 the state was damaged and set aside, 7 the control plane does not answer.
"""
_RUN_EPILOG = """\b
Examples:
  gpuaas-agent run
  gpuaas-agent run --engine docker --engine compose
  gpuaas-agent --state-dir ./agent run --engine process --log-format text

Exit codes: 0 asked to stop, 1 an error, 2 wrong usage, 3 not joined yet or without certificates, 5
another agent uses the state folder, 6 the state was damaged and set aside.
"""
_STATUS_EPILOG = """\b
Examples:
  gpuaas-agent status
  gpuaas-agent status --json | jq '.workloads[].phase'

Exit codes: 0 as asked, 2 wrong usage, 3 no report yet.
"""


@click.group(
    epilog=_EPILOG,
    context_settings={
        "auto_envvar_prefix": "GPUAAS_AGENT",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/gpuaas-agent"),
    show_default=True,
    help="Where key, tasks and progress are kept. Made with mode 0700.",
)
@click.version_option(agent_version(), prog_name="gpuaas-agent")
@click.pass_context
def main(context: click.Context, state_dir: Path) -> None:
    """Runs the workloads of one node. Dials out to its control plane, listens on nothing."""
    context.obj = state_dir


@main.command("join", epilog=_JOIN_EPILOG)
@click.option(
    "--token",
    envvar="GPUAAS_JOIN_TOKEN",
    help="The join token. Prefer the variable or --token-file: arguments show in process lists.",
)
@click.option(
    "--token-file",
    type=click.File(),
    help="A file with the join token; - reads standard input.",
)
@click.option("--again", is_flag=True, help="Join anew although this node has joined before.")
@click.pass_obj
def join_command(state_dir: Path, token: str | None, token_file: TextIO | None,
                 again: bool) -> None:  # fmt: skip
    """Redeems a single-use join token, which pins the control plane's CA."""
    text = token_file.read() if token_file is not None else token
    if not text:
        raise click.UsageError("give --token-file, or the token in GPUAAS_JOIN_TOKEN")
    store = _open_store(state_dir)
    try:
        _join(store, str(text), again=again)
    finally:
        store.close()


@main.command("run", epilog=_RUN_EPILOG)
@click.option(
    "--docker-host",
    envvar=["GPUAAS_AGENT_RUN_DOCKER_HOST", "DOCKER_HOST"],
    help="Docker's address. [default: DOCKER_HOST or the usual socket]",
)
@click.option(
    "--engine",
    "engine_names",
    type=click.Choice(["docker", "compose", "process"]),
    multiple=True,
    default=("docker",),
    show_default=True,
    envvar=["GPUAAS_AGENT_RUN_ENGINE", "GPUAAS_AGENT_RUN_ENGINE_NAMES"],
    help="What this node runs workloads with; may be given more than once. compose runs apps of "
    "several services, and needs Docker Compose v2.",
)
@click.option(
    "--compose-program",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Docker Compose v2, 2.20 or later. [default: docker-compose in PATH, or where Docker's "
    "packages put the plugin]",
)
@click.option(
    "--secrets-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the secrets of workloads are, in memory (tmpfs), mode 0700. "
    "[default: /run/gpuaas/<node>, or else /dev/shm/gpuaas-<node>]",
)
@click.option(
    "--blob-quota-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="How much of the disk the cache of blobs may take. [default: half of it]",
)
@click.option(
    "--log-format", type=click.Choice(["json", "text"]), default="json", show_default=True
)
@click.option("--verbose", is_flag=True, help="Log every step.")
@click.pass_obj
def run_command(
    state_dir: Path,
    docker_host: str | None,
    engine_names: tuple[str, ...],
    compose_program: Path | None,
    secrets_dir: Path | None,
    blob_quota_gib: float | None,
    log_format: str,
    verbose: bool,
) -> None:
    """Runs until SIGTERM or SIGINT. What it started goes on running after it."""
    keep_out_of_dumps()
    configure_logging(log_format, verbose=verbose)
    store = _open_store(state_dir)
    identity = store.identity
    if identity is None:
        store.close()
        _fail(EXIT_NOT_JOINED, f"{state_dir} has not joined: run `gpuaas-agent join` first")
    if not identity.joined_securely:
        store.close()
        _fail(
            EXIT_NOT_JOINED,
            f"{state_dir} was joined by an agent of before there were certificates: get a new "
            "token (`gpuaas node join`) and run `gpuaas-agent join --again --token-file …`; what "
            "runs here goes on running",
        )
    # A pipe that the interpreter itself writes to: a handler of ours would not run before the wait
    # is over if the signal came just before it, and one that sets an Event can meet its lock.
    asked, ask = os.pipe()
    os.set_blocking(ask, False)
    signal.set_wakeup_fd(ask)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    secret_files = SecretFiles.for_node(identity.node, secrets_dir)
    engines = make_engines(
        identity.node, state_dir, engine_names, docker_host, secret_files, compose_program
    )
    quota_bytes = None if blob_quota_gib is None else int(blob_quota_gib * GIB)
    agent = Agent(
        store, engines, state_dir, secret_files=secret_files, blob_quota_bytes=quota_bytes
    )
    agent.start()
    structlog.get_logger().info("agent started", node=identity.node, server=identity.server)
    os.read(asked, 1)
    # A long poll may still hang on the wire. It ends with the process, and nothing is lost with it.
    agent.stop(STOP_S)
    store.close()


@main.command("status", epilog=_STATUS_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="The last report, as it was sent.")
@click.pass_obj
def status_command(state_dir: Path, as_json: bool) -> None:
    """Shows the last report this agent sent. Works while it runs, and after."""
    try:
        text = (state_dir / "report.json").read_text()
        report = json.loads(text)
    except (OSError, ValueError):
        _fail(EXIT_NOT_JOINED, f"no report in {state_dir}: has the agent run?")
    if as_json:
        click.echo(text)
        return
    age_s = max(0, time.time_ns() // 1_000_000 - report["sent_at_ms"]) // 1_000
    click.echo(f"node {report['node']}, agent {report['agent_version']}, reported {age_s} s ago")
    for workload in report["workloads"]:
        reason = f"  {workload['reason']}: {workload['message']}" if workload["reason"] else ""
        click.echo(f"  {workload['instance']:<40} {workload['phase']}{reason}")
        for service in workload.get("services", ()):
            why = f"  {service['detail']}" if service["detail"] else ""
            click.echo(f"    {service['name']:<38} {service['phase']}{why}")
    for blob in report.get("blobs", ()):
        size = "" if blob["size_bytes"] is None else f" of {blob['size_bytes']}"
        why = f"  {blob['error']}" if blob["error"] else ""
        click.echo(f"  {blob['digest'][:26]:<40} {blob['state']}  {blob['bytes_done']}{size}{why}")
    for stray in report["strays"]:
        click.echo(f"  {stray['instance']:<40} stray ({stray['name']})")


def make_engines(
    node: str,
    state_dir: Path,
    names: tuple[str, ...],
    docker_host: str | None = None,
    secrets: SecretFiles | None = None,
    compose_program: Path | None = None,
) -> Mapping[str, Engine]:
    """The engines by name; none of them is contacted yet."""
    engines: dict[str, Engine] = {}
    blobs = state_dir / BLOBS_FOLDER
    if "docker" in names:
        engines["docker"] = DockerEngine(node, docker_host, secrets=secrets, blobs=blobs)
    if "compose" in names:
        engines["compose"] = ComposeEngine(
            node,
            state_dir / COMPOSE_FOLDER,
            docker_host,
            secrets=secrets,
            blobs=blobs,
            program=compose_program,
        )
    if "process" in names:
        engines["process"] = ProcessEngine(
            node, state_dir / "process", secrets=secrets, blobs=blobs
        )
    return engines


def configure_logging(log_format: str, *, verbose: bool) -> None:
    """To standard error, one event a line."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if log_format == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _join(store: StateStore, text: str, *, again: bool) -> None:
    before = store.identity
    if before is not None and not again:
        _fail(EXIT_ERROR, f"already joined to {before.server} as {before.node} (see --again)")
    now_ms = time.time_ns() // 1_000_000
    key = AgentKey.generate()
    try:
        token = parse_join_token(text)
        reply = join(token, key)
    except JoinRefused as refused:
        _fail(EXIT_JOIN_REFUSED, str(refused))
    except Away as away:
        _fail(EXIT_AWAY, str(away))
    # With a lost memory may have gone the highest task number: nothing old is believed then.
    not_before_ms = now_ms + ISSUED_AHEAD_MAX_MS if store.anything_lost() else 0
    identity = Identity(
        node=reply.node,
        server=token.server,
        private_key=key.reveal_private(),
        verifiers=reply.verifiers,
        min_version=reply.min_version,
        joined_at_ms=now_ms,
        not_before_ms=not_before_ms,
        seq_floor=before.seq_floor if before else 0,
        report_seq_reserved=before.report_seq_reserved if before else 0,
        certificate=reply.certificate,
        ca=reply.ca,
    )
    store.save_identity(identity)
    click.echo(f"joined {token.server} as {reply.node}, key {key_id(key.public_key)[:16]}")


def _open_store(state_dir: Path) -> StateStore:
    try:
        return StateStore(state_dir, time.time_ns() // 1_000_000)
    except StateUnusable as unusable:
        codes = {"state_locked": EXIT_LOCKED, "state_corrupt": EXIT_CORRUPT}
        _fail(codes.get(unusable.code, EXIT_ERROR), str(unusable))


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"gpuaas-agent: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
