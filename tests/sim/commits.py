"""The state repo: what people commit, and what each commit means by the word of who wrote it.

Rules:
- A commit's meaning is known from how it was made, never from reading it back: for each instance
  that it wants it (how), that it is gone, or that nobody can tell, and then what was meant before
  goes on counting. That is the oracle against which removals and launches are held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

from tests.sim.catalog import (
    APP,
    BAD_ONE,
    BAD_TOPOLOGIES,
    COMPOSE_NODES,
    DRAFT,
    GOOD,
    GPUS_A_NODE,
    NODES,
    ONE_CONTAINER,
    REVOCABLE,
    SECRET,
    TOPOLOGIES,
    VERSIONS,
    artifact_text,
    catalog_texts,
    images_of,
    is_topology,
    manifest,
    reads_secret,
)

ENVIRONMENT = "sim"
PROJECT = "tenants/acme/projects/lab"
NAMES = ("api", "batch", "chat", "data", "eval")
BUDGET = (2, 50)
"""removals_max, removals_max_percent"""
GENEROUS = (50, 100)

Files = dict[str, bytes]


def key_of(name: str) -> str:
    return f"acme/lab/{name}"


@dataclass(frozen=True)
class Wish:
    """An instance as its manifest has it."""

    name: str
    version: str = GOOD[0]
    node: str = NODES[0]
    run: str = "running"
    gpus: int = 0
    cores: int = 1
    port: int | None = None
    depends_on: tuple[str, ...] = ()
    moved_from: str | None = None

    def text(self) -> str:
        port = f"\n  host_port: {self.port}" if self.port else ""
        needs = f"\ndepends_on: [{', '.join(self.depends_on)}]" if self.depends_on else ""
        moved = f"\nmoved_from: {self.moved_from}" if self.moved_from else ""
        read = self.version in VERSIONS and reads_secret(self.version)
        secrets = f"\nsecrets:\n  {SECRET}: secret://project/{SECRET}" if read else ""
        return manifest(
            "AppInstance",
            self.name,
            f'app: {APP}\nversion: "{self.version}"\n'
            f"placement_intent:\n  allocation: {self.node}\n"
            f"parameters:\n  gpu_count: {self.gpus}\n  cpu_cores: {self.cores}\n"
            f"  memory_gib: 1{port}\ndesired: {self.run}{secrets}{needs}{moved}",
        )


Doubt = Literal["doubt"]
Form = Wish | Doubt | None
"""Wanted so; nobody can tell, so what counted goes on counting; or gone."""


@dataclass(frozen=True)
class Meaning:
    """What a revision says, by instance key. What is not in `forms` is gone, or in doubt."""

    forms: Mapping[str, Form]
    rest: Form
    budget: tuple[int, int]
    moved: Mapping[str, str] = field(default_factory=dict)
    """What is gone, and what says that it was that."""
    revoked: frozenset[str] = frozenset()
    perhaps: Mapping[str, Wish] = field(default_factory=dict)
    """What may count all the same: an entitlement that is gone while a file is broken, which may
    hold it, goes on counting."""

    def form(self, key: str) -> Form:
        return self.forms.get(key, self.rest)


@dataclass(frozen=True)
class State:
    """The repo at one commit."""

    wishes: Mapping[str, Wish] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    """Name → how its file is broken: `yaml`, `schema`."""
    drafts: frozenset[str] = frozenset({DRAFT})
    revoked: frozenset[str] = frozenset()
    """Images that are trusted no more."""
    entitled: bool = True
    environment: str = "good"
    emptied: bool = False
    budget: tuple[int, int] = BUDGET

    def files(self) -> Files:
        if self.emptied:
            return {"README.md": b"# gone\n"}
        found = {**_fixed(), **_promotions(self.drafts)}
        for image in sorted(self.revoked):
            where, text = artifact_text(image, "revoked")
            found[where] = text.encode()
        path = f"environments/{ENVIRONMENT}.yaml"
        if self.environment == "good":
            found[path] = _environment(self.budget)
        elif self.environment == "broken":
            found[path] = b"apiVersion: gpuaas.dev/v1\nkind: [\n"
        if self.entitled:
            found[f"{PROJECT}/entitlements/{APP}.yaml"] = _entitlement()
        for name, wish in self.wishes.items():
            found[f"{PROJECT}/instances/{name}.yaml"] = _broken(wish, self.broken.get(name, ""))
        return found

    def meaning(self) -> Meaning:
        lost = self.emptied or self.environment == "missing"
        forms: dict[str, Form] = {}
        for wish in self.wishes.values():
            if wish.moved_from and wish.run != "decommissioned":
                forms.setdefault(key_of(wish.moved_from), "doubt")
        for name, wish in self.wishes.items():
            # What is to go needs nothing, and can always be removed.
            wanting = not self.entitled or not self._resolves(wish)
            unclear = name in self.broken or (wanting and wish.run != "decommissioned")
            forms[key_of(name)] = "doubt" if lost or unclear else wish
        moved = {key_of(w.moved_from): key_of(w.name) for w in self.wishes.values() if w.moved_from}
        perhaps = {
            key_of(name): wish
            for name, wish in self.wishes.items()
            if self.broken and not self.entitled and name not in self.broken
        }
        rest: Form = "doubt" if lost else None
        revoked = frozenset() if lost else self.revoked
        return Meaning({} if lost else forms, rest, self.budget, moved, revoked, perhaps)

    def _resolves(self, wish: Wish) -> bool:
        return wish.version in VERSIONS and wish.version not in self.drafts


def _broken(wish: Wish, how: str) -> bytes:
    text = wish.text()
    if how == "yaml":
        text = text.replace("spec:", "spec: [", 1)
    elif how == "schema":
        text = text.replace("desired:", "desird:", 1)
    return text.encode()


def _environment(budget: tuple[int, int]) -> bytes:
    spec = (
        "domain: sim.example\nregistry:\n  endpoint: registry.example:5000\n"
        f"guards:\n  removals_max: {budget[0]}\n  removals_max_percent: {budget[1]}"
    )
    return manifest("Environment", ENVIRONMENT, spec).encode()


def _entitlement() -> bytes:
    return manifest("Entitlement", APP, "enabled: true").encode()


def _promotions(drafts: frozenset[str]) -> Files:
    """Between these two states a version may go both ways, and only one of them offers it."""
    return {
        f"catalog/{APP}/promotions/{version}.yaml": manifest(
            "Promotion",
            version,
            f"state: {'staged' if version in drafts else 'canary'}\nreason: ok\n"
            "canary: {percent: 100}",
        ).encode()
        for version in VERSIONS
    }


_FIXED: Files = {}


def _fixed() -> Files:
    """What no commit changes."""
    if not _FIXED:
        _FIXED.update({path: text.encode() for path, text in _fixed_texts().items()})
    return _FIXED


def _fixed_texts() -> dict[str, str]:
    tenants = {
        "tenants/platform/tenant.yaml": ("Tenant", "platform", "org_id: o-p\ndisplay_name: P"),
        "tenants/platform/projects/catalog/project.yaml": (
            "Project", "catalog", "project_id: p-c\ndisplay_name: C",
        ),
        "tenants/acme/tenant.yaml": ("Tenant", "acme", "org_id: o-a\ndisplay_name: A"),
        f"{PROJECT}/project.yaml": ("Project", "lab", "project_id: p-l\ndisplay_name: L"),
    }  # fmt: skip
    found = {path: manifest(*what) for path, what in tenants.items()}
    for node in NODES:
        gpus = [f"GPU-{node}-{number}" for number in range(GPUS_A_NODE)]
        listed = "".join(
            f"  - {{uuid: {gpu}, vendor: nvidia, model: H200, memory_mib: 143000}}\n"
            for gpu in gpus
        )
        engines = "docker, compose" if node in COMPOSE_NODES else "docker"
        found[f"platform/nodes/{node}.yaml"] = manifest(
            "Node", node,
            "pool: main\ncapacity_shape: baremetal\naccelerator_family: nvidia-h200\n"
            f"accelerators:\n{listed}cpu_cores: 64\nmemory_mib: 524288\nengines: [{engines}]",
        )  # fmt: skip
        found[f"{PROJECT}/allocations/{node}.yaml"] = manifest(
            "Allocation", node,
            f"node: {node}\nstate: active\ngpus: [{', '.join(gpus)}]\n"
            "cpu_cores: 32\nmemory_mib: 131072",
        )  # fmt: skip
    return {**found, **catalog_texts()}


# --- what people do ------------------------------------------------------------------------------

Edit = Callable[[State, Random], State]


def _any(state: State, rng: Random) -> str:
    return rng.choice(sorted(state.wishes)) if state.wishes else ""


def _with(state: State, wish: Wish) -> State:
    if is_topology(wish.version) and wish.node not in COMPOSE_NODES:
        wish = replace(wish, node=COMPOSE_NODES[NAMES.index(wish.name) % len(COMPOSE_NODES)])
    return replace(
        state,
        wishes={**state.wishes, wish.name: wish},
        broken={n: how for n, how in state.broken.items() if n != wish.name},
    )


def without(state: State, name: str) -> State:
    return replace(
        state,
        wishes={n: wish for n, wish in state.wishes.items() if n != name},
        broken={n: how for n, how in state.broken.items() if n != name},
    )


def _changed(state: State, rng: Random, change: Callable[[Wish], Wish]) -> State:
    name = _any(state, rng)
    return _with(state, change(state.wishes[name])) if name else add(state, rng)


def _good(rng: Random) -> str:
    return rng.choice((*TOPOLOGIES,) if rng.random() < 0.4 else ONE_CONTAINER)


def add(state: State, rng: Random) -> State:
    free = [name for name in NAMES if name not in state.wishes]
    if not free:
        return set_version(state, rng)
    name = rng.choice(free)
    port = 8000 + NAMES.index(name) % 2 if rng.random() < 0.3 else None
    needs = (_any(state, rng),) if state.wishes and rng.random() < 0.3 else ()
    wish = Wish(
        name, _good(rng), rng.choice(NODES), gpus=rng.choice((0, 1, 2)), port=port,
        depends_on=needs,
    )  # fmt: skip
    return _with(state, wish)


def delete(state: State, rng: Random) -> State:
    name = _any(state, rng)
    return without(state, name) if name else state


def delete_several(state: State, rng: Random) -> State:
    for _ in range(rng.randint(2, 4)):
        state = delete(state, rng)
    return state


def set_version(state: State, rng: Random) -> State:
    choices = (*GOOD, *GOOD, *BAD_ONE, *BAD_TOPOLOGIES, DRAFT, "9.9.9")
    return _changed(state, rng, lambda wish: replace(wish, version=rng.choice(choices)))


def set_good_version(state: State, rng: Random) -> State:
    """Mostly one of the same kind: going from one container to services is rare."""

    def change(wish: Wish) -> Wish:
        others = TOPOLOGIES if is_topology(wish.version) else ONE_CONTAINER
        other = _good(rng) if rng.random() < 0.2 else rng.choice((*others,))
        return replace(wish, version=other)

    return _changed(state, rng, change)


def upgrade_services(state: State, rng: Random) -> State:
    """One service changes, or two; in a fleet without topologies another gets one."""
    names = [name for name, wish in sorted(state.wishes.items()) if is_topology(wish.version)]
    if not names:
        return set_good_version(state, rng)
    wish = state.wishes[rng.choice(names)]
    return _with(state, replace(wish, version=rng.choice((*TOPOLOGIES,))))


def set_cores(state: State, rng: Random) -> State:
    return _changed(state, rng, lambda wish: replace(wish, cores=wish.cores % 4 + 1))


def set_run(state: State, rng: Random) -> State:
    runs = ("running", "running", "stopped", "decommissioned")
    return _changed(state, rng, lambda wish: replace(wish, run=rng.choice(runs)))


def set_gpus(state: State, rng: Random) -> State:
    return _changed(state, rng, lambda wish: replace(wish, gpus=rng.randint(0, GPUS_A_NODE)))


def move_node(state: State, rng: Random) -> State:
    return _changed(state, rng, lambda wish: replace(wish, node=rng.choice(NODES)))


def rename(state: State, rng: Random) -> State:
    """With `moved_from`, as it should be."""
    old, free = _any(state, rng), [name for name in NAMES if name not in state.wishes]
    if not old or not free or old in state.broken:
        return state
    wish = replace(state.wishes[old], name=rng.choice(free), moved_from=old)
    return _with(without(state, old), wish)


def rename_blindly(state: State, rng: Random) -> State:
    """Without. What becomes of the old one then is held against an oracle in `tests.faults`."""
    after = rename(state, rng)
    moved = {name: replace(wish, moved_from=None) for name, wish in after.wishes.items()}
    return replace(after, wishes=moved)


def hand_over_gpus(state: State, rng: Random) -> State:
    """One goes, another gets its place and its GPUs, in one commit."""
    name, free = _any(state, rng), [name for name in NAMES if name not in state.wishes]
    if not name or not free:
        return state
    old = state.wishes[name]
    after = without(state, name) if rng.random() < 0.5 else _with(state, replace(old, gpus=0))
    new = Wish(rng.choice(free), _good(rng), old.node, gpus=old.gpus, port=old.port, cores=3)
    return _with(after, new)


def break_file(state: State, rng: Random) -> State:
    name = _any(state, rng)
    how = rng.choice(("yaml", "schema"))
    return replace(state, broken={**state.broken, name: how}) if name else state


def break_environment(state: State, rng: Random) -> State:
    return replace(state, environment=rng.choice(("broken", "missing")))


def drop_entitlement(state: State, rng: Random) -> State:
    return replace(state, entitled=not state.entitled)


def retract(state: State, rng: Random) -> State:
    return replace(state, drafts=state.drafts ^ {rng.choice(VERSIONS)})


def revoke(state: State, rng: Random) -> State:
    """Nothing of it is launched any more, and what runs of it goes on."""
    return replace(state, revoked=state.revoked | {rng.choice(REVOCABLE)})


def empty(state: State, rng: Random) -> State:
    return replace(state, emptied=True)


def mend(state: State, rng: Random) -> State:
    return replace(state, broken={}, environment="good", entitled=True, emptied=False)


ORDINARY: tuple[Edit, ...] = (
    add, add, delete, set_good_version, set_good_version, upgrade_services, upgrade_services,
    set_cores, set_run, move_node, rename, hand_over_gpus, hand_over_gpus, set_gpus, set_gpus,
    mend, mend,
)  # fmt: skip
UNLUCKY: tuple[Edit, ...] = (
    set_version, delete_several, rename_blindly, break_file, break_file, break_environment,
    drop_entitlement, retract, empty, revoke,
)  # fmt: skip


def first(rng: Random) -> State:
    state = State()
    for _ in range(rng.randint(2, 4)):
        state = add(state, rng)
    return state


def healed(state: State) -> State:
    """The same repo once somebody has put it right, so that all of it can come true."""
    wishes: dict[str, Wish] = {}
    free = dict.fromkeys(NODES, GPUS_A_NODE)
    ports: set[tuple[str, int]] = set()
    # Who waits for another, and the other for its GPU, waits for ever: that is for people to undo.
    wanting = any(wish.gpus or wish.port for wish in state.wishes.values())
    for name in sorted(state.wishes):
        wish = state.wishes[name]
        spare = "5.3.0" if is_topology(wish.version) else ONE_CONTAINER[-1]
        good = wish.version in GOOD and not state.revoked & {*images_of(wish.version)}
        version = wish.version if good else spare
        gpus = min(wish.gpus, free[wish.node])
        free[wish.node] -= gpus
        port = wish.port if (wish.node, wish.port or 0) not in ports else None
        ports |= {(wish.node, port)} if port else set()
        running = {n for n, w in state.wishes.items() if w.run == "running"}
        needs = tuple(n for n in wish.depends_on if n in running and n < name and not wanting)
        wishes[name] = replace(
            wish, version=version, gpus=gpus, port=port, depends_on=needs, moved_from=None
        )
    return State(wishes, drafts=frozenset({DRAFT}), revoked=state.revoked, budget=GENEROUS)


def bumped(state: State, name: str) -> State:
    """The least that somebody can change of an instance to have it tried again."""
    wish = state.wishes[name]
    return _with(state, replace(wish, cores=wish.cores % 4 + 1))


def started(state: State, name: str) -> State:
    return _with(state, replace(state.wishes[name], run="running"))
