"""Rotation of signing keys: what never happens, whatever nodes, custody and we ourselves do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reconciler.core.actions import KeyAction
from reconciler.core.desired import KeyWish
from reconciler.core.observed import NodeSeen, Observed, Seen
from reconciler.core.plan.keys import GONE_AFTER_MS, signing_version, wanted_of_keys
from reconciler.core.records import REPORT_GAP_MAX_MS, Intent
from tests.core.test_plan_keys import AWAY, NEVER, REVOKED, knows, once_knew, see, signed

OFFLINE_AFTER_MS = 45_000


@dataclass
class Agent:
    """What an agent believes, and what we last heard of that, when, and since when without a break.
    `there`: it can be reached; `away_ms`: for how long it was not, since we last heard of it.
    """

    known: set[int]
    min_version: int
    joined_ms: int = 0
    heard: int | None = None
    heard_ms: int = 0
    since_ms: int = 0
    there: bool = True
    away_ms: int = 0
    revoked: bool = False

    def believes(self, version: int) -> bool:
        return version in self.known and version >= self.min_version


@dataclass
class Task:
    agent: str
    version: int
    acknowledged: bool = False


@dataclass
class Fleet:
    """Custody, agents, the queue, and what the repo says, in a few numbers."""

    wish: KeyWish = field(default_factory=lambda: KeyWish(1))
    versions: list[int] = field(default_factory=lambda: [1])
    agents: dict[str, Agent] = field(default_factory=dict)
    queue: list[Task] = field(default_factory=list)
    now_ms: int = 0

    @property
    def counting(self) -> dict[str, Agent]:
        return {name: one for name, one in self.agents.items() if not one.revoked}

    def observed(self) -> Observed:
        nodes = {name: self._seen(agent) for name, agent in self.agents.items()}
        return see(tuple(self.versions), nodes)

    def _seen(self, agent: Agent) -> Seen[NodeSeen]:
        if agent.revoked:
            return REVOKED
        if agent.heard is None:
            return replace(NEVER, silent_ms=self.now_ms - agent.joined_ms)
        silent_ms = self.now_ms - agent.heard_ms
        if silent_ms > OFFLINE_AFTER_MS:
            return once_knew(agent.heard, replace(AWAY, silent_ms=silent_ms))
        return knows(agent.heard, agent.heard_ms - agent.since_ms)

    def hear(self, agent: Agent) -> None:
        if agent.heard is None or self.now_ms - agent.heard_ms > REPORT_GAP_MAX_MS:
            agent.since_ms = self.now_ms
        agent.heard, agent.heard_ms, agent.away_ms = max(agent.known), self.now_ms, 0

    def queued(self) -> list[Intent]:
        tasks = (task for task in self.queue if not task.acknowledged)
        return [signed(task.version, f"i{number}") for number, task in enumerate(tasks)]

    def act(self, seen: Observed) -> int:
        """A pass on what was seen, perhaps some time ago; it looks again right before it acts.

        Returns how many queued tasks had to be signed anew.
        """
        wishes = {"tasks": self.wish}
        planned = wanted_of_keys(wishes, seen, self.queued())
        for action in planned:
            now = wanted_of_keys(wishes, self.observed(), self.queued())
            if action in _ready(now) and action in _ready(planned):
                self._carry_out(action)
        lost = [one for one in self.queue if one.version not in self.versions]
        self.queue = [one for one in self.queue if one.version in self.versions]
        again = [one.agent for one in lost if not one.acknowledged]
        for agent in again:
            self.sign(agent)
        return len(again)

    def _carry_out(self, action: KeyAction) -> None:
        if action.kind == "rotate":
            self.versions += range(action.version_from + 1, action.version + 1)
            return
        counting = self.counting.values()
        reached = [agent for agent in counting if max(agent.known) >= self.versions[0]]
        self.versions = [one for one in self.versions if one >= action.version]
        for agent in reached:
            assert max(agent.known) >= self.versions[0] or agent.away_ms > GONE_AFTER_MS

    def sign(self, agent: str) -> Task:
        version = signing_version(self.versions, self.observed().nodes)
        self.queue.append(Task(agent, version))
        return self.queue[-1]

    def tell(self, agent: Agent) -> bool:
        """The newest configuration, signed like a task; False for who can't believe it."""
        if not agent.believes(signing_version(self.versions, self.observed().nodes)):
            return False
        agent.known |= {*self.versions}
        agent.min_version = max(agent.min_version, self.versions[0])
        return True


def _ready(actions: tuple[KeyAction, ...]) -> list[KeyAction]:
    return [action for action in actions if action.held is None]


class Rotations(RuleBasedStateMachine):
    """Nodes come, go, are silent and are revoked; versions are wanted one on top of the other."""

    explicit = False

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.remembered = self.fleet.observed()

    @rule(more=st.integers(1, 2))
    def commit(self, more: int) -> None:
        self.fleet.wish = replace(self.fleet.wish, version=min(9, self.fleet.wish.version + more))

    @rule(name=st.sampled_from("ab"))
    def join(self, name: str) -> None:
        """Also once more, as one that forgot all it knew."""
        versions = self.fleet.versions
        self.fleet.agents[name] = Agent({*versions}, versions[0], self.fleet.now_ms)

    @rule(name=st.sampled_from("ab"), there=st.booleans())
    def come_and_go(self, name: str, there: bool) -> None:
        if name in self.fleet.agents:
            self.fleet.agents[name].there = there

    @rule(name=st.just("b"))
    def revoke(self, name: str) -> None:
        if name in self.fleet.agents:
            self.fleet.agents[name].revoked = True

    @rule(name=st.sampled_from("ab"), answers=st.booleans())
    def poll(self, name: str, answers: bool) -> None:
        """What it was told may be all that gets through: the report after it may be lost."""
        agent = self.fleet.counting.get(name)
        if agent is None or not agent.there:
            return
        self.fleet.tell(agent)
        if answers:
            self.fleet.hear(agent)

    @rule(minutes=st.sampled_from((2, 11, 30)), listening=st.booleans())
    def time_passes(self, minutes: int, listening: bool) -> None:
        """While we listen we hear of all who are there, again and again; else of nobody."""
        for _ in range(2 * minutes):
            self.fleet.now_ms += 30_000
            for agent in self.fleet.counting.values():
                if not agent.there:
                    agent.away_ms += 30_000
                elif listening:
                    self.fleet.hear(agent)

    @rule(first=st.sampled_from("ab"))
    def outage(self, first: str) -> None:
        """Of ours: one agent is the first to be back, the others are as reachable as ever."""
        self.time_passes(11, listening=False)
        self.poll(first, answers=True)
        self.act()

    @rule(name=st.sampled_from("ab"))
    def launch(self, name: str) -> None:
        agent = self.fleet.counting.get(name)
        if agent is None:
            return
        task = self.fleet.sign(name)
        if agent.there or not self.explicit:
            assert agent.believes(task.version) or self.left_behind(agent)

    @rule(name=st.sampled_from("ab"), answers=st.booleans())
    def take_over(self, name: str, answers: bool) -> None:
        agent = self.fleet.counting.get(name)
        for task in self.fleet.queue:
            if task.agent == name and agent is not None and agent.there:
                task.acknowledged = answers and agent.believes(task.version)

    @rule()
    def look(self) -> None:
        """A pass that stands still between looking and acting."""
        self.remembered = self.fleet.observed()

    @rule()
    def act_late(self) -> None:
        assert self.fleet.act(self.remembered) == 0 or self.explicit

    @rule()
    def act(self) -> None:
        assert self.fleet.act(self.fleet.observed()) == 0 or self.explicit

    @invariant()
    def nothing_queued_was_signed_with_what_is_retired(self) -> None:
        waiting = (task for task in self.fleet.queue if not task.acknowledged)
        for task in waiting:
            if not self.fleet.agents[task.agent].revoked:
                assert task.version in self.fleet.versions

    @invariant()
    def whoever_counts_can_be_told(self) -> None:
        version = signing_version(self.fleet.versions, self.fleet.observed().nodes)
        for agent in self.fleet.counting.values():
            assert agent.believes(version) or self.left_behind(agent)

    @invariant()
    def one_version_is_left(self) -> None:
        assert self.fleet.versions
        assert self.fleet.versions[-1] <= self.fleet.wish.version

    def teardown(self) -> None:
        """In the end everybody reports: then it comes to rest, and no older version is left."""
        fleet = self.fleet
        for _ in range(4):
            for agent in fleet.counting.values():
                agent.there = True
                if not fleet.tell(agent):
                    assert self.left_behind(agent)
                    agent.known, agent.min_version = {*fleet.versions}, fleet.versions[0]
                fleet.hear(agent)
            for task in fleet.queue:
                task.acknowledged = True
            fleet.act(fleet.observed())
        assert fleet.versions == [fleet.wish.version]
        assert wanted_of_keys({"tasks": fleet.wish}, fleet.observed(), fleet.queued()) == ()

    def left_behind(self, agent: Agent) -> bool:
        """Nobody is, while versions retire by themselves."""
        return self.explicit and max(agent.known) < self.fleet.versions[0]


class LeakedKeys(Rotations):
    """The same where versions are also retired at once. Who was away then has to join again."""

    explicit = True

    def __init__(self) -> None:
        super().__init__()
        for name in "ab":
            self.join(name)
            self.poll(name, answers=True)

    @rule()
    def retire_at_once(self) -> None:
        self.fleet.wish = replace(self.fleet.wish, min_version=self.fleet.wish.version)


SETTINGS = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestRotations = Rotations.TestCase
TestRotations.settings = SETTINGS
TestLeakedKeys = LeakedKeys.TestCase
TestLeakedKeys.settings = SETTINGS
