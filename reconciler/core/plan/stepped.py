"""What canaries that went back hold, and what is told of them."""

from __future__ import annotations

from reconciler.core.actions import Action, Held, Launch, Replace
from reconciler.core.desired import Desired, Stepped, Target
from reconciler.core.plan import Finding
from reconciler.core.records import InstanceRecord, State, StepBack
from reconciler.core.times import time_text

CODE = "canary_stepped_back"
_NAMES_MAX = 5
_TRY_AGAIN = (
    "change the Promotion: any other content (a new reason will do) tries it again, state: staged "
    "ends the canary; a mended build is a new version"
)


def step_back_hold(
    action: Action, stepped: Stepped | None, record: InstanceRecord | None
) -> Held | None:
    """What went back is not started anew; where it runs already, it runs on, and is kept so."""
    if stepped is None or stepped.instead or not isinstance(action, Launch | Replace):
        return None
    owned = record is not None and record.state is not State.DECOMMISSIONED
    if owned and record is not None and record.applied_version == stepped.asked:
        return None
    return Held(CODE, f"the canary of {stepped.asked} stepped back; {stepped.why}")


def is_step_back(stepped: Stepped | None, record: InstanceRecord, target: Target) -> bool:
    """Whether it is on its way back: nobody wrote that, so no window or approval is waited for.
    What somebody changes besides is a change.
    """
    if stepped is None or not stepped.instead:
        return False
    same = record.applied_hash == target.workload.spec_hash
    return same or record.applied_version == stepped.asked


def with_reason(
    reason: str, stepped: Stepped | None, record: InstanceRecord | None, target: Target
) -> str:
    if stepped is None or record is None or not is_step_back(stepped, record, target):
        return reason
    return f"{reason}: the canary of {stepped.asked} stepped back"


def in_its_place(stepped: Stepped) -> str:
    """Of an instance that asks for a version that went back."""
    if not stepped.instead:
        return f"asks for {stepped.asked}, of which the canary stepped back; {stepped.why}"
    return f"runs {stepped.instead}: the canary of {stepped.asked} stepped back"


def step_back_findings(desired: Desired) -> list[Finding]:
    """One a canary, until a person does something about it."""
    return [
        Finding("stalled", CODE, back.promotion, _words(back, desired), _TRY_AGAIN)
        for back in desired.step_backs
    ]


def _words(back: StepBack, desired: Desired) -> str:
    version = back.promotion.rpartition("/")[2]
    app = back.promotion.split("/")[1]
    concerned = [
        stepped
        for key, stepped in sorted(desired.stepped.items())
        if stepped.asked == version
        and key in desired.targets
        and desired.targets[key].instance.app == app
    ]
    went = sum(1 for one in concerned if one.instead)
    names = ", ".join(back.failed[:_NAMES_MAX])
    more = f" and {len(back.failed) - _NAMES_MAX} more" if len(back.failed) > _NAMES_MAX else ""
    counts = f"{went} go back, {len(concerned) - went} can't"
    return (
        f"stepped back at {time_text(back.at_ms)}, and counts as staged: {back.message} "
        f"({names}{more}); {counts}"
    )
