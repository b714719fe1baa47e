"""What renderers add to the main service that a version does not write out itself.

Rules:
- `command` of the profile says how the program is called; the flags that a renderer writes come
  last. The same ones written there are refused before (`core.checks.services`).
- A server that would let everybody in, for lack of the secret it is to ask for, is not made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reconciler.core.desired import Instance
from reconciler.core.kinds.health import Health, HttpReadiness, ReadinessProbe
from renderers.shares import Unfit


def health_of(given: Health, port: int, path: str, otherwise: Mapping[str, float]) -> Health:
    """As the manifest says. What it leaves out is asked by GET of `path`, and as `otherwise` has
    it.
    """
    probe = given.readiness or ReadinessProbe(http=HttpReadiness(port=port, path=path))
    slower = {name: one for name, one in otherwise.items() if name not in given.model_fields_set}
    return given.model_copy(update={"readiness": probe, **slower})


def called(
    given: tuple[str, ...], program: tuple[str, ...], flags: Sequence[str], *subjects: str
) -> tuple[str, ...]:
    """The whole command: the program, what it works on, then flags as given and as written here.

    Without a program it is the usual one's flags. `python3 -m MODULE` is a program, too. What
    follows `--` is no flag, and stays behind.
    """
    words = (*program, *given) if not given or given[0].startswith("-") else given
    flagged = (i for i, word in enumerate(words) if word.startswith("-") and word != "-m")
    first = next(flagged, len(words))
    end = words.index("--") if "--" in words else len(words)
    return (*words[:first], *subjects, *words[first:end], *flags, *words[end:])


def needed_secret(instance: Instance, name: str | None) -> None:
    """Raises Unfit where it is not there: the service would otherwise let everybody in."""
    there = {secret.name for secret in instance.secrets}
    if name is not None and name not in there and instance.run != "decommissioned":
        message = f"the secret {name} is not there, and without it everybody would be let in"
        raise Unfit("secret_missing", message)
