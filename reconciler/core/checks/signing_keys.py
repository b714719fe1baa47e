"""Does what is said of signing keys leave one to sign with?"""

from __future__ import annotations

from reconciler.core.world import Findings, World, finding


def check_signing_keys(world: World) -> Findings:
    """No version may be retired beyond the one that is to sign."""
    for environment in world.environments.values():
        keys = environment.spec.signing_keys
        named = (
            ("tasks", keys.tasks),
            ("artifacts", keys.artifacts),
            ("registry_tokens", keys.registry_tokens),
        )
        for name, key in named:
            if key is None or key.min_version is None or key.min_version <= key.version:
                continue
            yield finding(
                environment,
                "min_version_above_version",
                f"min_version {key.min_version} of the {name} key would leave no version to sign "
                f"with: the one wanted is {key.version}",
                f"/spec/signing_keys/{name}/min_version",
                f"write at most {key.version}, or raise version first",
            )
