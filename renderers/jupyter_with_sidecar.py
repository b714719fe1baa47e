"""`jupyter_with_sidecar`: a Jupyter server as the main service, with sidecars that help it.

Rules:
- The token is read from its file: in a variable it would be handed on to every kernel, and end up
  in notebooks that print their environment.
- The command suits images made from Jupyter's own stacks; `command` names another program that
  takes Jupyter Server's flags.
"""

from __future__ import annotations

from node_agent.wire import SECRETS_PATH, Workload
from reconciler.core.desired import Instance
from reconciler.core.kinds.topology import JupyterSpec
from reconciler.core.topology import NOTEBOOK
from renderers.common import CannotRender
from renderers.made_main import called, health_of, needed_secret
from renderers.services import rendered, services_for, topology_of, workload_of
from renderers.shares import Unfit

NAME = "jupyter_with_sidecar"
PROGRAM = ("start-notebook.py",)
TOKEN_FILE = "JUPYTER_TOKEN_FILE"  # noqa: S105 - the name of a variable
OTHERWISE = {"start_budget_s": 180.0, "timeout_s": 3.0}
"""A cold host reads hundreds of files of Python before the first answer."""


def render(instance: Instance) -> Workload | CannotRender:
    return rendered(_render, instance)


def _render(instance: Instance) -> Workload:
    profile = topology_of(instance).profile
    jupyter = profile.jupyter
    if jupyter is None:
        raise Unfit("renderer_part_missing", f"{NAME} serves what runtime_profile.jupyter says")
    needed_secret(instance, jupyter.token_secret)
    path = f"{base_path(jupyter)}api"
    main, *others = services_for(instance)
    made = main.model_copy(
        update={
            "command": called(profile.command, PROGRAM, flags(jupyter)),
            "env": {**instance.env, TOKEN_FILE: f"{SECRETS_PATH}/{jupyter.token_secret}"},
            "health": health_of(profile.health, jupyter.port, path, OTHERWISE),
        }
    )
    return workload_of(instance, NOTEBOOK, (made, *others))


def base_path(jupyter: JupyterSpec) -> str:
    """With the slash at its end that Jupyter Server gives it itself."""
    return jupyter.base_path.rstrip("/") + "/"


def flags(jupyter: JupyterSpec) -> tuple[str, ...]:
    """Another port than the one that is published would do nobody a service: no retries."""
    return (
        "--ServerApp.ip=0.0.0.0",
        f"--ServerApp.port={jupyter.port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.open_browser=False",
        f"--ServerApp.base_url={base_path(jupyter)}",
    )
