"""When to run a pass: a poll, a webhook, an agent's report, a timer or a person asks for one.

Rules:
- A request is a reason, never an event: any number of them makes one pass over everything.
- One reconciler at a time holds the lease; the others stand by and take over when it lapses.
- A remote that does not answer stops no repair: passes go on with the last accepted revision.
- What waits for a moment (a window, the end of a suspension, a pause) has its pass at that moment.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from reconciler.artifacts.recheck import Recheck
from reconciler.collector import without_collector
from reconciler.core.accept import AcceptedState
from reconciler.core.audit import entries_of
from reconciler.core.authority.facts import Walked
from reconciler.core.names import Revision
from reconciler.core.plan import Finding
from reconciler.core.problems import Problem
from reconciler.core.records import Accepted, PassSummary
from reconciler.core.schema import SchemaSet
from reconciler.custody.away import Presence
from reconciler.custody.watch import CustodyWatch
from reconciler.cycle import LoadMemo, Pass, load, load_last, reconcile
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import RECONCILER_LEASE, Changes, Ports
from reconciler.settings import Settings
from reconciler.wakeups import Later, Wakeups, in_a_while
from reconciler.watch import Watch

FETCHES = frozenset({"start", "poll", "webhook", "request", "retry"})

APPLY_PLAN = "plan:"
"""Begins a request to carry out one plan, by its id, where changes wait for that."""

STORED_FAILURE = "pass_failed"
"""The pass came to its end and stored why it failed."""

_TOLD_FOR_MS = 90 * 24 * 3600 * 1000

log = structlog.get_logger(__name__)


def _tell(done: Pass, reasons: frozenset[str], before: PassSummary | None) -> None:
    """A line an event, and one for the pass; a pass that ended like the one before is not news."""
    for event in done.events:
        log.info(
            event.type,
            app_instance_id=event.instance,
            correlation_id=event.correlation_id,
            revision=event.revision,
            event_id=event.event_id,
            **event.data,
        )
    summary = done.summary
    news = bool(done.events) or before is None or _gist(before) != _gist(summary)
    log.log(
        logging.INFO if news else logging.DEBUG,
        "pass",
        reasons=sorted(reasons),
        revision=summary.revision,
        result=summary.result,
        actions=summary.actions,
        held=summary.held,
        waiting=summary.waiting,
        findings=sorted({str(finding.get("code")) for finding in summary.findings}),
        **({"message": summary.message} if summary.message else {}),
        duration_ms=summary.duration_ms,
    )


def _gist(summary: PassSummary) -> tuple[object, ...]:
    return (summary.revision, summary.result, summary.held, summary.findings)


def _names_plan(reason: str) -> bool:
    return reason.startswith(APPLY_PLAN)


Walk = Callable[[Revision, Accepted], Walked]
"""What the commits after those accepted come to, up to a head; see `gate`."""


@dataclass
class _Memory:
    """What the loop carries from pass to pass; all of it can be rebuilt from the store and Git."""

    state: AcceptedState | None = None
    head: Revision | None = None
    """The newest revision, whether it is the one that counts or not."""
    fetch_error: GpuaasError | None = None
    last: PassSummary | None = None
    failures: int = 0
    loaded: LoadMemo = field(default_factory=LoadMemo)
    approved: frozenset[str] = frozenset()
    """Plans asked for by their ids, until a pass has come to its end with them."""
    standing_by: str = ""
    leading: bool = False
    quiet_ms: int = 0
    """When the remote last had nothing that is newer than what was accepted."""
    seen: tuple[str, int] = ("", 0)
    """The newest revision, and when it came here."""


@dataclass(frozen=True)
class Beat:
    """A sign of life: how long ago the loop last went round, whether it makes the passes, and
    whether custody answered it.
    """

    age_s: float
    leading: bool
    custody_up: bool = True


class Loop:
    """Runs passes until told to stop. `on_tasks` hears which nodes have tasks waiting.

    With `manual` changes wait for a `plan:<id>` reason, whatever the Environment says. `walk`
    says what the commits since come to; without it they count whoever signed them. `begin` makes
    what is not there yet at a first start, and is tried until custody answers.
    """

    def __init__(
        self,
        ports: Ports,
        settings: Settings,
        schemas: SchemaSet,
        holder: str,
        on_tasks: Callable[[frozenset[str]], None] = lambda _: None,
        on_pass: Callable[[Pass], None] = lambda _: None,
        manual: bool = False,
        later: Later = in_a_while,
        walk: Walk | None = None,
        custody: CustodyWatch | None = None,
        begin: Callable[[], None] = lambda: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._schemas = schemas
        self._holder = holder
        self._on_tasks = on_tasks
        self._on_pass = on_pass
        self._manual = manual
        self._later = later
        self._walk = walk
        self._custody = custody
        self._chance = chance
        self._recheck = Recheck(ports, settings)
        self._presence = Presence(begin, int(settings.resync_interval_s * 1000))
        self._call_off: Callable[[], None] | None = None
        self._call_off_retry: Callable[[], None] = lambda: None
        self._memory = _Memory()
        self._beat_s = time.monotonic()
        self.wakeups = Wakeups()

    def heartbeat(self) -> Beat:
        """May be asked from any thread, also while a pass is made: that is no sign of life."""
        up = self._presence.error is None
        return Beat(time.monotonic() - self._beat_s, self._memory.leading, up)

    def run(self, stop: threading.Event) -> None:
        """Passes until `stop` is set; gives the lease back at the end."""
        scheduler = self._timers()
        scheduler.start()
        self.wakeups.add("start")
        try:
            while not stop.is_set():
                self._beat_s = time.monotonic()
                reasons = self.wakeups.take(timeout_s=1.0)
                if reasons and not stop.is_set():
                    self.step(reasons)
        finally:
            scheduler.shutdown(wait=False)
            self._set_alarm(None)
            self._call_off_retry()
            self._ports.store.release(RECONCILER_LEASE, self._holder)

    def step(self, reasons: frozenset[str]) -> Pass | None:
        """One pass for these reasons; None when another reconciler holds the lease or it failed."""
        asked = {r.removeprefix(APPLY_PLAN) for r in reasons if _names_plan(r)}
        self._memory.approved |= asked
        try:
            self._presence.look(self._ports.clock.now_ms())
            if not self._lead():
                return None
            done = self._pass(reasons)
        except GpuaasError as error:
            self._failed(error)
            return None
        except Exception as error:
            # A mistake of ours, met by what somebody wrote or reported, must not end the repairs.
            log.exception("pass_crashed")
            self._failed(Transient("internal", f"unexpected {type(error).__name__}, see the log"))
            return None
        self._call_off_retry()
        if done is not None and done.error:
            self._presence.doubt()
            self._again("custody")
        else:
            self._memory.failures = 0
        return done

    @without_collector()
    def _pass(self, reasons: frozenset[str]) -> Pass | None:
        watch = Watch()
        state = self._refresh(watch) if self._must_fetch(reasons) else self._memory.state
        if state is None:
            return None
        memory = self._memory
        watch.revision_seen_ms = memory.seen[1]
        done = reconcile(
            state,
            self._ports,
            self._settings,
            memory.fetch_error,
            memory.approved,
            self._manual,
            memory.loaded,
            watch,
            self._holder,
            self._findings(),
        )
        if not done.error:
            memory.approved = frozenset()
        self._set_alarm(self._until(done.plan.wake_at_ms))
        if done.nodes:
            self._on_tasks(done.nodes)
        self._on_pass(done)
        _tell(done, reasons, self._memory.last)
        self._memory.last = done.summary
        if done.summary.result == "failed":
            raise Transient(STORED_FAILURE, done.summary.message)
        return done

    def _findings(self) -> tuple[Finding, ...]:
        """What is known of custody beside the pass."""
        drifted = self._custody.findings() if self._custody is not None else ()
        return (*self._presence.findings(), *drifted)

    def _must_fetch(self, reasons: frozenset[str]) -> bool:
        return self._memory.state is None or any(r in FETCHES or _names_plan(r) for r in reasons)

    def _until(self, wake_at_ms: int | None) -> float | None:
        """Seconds until then; None when the next regular pass comes first."""
        if wake_at_ms is None:
            return None
        left_s = max(0, wake_at_ms - self._ports.clock.now_ms()) / 1000
        return left_s if left_s < self._settings.resync_interval_s else None

    def _set_alarm(self, after_s: float | None) -> None:
        """The one pass that is due by the clock; what was due before is forgotten."""
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        if after_s is not None:
            self._call_off = self._later(after_s, lambda: self.wakeups.add("due"))

    def _refresh(self, watch: Watch) -> AcceptedState | None:
        """Fetches and reads a new head. A silent remote leaves what was accepted."""
        memory, source = self._memory, self._ports.source
        try:
            with watch.phase("fetch"):
                head: Revision = source.fetch()
            memory.fetch_error = None
            if memory.state is not None and memory.state.revision == memory.head == head:
                memory.quiet_ms = self._ports.clock.now_ms()
        except GpuaasError as error:
            memory.fetch_error = error
            log.warning("fetch_failed", code=error.code, message=error.message, hint=error.hint)
            if memory.state is not None:
                return memory.state
            head = self._head_or(error)
        if memory.state is None or memory.head != head or memory.state.retiring:
            memory.seen = (head, self._seen_ms(head))
            with watch.phase("load"):
                memory.state, is_read = self._load(head)
            memory.head = head if is_read else None
            log.info("revision", revision=head, problems=len(memory.state.problems))
        return memory.state

    def _load(self, head: Revision) -> tuple[AcceptedState, bool]:
        """The head as it is accepted; where its commits can't be trusted, what was before it. And
        whether it could be read: else it is tried again, since not all that is in the way has to
        be in the revision.
        """
        memory, ports, settings = self._memory, self._ports, self._settings
        try:
            walked = self._walk(head, self._last_accepted()) if self._walk else None
            if walked is None or walked.rejection is None:
                snapshot = ports.source.snapshot(head)
                found = load(snapshot, self._schemas, ports, settings, memory.loaded, walked)
                return found, True
        except GpuaasError as error:
            # Who can push must not be able to end the repairs, not even across a restart.
            if ports.store.accepted().revision is None:
                raise
            problem = Problem("", 0, 0, error.code, error.message, hint=error.hint)
            if isinstance(error, Transient):
                log.warning("revision_unread", revision=head, code=error.code)
                return load_last(Revision(""), problem, ports, settings, memory.loaded), False
            return self._rejected(Walked(head, rejection=problem), problem), False
        return self._rejected(walked, walked.rejection), True

    def _rejected(self, walked: Walked, problem: Problem) -> AcceptedState:
        self._tell_rejection(walked, problem)
        memory, ports, settings = self._memory, self._ports, self._settings
        return load_last(walked.head, problem, ports, settings, memory.loaded)

    def _last_accepted(self) -> Accepted:
        """With the time until which nothing came after it. A commit that was not there then was
        made later, whatever its date says: no key that had ended by then signs it.
        """
        accepted, last = self._ports.store.accepted(), self._ports.store.last_pass()
        quiet_ms = self._memory.quiet_ms
        problems = [f for f in last.findings if f.get("type") == "problem"] if last else []
        if last is not None and last.revision == accepted.revision and not problems:
            quiet_ms = max(quiet_ms, last.started_at_ms)
        return replace(accepted, at_ms=max(accepted.at_ms, quiet_ms))

    def _tell_rejection(self, walked: Walked, problem: Problem) -> None:
        """Once a head, whichever process meets it first. Refused where nothing was accepted yet."""
        store, now_ms = self._ports.store, self._ports.clock.now_ms()
        log.error(
            "revision_rejected",
            revision=walked.head,
            code=problem.code,
            message=problem.message,
            hint=problem.hint,
        )
        if store.use_once(f"rejected/{walked.head}", now_ms + _TOLD_FOR_MS, now_ms):
            store.append_audit(entries_of(walked, now_ms))
            # From now on the last pass tells no more until when all was quiet.
            store.save_accepted(self._last_accepted(), self._holder)
        if store.accepted().revision is None:
            raise Refused(problem.code, problem.message, where=problem.where, hint=problem.hint)

    def _seen_ms(self, head: Revision) -> int:
        """When this revision was first seen, by this process or by the one that led before."""
        known, seen_ms = self._memory.seen
        if known == head:
            return seen_ms
        last, now_ms = self._ports.store.last_pass(), self._ports.clock.now_ms()
        return last.started_at_ms if last is not None and last.revision == head else now_ms

    def _head_or(self, error: GpuaasError) -> Revision:
        """The head as last fetched; when there is none, why it could not be fetched."""
        try:
            return self._ports.source.head()
        except GpuaasError:
            raise error from None

    def _lead(self) -> bool:
        now_ms = self._ports.clock.now_ms()
        ttl_ms = int(self._settings.lease_ttl_s * 1000)
        holder = self._ports.store.lease(RECONCILER_LEASE, self._holder, now_ms, ttl_ms)
        self._memory.leading = holder == self._holder
        if self._memory.leading:
            self._memory.standing_by = ""
            return True
        if self._memory.standing_by != holder:
            log.info("standing_by", holder=holder)
            self._memory.standing_by = holder
        # What was accepted meanwhile is the other one's word; read it again when it is our turn.
        self._memory.state = None
        self._memory.approved = frozenset()
        return False

    def _failed(self, error: GpuaasError) -> None:
        pause_s = self._again("retry")
        log.error("pass_failed", code=error.code, message=error.message, retry_in_s=pause_s)
        if error.code != STORED_FAILURE:
            self._note_failure(error)

    def _again(self, reason: str) -> float:
        """One more pass for this reason, later each time, and not when all others have theirs.

        Returns in how many seconds.
        """
        self._call_off_retry()
        self._memory.failures += 1
        most_s: float = min(60.0, 0.5 * 2 ** min(self._memory.failures, 7))
        pause_s = most_s * (1 + self._chance()) / 2
        self._call_off_retry = self._later(pause_s, lambda: self.wakeups.add(reason))
        return pause_s

    def _note_failure(self, error: GpuaasError) -> None:
        """Makes `gpuaas status` say it too; when the store is what fails, the log has to do."""
        state, now_ms = self._memory.state, self._ports.clock.now_ms()
        revision = state.revision if state else self._memory.seen[0]
        failed = PassSummary("failed", revision, now_ms, 0, message=str(error))
        try:
            self._ports.store.commit(Changes(summary=failed, holder=self._holder))
        except GpuaasError as again:
            log.error("failure_not_stored", code=again.code, message=again.message)

    def _timers(self) -> BackgroundScheduler:
        settings = self._settings
        scheduler = BackgroundScheduler(timezone="UTC")

        def every(seconds: float, job: Callable[[], None]) -> None:
            trigger = {"seconds": timedelta(seconds=seconds).total_seconds()}
            scheduler.add_job(
                job, "interval", coalesce=True, max_instances=1, misfire_grace_time=None, **trigger
            )

        every(settings.poll_interval_s, lambda: self.wakeups.add("poll"))
        every(settings.resync_interval_s, lambda: self.wakeups.add("resync"))
        every(settings.wakeup_interval_s, self.take_requests)
        every(settings.lease_ttl_s / 3, self.renew)
        every(self._recheck.every_s, self.check_evidence)
        if self._custody is not None:
            every(settings.vault_check_interval_s, self.check_custody)
            # Soon, but when it is clear who leads.
            soon = datetime.now(UTC) + timedelta(seconds=settings.lease_ttl_s / 3)
            scheduler.add_job(self.check_custody, "date", run_date=soon)
        return scheduler

    def check_custody(self) -> None:
        """Looks whether custody is as it has to be; what changed there has its pass at once."""
        if self._custody is None:
            return
        before = self._custody.findings()
        try:
            entries = self._custody.check(self._memory.leading, self._ports.clock.now_ms())
            if entries:
                self._ports.store.append_audit(entries)
        except GpuaasError as error:
            log.warning("custody_unchecked", code=error.code, message=error.message)
        if self._custody.findings() != before:
            self.wakeups.add("custody")

    def check_evidence(self) -> None:
        """Looks again at signatures whose turn it is; what changed has its pass at once."""
        state = self._memory.state
        if state is None or not self._memory.leading:
            return
        try:
            if self._recheck.round(state, self._ports.clock.now_ms()):
                self.wakeups.add("evidence")
        except GpuaasError as error:
            log.warning("evidence_unchecked", code=error.code, message=error.message)

    def take_requests(self) -> None:
        """Takes up what other processes asked for."""
        try:
            if self._memory.standing_by:
                return
            for reason in self._ports.store.take_requests():
                self.wakeups.add(reason if _names_plan(reason) else "request")
        except GpuaasError as error:
            log.warning("requests_unread", code=error.code, message=error.message)

    def renew(self) -> None:
        """Keeps the lease during a long pass. It takes it from nobody: what a pass saw before
        another process led must not be stored after.
        """
        if self._memory.standing_by:
            self.wakeups.add("resync")
            return
        try:
            now_ms = self._ports.clock.now_ms()
            ttl_ms = int(self._settings.lease_ttl_s * 1000)
            self._ports.store.renew(RECONCILER_LEASE, self._holder, now_ms, ttl_ms)
        except GpuaasError as error:
            log.warning("lease_not_renewed", code=error.code, message=error.message)
