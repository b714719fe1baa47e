# ruff: noqa: F811 - fixtures are asked for by name
"""What is there can be declared, and an instance only with the proof that nothing changes."""

from __future__ import annotations

from typing import Any

import pytest

from node_agent.wire import Gpu, Inventory, Limits, Phase, Report
from reconciler.core.names import InstanceKey
from reconciler.core.records import EnrolledNode
from reconciler.core.validate import validate
from reconciler.errors import Refused
from reconciler.use_cases.importing import (
    Manifest,
    family_of,
    importables,
    instance_manifest,
    node_manifest,
    with_file,
)
from reconciler.use_cases.planning import look_now, plan_revision
from tests.test_cycle import HELLO, INSTANCE, SCHEMAS, SETTINGS, World, world  # noqa: F401

VERSION = "catalog/hello/versions/1.0.0.yaml"
ALLOCATION = "tenants/acme/projects/research/allocations/small.yaml"


def gpu(number: int, model: str = "NVIDIA H200", vendor: Any = "nvidia") -> Gpu:
    return Gpu(uuid=f"GPU-{number}", vendor=vendor, model=model, memory_mib=143_771)


# --- nodes ---------------------------------------------------------------------------------------


def host(**changed: Any) -> Inventory:
    given = {
        "engines": ("docker",),
        "cpu_count": 96,
        "memory_mib": 1_031_700,
        "disk_free_mib": 1,
        "architecture": "x86_64",
        "operating_system": "linux",
        "gpus": (gpu(1), gpu(0)),
        **changed,
    }
    return Inventory(**given)


def joined(inventory: Inventory | None, name: str = "gpu-07") -> EnrolledNode:
    if inventory is None:
        return EnrolledNode(name, "a" * 64, 1)
    report = Report(
        node=name,
        agent_version="0.1.0",
        sent_at_ms=1,
        report_seq=1,
        last_seq=0,
        connected_at_ms=1,
        complete=True,
        inventory=inventory,
    )
    return EnrolledNode(name, "a" * 64, 1, report.canonical().decode(), 1)


def made(world: World, node: EnrolledNode | None, name: str = "gpu-07") -> Manifest:
    source = world.ports.source.snapshot(world.ports.source.fetch())
    return node_manifest(node, name, "research", source, SCHEMAS, SETTINGS)


def test_a_node_is_written_from_its_agents_word(world: World) -> None:
    found = made(world, joined(host()))
    assert found.path == "platform/nodes/gpu-07.yaml"
    assert found.text == (
        "# Written by gpuaas import from what the agent on the host reported. Review it.\n"
        "apiVersion: gpuaas.dev/v1\n"
        "kind: Node\n"
        "metadata:\n"
        "  name: gpu-07\n"
        "spec:\n"
        "  pool: research\n"
        "  # gpu_slice: given out GPU by GPU. baremetal: given out whole.\n"
        "  capacity_shape: gpu_slice\n"
        "  accelerator_family: nvidia-h200  # guessed from the model\n"
        "  accelerators:\n"
        '    - uuid: "GPU-0"\n'
        "      vendor: nvidia\n"
        '      model: "NVIDIA H200"\n'
        "      memory_mib: 143771\n"
        '    - uuid: "GPU-1"\n'
        "      vendor: nvidia\n"
        '      model: "NVIDIA H200"\n'
        "      memory_mib: 143771\n"
        "  cpu_cores: 96\n"
        "  # 1031700 MiB are there, rounded down to whole GiB.\n"
        "  memory_mib: 1031168\n"
        "  engines: [docker]\n"
    )
    source = world.ports.source.snapshot(world.ports.source.head())
    candidate = validate(with_file(source, found.path, found.text), SCHEMAS, SETTINGS.parse_limits)
    assert candidate.problems == ()
    assert "Node/gpu-07" in {str(ref) for ref in candidate.objects}


def test_what_an_agent_says_is_never_more_than_a_word(world: World) -> None:
    """Attempted: an engine whose name ends the manifest and begins that of another node."""
    another = "]\n---\nkind: Node\nmetadata:\n  name: evil\nspec:\n  engines: [docker"
    for engine in ("docker" + another, "docker, process", "docker # x", "'docker"):
        with pytest.raises(Refused, match="import_invalid"):
            made(world, joined(host(engines=(engine,))))


def test_a_node_that_another_file_declares_is_not_declared_twice(world: World) -> None:
    text = made(world, joined(host())).text
    world.commit(**{"platform/nodes/all.yaml": text.encode()})
    with pytest.raises(Refused, match=r"all\.yaml:\d+: import_known: Node/gpu-07 is declared"):
        made(world, joined(host()))


@pytest.mark.parametrize(
    ("models", "family"),
    [
        ([], ("cpu", "")),
        (["NVIDIA H200"], ("nvidia-h200", "  # guessed from the model")),
        (["NVIDIA A100-SXM4-80GB"], ("nvidia-a100", "  # guessed from the model")),
        (["NVIDIA GeForce RTX 4090"], ("nvidia-rtx-4090", "  # guessed from the model")),
        (["Tesla V100-PCIE-16GB"], ("nvidia-v100", "  # guessed from the model")),
        (["?"], ("nvidia-unknown", "  # guessed from the model")),
        (
            ["NVIDIA L4", "NVIDIA L40S", "NVIDIA L4"],
            ("nvidia-l4", "  # guessed from the model; nvidia-l40s is there as well"),
        ),
    ],
)
def test_family(models: list[str], family: tuple[str, str]) -> None:
    assert family_of([gpu(number, model) for number, model in enumerate(models)]) == family


def test_family_of_the_other_vendor() -> None:
    assert family_of([gpu(0, "AMD Instinct MI300X", "amd")])[0] == "amd-mi300x"


@pytest.mark.parametrize(
    ("node", "code", "message"),
    [
        (None, "import_unknown_node", "no node gpu-07 has joined"),
        (joined(None), "import_no_report", "node gpu-07 has not reported yet"),
        (
            EnrolledNode("gpu-07", "a" * 64, 1, "{}", 1),
            "import_no_report",
            "node gpu-07 runs an agent we can't read",
        ),
        (
            joined(host(engines=(), engine_errors={"docker": "no such socket"})),
            "import_no_report",
            "no engine of node gpu-07 answers (docker: no such socket)",
        ),
        (
            joined(host(gpus=(Gpu(uuid="a\nb: c", vendor="nvidia", model="X1", memory_mib=1),))),
            "import_invalid",
            "what the agent reports makes no valid manifest: platform/nodes/gpu-07.yaml:12:",
        ),
    ],
)
def test_a_node_that_makes_no_manifest(
    world: World, node: EnrolledNode | None, code: str, message: str
) -> None:
    with pytest.raises(Refused) as caught:
        made(world, node)
    assert caught.value.code == code
    assert caught.value.message.startswith(message)
    assert caught.value.hint


# --- instances -----------------------------------------------------------------------------------


def orphan(world: World) -> None:
    """It runs on the node, and neither the repo nor the store knows it any more."""
    world.converge()
    world.store.__init__()  # type: ignore[misc]
    world.agent.join(world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    world.commit(**{INSTANCE: None})
    codes = [finding.code for finding in world.run_pass().plan.findings]
    assert codes == ["not_in_inventory"]


def imported(world: World, key: InstanceKey = HELLO) -> Manifest:
    source = world.ports.source.snapshot(world.ports.source.fetch())
    return instance_manifest(look_now(world.ports, SETTINGS), key, source, SCHEMAS, SETTINGS)


def refused(world: World, key: InstanceKey = HELLO) -> Refused:
    with pytest.raises(Refused) as caught:
        imported(world, key)
    assert caught.value.hint
    return caught.value


def report_as(world: World, **changed: Any) -> None:
    world.agent.reports[HELLO] = world.agent.reports[HELLO].model_copy(update=changed)
    world.agent.report(world.clock.now_ms())


def test_what_runs_undeclared_is_declared_and_nothing_happens_to_it(world: World) -> None:
    orphan(world)
    found = imported(world)
    assert found.path == INSTANCE
    assert found.text == (
        "apiVersion: gpuaas.dev/v1\n"
        "kind: AppInstance\n"
        "metadata:\n"
        "  name: hello\n"
        "spec:\n"
        "  app: hello\n"
        '  version: "1.0.0"\n'
        "  placement_intent:\n"
        "    allocation: small\n"
        "  parameters:\n"
        "    cpu_cores: 0.5\n"
        "    memory_gib: 0.25\n"
        "  desired: running\n"
    )
    launches = len(world.agent.launches)
    world.commit(**{found.path: found.text.encode()})
    done = world.run_pass()
    assert done.plan.empty
    assert done.plan.findings == ()
    assert world.record.applied_version == "1.0.0"
    assert len(world.agent.launches) == launches


def test_what_is_stopped_stays_stopped(world: World) -> None:
    orphan(world)
    report_as(world, phase=Phase.STOPPED)
    found = imported(world)
    assert "  desired: stopped\n" in found.text
    world.commit(**{found.path: found.text.encode()})
    assert world.run_pass().plan.actions == ()


def test_what_no_manifest_gives_is_refused_with_what_differs(world: World) -> None:
    orphan(world)
    origin = world.agent.reports[HELLO].origin
    assert origin is not None
    odd = origin.model_copy(update={"limits": Limits(cpu_millis=500, memory_mib=256, pids=7)})
    report_as(world, target_hash="sha256:" + "0" * 64, origin=odd)
    found = refused(world)
    assert found.code == "import_differs"
    assert found.message == (
        "no manifest gives what runs on node-a; on allocation small: pids 7 there, 4096 by manifest"
    )
    report_as(world, target_hash="sha256:" + "0" * 64, origin=origin)
    assert refused(world).message.endswith(
        "command, environment, probe or labels are not those of the catalog"
    )


def test_an_allocation_it_does_not_fit_into_is_refused(world: World) -> None:
    orphan(world)
    text = world.files[ALLOCATION].decode()
    world.commit(**{ALLOCATION: text.replace("memory_mib: 2048", "memory_mib: 128").encode()})
    found = refused(world)
    assert found.code == "import_differs"
    assert "on allocation small: exceeds_allocation: 256 MiB of memory asked" in found.message


def test_refusals(world: World) -> None:
    orphan(world)
    unknown = refused(world, InstanceKey("acme/research/other"))
    assert (unknown.code, unknown.message) == (
        "import_unknown_instance",
        "no node reports that it runs acme/research/other",
    )
    member = refused(world, InstanceKey(f"{HELLO}.w1"))
    assert (member.code, member.hint) == (
        "import_member",
        "import that one, and name this under its spec.members: "
        "- {name: w1, role: <role>, allocation: <allocation on its node>}",
    )
    origin = world.agent.reports[HELLO].origin
    assert origin is not None
    report_as(world, phase=Phase.STARTING, message="pulling")
    assert refused(world).message == "acme/research/hello is starting: pulling"
    report_as(world, phase=Phase.READY, origin=None)
    assert refused(world).code == "import_no_origin"
    report_as(world, origin=origin.model_copy(update={"version": "9.9.9"}))
    assert refused(world).message == (
        "it runs AppVersion/hello/9.9.9, which the state repo does not have"
    )
    report_as(world, origin=origin)
    world.commit(**{ALLOCATION: None})
    assert refused(world).message == (
        "project acme/research has no active allocation on node node-a"
    )


def test_what_is_declared_or_owned_is_not_imported(world: World) -> None:
    world.converge()
    assert refused(world).message == "acme/research/hello is in the inventory already"
    world.store.__init__()  # type: ignore[misc]
    world.agent.join(world.clock.now_ms())
    world.agent.report(world.clock.now_ms())
    assert refused(world).message == "acme/research/hello is in the state repo already"


def test_a_node_that_does_not_answer_is_named(world: World) -> None:
    orphan(world)
    world.clock.advance(120_000)
    assert refused(world).message == (
        "no node reports that it runs acme/research/hello; node-a did not answer"
    )


def test_the_list_shows_what_there_is(world: World) -> None:
    orphan(world)
    world.commit(**{"platform/nodes/node-a.yaml": None, ALLOCATION: None})
    source = world.ports.source.snapshot(world.ports.source.fetch())
    look = look_now(world.ports, SETTINGS)
    now = plan_revision(look, source, SCHEMAS, SETTINGS)
    objects = validate(source, SCHEMAS, SETTINGS.parse_limits).objects
    found = importables(look, world.store.nodes(), now, objects)
    assert [(one.kind, one.name, one.where, one.why_not) for one in found] == [
        ("node", "node-a", "", ""),
        ("instance", "acme/research/hello", "node-a", ""),
    ]
    report_as(world, origin=None)
    look = look_now(world.ports, SETTINGS)
    now = plan_revision(look, source, SCHEMAS, SETTINGS)
    (_, instance) = importables(look, world.store.nodes(), now, objects)
    assert instance.why_not == "the agent does not say what acme/research/hello was made from"
