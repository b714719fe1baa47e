"""Why a workload failed, in words: one line what it means, one line what to do, and its page. Pure.

Rule: every reason of the fixed list stands here and has a page; a test walks the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node_agent.wire import FailureReason

FOLDER = "docs/failures"


@dataclass(frozen=True)
class FailureWords:
    means: str
    do: str


_R = FailureReason
FAILURE_WORDS: Mapping[FailureReason, FailureWords] = {
    _R.IMAGE_NOT_FOUND: FailureWords(
        "the registry has no such digest for the node's platform",
        "push that very digest again, or move to a version that is there",
    ),
    _R.IMAGE_PULL_FAILED: FailureWords(
        "the image could not be pulled within the start budget",
        "check network, registry and disk as seen from the node",
    ),
    _R.DIGEST_MISMATCH: FailureWords(
        "what the registry served is not what its digest says",
        "stop using that registry until it is known who changed it",
    ),
    _R.PORT_IN_USE: FailureWords(
        "the host port it asks for is taken on the node",
        "ask for another host_port, or for none to get any free one",
    ),
    _R.GPU_UNAVAILABLE: FailureWords(
        "the node could not hand it the GPUs it was given",
        "check driver and container runtime on the node, and UUIDs in the Node manifest",
    ),
    _R.CREATE_REFUSED: FailureWords(
        "the engine would not make or start the container",
        "read the message: it is the engine's own",
    ),
    _R.COMMAND_NOT_FOUND: FailureWords(
        "its command is not in the image, or can't be run",
        "correct command in the AppVersion",
    ),
    _R.EXITED: FailureWords(
        "it ended by itself, although nobody stopped it",
        "read its log on the node; the last container is kept for that",
    ),
    _R.OUT_OF_MEMORY: FailureWords(
        "it was killed at its memory limit",
        "give it more memory within its allocation, or make it need less",
    ),
    _R.NOT_READY_IN_TIME: FailureWords(
        "its readiness probe did not pass in time",
        "check port and path of the probe; give slow starts a larger start_budget_s",
    ),
    _R.FLAPPING: FailureWords(
        "it got ready and ended again so often that it is no longer started",
        "read its log, mend it and commit, or go back with gpuaas rollback",
    ),
    _R.PACKAGES_FAILED: FailureWords(
        "the pip packages of its parameters could not be put in",
        "check names, versions and hashes, and that package_index has them",
    ),
    _R.SECRET_UNAVAILABLE: FailureWords(
        "a secret that it reads could not be handed to it",
        "write the secret, or mend the way from the node to the control plane",
    ),
    _R.BLOB_UNAVAILABLE: FailureWords(
        "a blob that it reads could not be brought to the node",
        "check that the blob is in the store, and the quota and the way from node to control plane",
    ),
    _R.DISK_FULL: FailureWords(
        "the node has no room left for it",
        "make room on the node's disk; it is tried again by itself",
    ),
    _R.ALTERED: FailureWords(
        "somebody changed its container behind our back",
        "find out who; write wanted changes into the state repo",
    ),
    _R.ENGINE_UNAVAILABLE: FailureWords(
        "the container engine of its node does not answer",
        "look at the engine on the node; the agent goes on by itself",
    ),
    _R.TEARDOWN_INCOMPLETE: FailureWords(
        "after its removal something of it was still found",
        "look for its label on the node; the removal is tried again by itself",
    ),
}


def words_of(reason: str) -> FailureWords | None:
    """None for what is no failure of a workload."""
    return FAILURE_WORDS[FailureReason(reason)] if reason in _VALUES else None


def page_of(reason: str) -> str:
    """The page on it, from the root of the project."""
    return f"{FOLDER}/{reason}.md"


_VALUES = frozenset(reason.value for reason in FailureReason)
