"""Everybody reads their own projects over HTTP, and can't tell what else there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from reconciler.core.names import InstanceKey
from reconciler.core.records import Event
from reconciler.ports import Changes
from reconciler.server.access_rules import FOREIGN
from reconciler.server.app import ServerDeps, Signal, build_agents_app, build_app
from reconciler.server.metrics import Metrics
from reconciler.server.operations import OPERATIONS
from tests.fakes.ca import FakeCa
from tests.fakes.store import MemoryStore
from tests.server.harness import NOW_MS, Keys, Plane, StillClock, a_store, refusal, running
from tests.server.harness import settings_of as settings
from tests.server.readers import (
    ADA,
    BESIDE,
    EVE,
    FOREIGN_KEY,
    FOREIGN_WORDS,
    GRACE,
    MALLORY,
    NILS,
    OLGA,
    OWN,
    OWN_MEMBER,
    REVISION,
    populate,
    record,
    token_of,
)


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plane]:
    """For who only reads."""
    with a_store(request.param, tmp_path_factory.mktemp("store")) as store:
        populate(store)
        with running(store, require_tokens=True) as plane:
            yield plane


@pytest.fixture
def plane(shared: Plane) -> Plane:
    shared.clock.ms = NOW_MS
    return shared


@pytest.fixture
def own_plane() -> Iterator[Plane]:
    """For who also writes."""
    store = MemoryStore()
    populate(store)
    with running(store, require_tokens=True) as plane:
        yield plane


def get(plane: Plane, path: str, who: str) -> httpx.Response:
    return plane.client.get(path, headers=token_of(plane.store, who))


def without_id(answer: httpx.Response) -> tuple[int, Any, list[str]]:
    """All of an answer that does not name the request."""
    document = answer.json()
    document.get("error", {}).pop("correlation_id", None)
    names = sorted(set(answer.headers) - {"date", "content-length"})
    return answer.status_code, document, names


class TestProjects:
    @pytest.mark.parametrize(
        ("who", "seen"),
        [
            (NILS, [OWN, OWN_MEMBER]),
            (GRACE, [BESIDE, OWN, OWN_MEMBER]),
            (MALLORY, [FOREIGN_KEY]),
            (EVE, []),
            (ADA, [BESIDE, OWN, OWN_MEMBER, FOREIGN_KEY]),
            (OLGA, [BESIDE, OWN, OWN_MEMBER, FOREIGN_KEY]),
        ],
    )
    def test_lists_hold_what_may_be_read(self, plane: Plane, who: str, seen: list[str]) -> None:
        rows = get(plane, "/v1/instances", who).json()["instances"]
        assert [row["instance"] for row in rows] == seen
        events = get(plane, "/v1/events", who).json()["events"]
        assert {event["instance"] for event in events} == set(seen)

    @pytest.mark.parametrize("suffix", ["", "/timeline"])
    def test_a_foreign_instance_is_like_one_that_is_not_there(
        self, plane: Plane, suffix: str
    ) -> None:
        foreign = get(plane, f"/v1/instances/{FOREIGN_KEY}{suffix}", NILS)
        missing = get(plane, f"/v1/instances/{FOREIGN_KEY}-2{suffix}", NILS)
        assert refusal(foreign)[:2] == (404, "no_such_instance")
        assert without_id(foreign) == without_id(missing)
        assert get(plane, f"/v1/instances/{FOREIGN_KEY}{suffix}", MALLORY).status_code == 200
        assert get(plane, f"/v1/instances/{OWN}{suffix}", NILS).status_code == 200

    def test_the_events_of_a_foreign_instance_neither(self, plane: Plane) -> None:
        foreign = get(plane, f"/v1/events?instance={FOREIGN_KEY}", NILS)
        missing = get(plane, f"/v1/events?instance={FOREIGN_KEY}-2", NILS)
        assert without_id(foreign) == without_id(missing)
        assert foreign.json() == {"events": [], "next_after": 0}
        own = get(plane, f"/v1/events?instance={OWN}", NILS).json()
        assert {one["instance"] for one in own["events"]} == {OWN, OWN_MEMBER}

    def test_a_message_about_ones_own_names_no_others(self, plane: Plane) -> None:
        instance = get(plane, f"/v1/instances/{OWN}", NILS).json()
        said = f"waits for GPUs or ports still held by {FOREIGN}, {FOREIGN}"
        assert (instance["message"], instance["conditions"][0]["message"]) == (said, said)
        whole = get(plane, f"/v1/instances/{OWN}", ADA).json()
        assert str(FOREIGN_KEY) in whole["message"]

    def test_a_name_that_was_another_projects_before(self, own_plane: Plane) -> None:
        """No such rename is accepted; the events of one would be kept apart all the same."""
        plane = own_plane
        data = {"from": str(FOREIGN_KEY), "to": str(OWN)}
        moved = Event("e-m", "apps.instance.moved", OWN, "c-2", REVISION, NOW_MS, data)
        plane.store.commit(Changes(events=[moved]))
        page = get(plane, f"/v1/instances/{OWN}/timeline", NILS)
        whole = get(plane, f"/v1/instances/{OWN}/timeline", ADA).json()
        assert len(page.json()["entries"]) < len(whole["entries"])
        assert not [word for word in FOREIGN_WORDS if word in page.text]


class TestPages:
    def all_of(self, plane: Plane, who: str, limit: int) -> list[dict[str, Any]]:
        """As a client reads the stream: until a page leads no further."""
        found, after = [], -1
        page: dict[str, Any] = {"next_after": 0}
        while page["next_after"] != after:
            after = page["next_after"]
            page = get(plane, f"/v1/events?after={after}&limit={limit}", who).json()
            assert len(page["events"]) <= limit
            found += page["events"]
        return found

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_no_event_is_missed_and_none_comes_twice(self, plane: Plane, limit: int) -> None:
        whole = [
            one for one in self.all_of(plane, ADA, 100) if one["instance"] in (OWN, OWN_MEMBER)
        ]
        mine = self.all_of(plane, NILS, limit)
        assert [one["cursor"] for one in mine] == [one["cursor"] for one in whole]
        assert len(mine) == 4

    def test_a_long_stretch_of_others_is_got_over(self, own_plane: Plane) -> None:
        """A page looks at a bounded number of events, and says how far it got."""
        others = [
            Event(f"f-{n}", "apps.instance.running", FOREIGN_KEY, "c", REVISION, n, {})
            for n in range(12_000)
        ]
        last = Event("mine", "apps.instance.running", OWN, "c", REVISION, NOW_MS, {})
        own_plane.store.commit(Changes(events=[*others, last]))
        start = get(own_plane, "/v1/events", NILS).json()["next_after"]
        page = get(own_plane, f"/v1/events?after={start}", NILS).json()
        assert (start, len(page["events"]), page["next_after"]) == (10_000, 1, 12_013)
        assert self.all_of(own_plane, NILS, 100)[-1]["event_id"] == "mine"

    def test_a_page_of_nothing_at_its_limit(self, plane: Plane) -> None:
        assert get(plane, "/v1/events?after=3&limit=0", NILS).json() == {
            "events": [], "next_after": 3,
        }  # fmt: skip


class TestPlatform:
    @pytest.mark.parametrize(
        ("path", "permission", "olga"),
        [
            ("/v1/status", "platform.status.read", 200),
            ("/v1/snapshot", "platform.status.read", 404),
            ("/metrics", "platform.status.read", 200),
            ("/v1/nodes", "fleet.node.read", 200),
            ("/v1/audit", "platform.audit.read", 403),
        ],
    )
    def test_needs_its_permission_for_the_platform(
        self, plane: Plane, path: str, permission: str, olga: int
    ) -> None:
        for who in (NILS, GRACE, EVE):
            assert refusal(get(plane, path, who)) == (
                403, "not_permitted",
                f"user/{who.partition(':')[2]} may not read this: it needs {permission} "
                "for the platform",
            )  # fmt: skip
        assert get(plane, path, OLGA).status_code == olga
        assert get(plane, path, ADA).status_code == (404 if path == "/v1/snapshot" else 200)

    def test_the_audit_trail_in_pages(self, plane: Plane) -> None:
        page = get(plane, "/v1/audit?limit=2", ADA).json()
        assert [row["seq"] for row in page["rows"]] == [1, 2]
        assert page["rows"][1]["previous_hash"] == page["rows"][0]["row_hash"]
        rest = get(plane, f"/v1/audit?after={page['next_after']}", ADA).json()
        assert rest["head"] == {"seq": 3, "row_hash": rest["rows"][-1]["row_hash"]}
        assert rest["rows"][0]["object"] == f"AppInstance/{FOREIGN_KEY}"
        assert get(plane, "/v1/audit?after=3", ADA).json()["next_after"] == 3

    def test_who_one_is(self, plane: Plane) -> None:
        mine = get(plane, "/v1/whoami", MALLORY).json()
        assert mine["grants"][0] == {
            "permission": "apps.instance.read", "scope": "globex/vault", "until_ms": None,
            "why": "RoleBinding/vault (viewer)",
        }  # fmt: skip
        assert (mine["actor"], mine["type"]) == ("user/mallory", "user")
        assert mine["expires_at_ms"] == NOW_MS + 900_000
        assert get(plane, "/v1/whoami", EVE).json()["grants"] == []
        with running(plane.store) as local:
            me = local.client.get("/v1/whoami").json()
        assert (me["actor"], me["type"], me["expires_at_ms"]) == ("local", "local", None)
        assert len(me["grants"]) == 4


# --- every route ---------------------------------------------------------------------------------

PUBLIC = {"/healthz", "/readyz", "/openapi.json"}
OWN_PROOF = {
    "/v1/auth/token", "/v1/auth/service-account/token", "/v1/hooks/git", "/v1/unwrap",
    "/v1/registry/token", "/v1/blobs/uploads/{id}", "/v1/blobs/uploads/{id}/finish",
    "/v1/blobs/{digest}",
}  # fmt: skip
"""What lets nobody in by a bearer token: each has a suite of its own."""
OWN_ONLY = {"/v1/whoami", "/v1/instances", "/v1/events", "/v1/intents", "/v1/releases"}
"""What answers everybody, with what is theirs."""


def routes() -> list[tuple[str, str]]:
    """(method, path) of everything that the application answers, asked of the application."""
    return routes_of(build_app(some_deps()))


def some_deps() -> ServerDeps:
    return ServerDeps(
        MemoryStore(), Keys(), StillClock(), settings(), lambda _: None, Signal(), Metrics()
    )


def routes_of(app: Starlette) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        assert isinstance(route, Route), f"{route}: say here how it asks who calls"
        found += [(method, route.path) for method in sorted(route.methods or ())]
    return found


def filled(path: str, key: InstanceKey) -> str:
    tenant, project, name = key.split("/")
    return path.format(tenant=tenant, project=project, name=name, **_PLACES)


_PLACES = {
    "id": "0" * 26,
    "digest": "sha256:" + "0" * 64,
    "version": "0.1.0",
    "component": "cli",
    "os": "linux",
    "arch": "amd64",
}


_FOREIGN_PROJECT = FOREIGN_KEY.rpartition("/")[0]
BODIES = {
    "/v1/intents/publish": {"project": _FOREIGN_PROJECT, "app": "notebook", "version": "1.0.0"},
    "/v1/intents/pull": {"project": _FOREIGN_PROJECT, "artifact": f"a/b@sha256:{'0' * 64}"},
}
"""What names the other project in its body, and not in the path."""


@pytest.mark.parametrize(("method", "path"), routes())
def test_no_route_shows_anything_of_another_project(plane: Plane, method: str, path: str) -> None:
    """Attempted: every route of the application, by somebody of another project."""
    headers = token_of(plane.store, NILS)
    for query in ("", f"?instance={FOREIGN_KEY}", "?limit=1&after=1", "?last=5"):
        answer = plane.client.request(method, filled(path, FOREIGN_KEY) + query, headers=headers)
        assert not [word for word in FOREIGN_WORDS if word in answer.text]
        if path in PUBLIC:
            continue
        if path in OWN_PROOF:
            assert 400 <= answer.status_code < 500
        elif path in OWN_ONLY:
            assert answer.status_code in (200, 422)
        else:
            assert answer.status_code in (403, 404, 422)
    if path not in PUBLIC | OWN_PROOF | OWN_ONLY:
        place, body = filled(path, FOREIGN_KEY), BODIES.get(path)
        answer = plane.client.request(method, place, headers=headers, json=body)
        assert answer.status_code in (403, 404)
        assert not [word for word in FOREIGN_WORDS if word in answer.text]


@pytest.mark.parametrize(("method", "path"), routes())
def test_no_route_takes_a_token_that_is_none(plane: Plane, method: str, path: str) -> None:
    good = token_of(plane.store, ADA)["Authorization"]
    expired = token_of(plane.store, ADA)
    revoked = token_of(plane.store, MALLORY, key="lost")
    sent: list[tuple[Mapping[str, str], str]] = [
        ({}, "token_required"),
        (revoked, "key_revoked"),
        ({"Authorization": good[:-4] + "AAAA"}, "token_invalid"),
        ({"Authorization": "Bearer garbage"}, "token_invalid"),
        ({"Authorization": "Bearer " + "x" * 50_000}, "token_invalid"),
        ({"Authorization": "Basic YWRhOmFkYQ=="}, "token_missing"),
        ({"Authorization": ""}, "token_missing"),
        (expired, "token_expired"),
    ]
    for headers, code in sent:
        plane.clock.ms = NOW_MS + (900_000 if headers is expired else 0)
        answer = plane.client.request(method, filled(path, OWN), headers=headers)
        if path in PUBLIC:
            assert answer.status_code in (200, 503)
        elif path in OWN_PROOF:
            assert 400 <= answer.status_code < 500
        else:
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert method == "HEAD" or refusal(answer)[1] == code


def test_the_table_has_every_route() -> None:
    documented = {(one.method, one.path) for one in OPERATIONS}
    agents = routes_of(build_agents_app(some_deps(), FakeCa()))
    found = {(method, path) for method, path in (*routes(), *agents) if method != "HEAD"}
    assert found == documented
    assert {path for _, path in agents} & {path for _, path in routes()} == set()


def test_rights_that_are_taken_away_count_at_once(own_plane: Plane) -> None:
    plane = own_plane
    headers = token_of(plane.store, NILS)
    path = f"/v1/instances/{OWN}"
    assert plane.client.get(path, headers=headers).status_code == 200
    accepted = plane.store.accepted()
    left = {ref: one for ref, one in accepted.objects.items() if ref != "RoleBinding/lab"}
    plane.store.save_accepted(replace(accepted, objects=left))
    assert plane.client.get(path, headers=headers).status_code == 404
    gone = {ref: one for ref, one in left.items() if ref != "Identity/nils"}
    plane.store.save_accepted(replace(accepted, objects=gone))
    assert refusal(plane.client.get(path, headers=headers))[:2] == (401, "account_gone")


def test_a_thousand_projects_are_filtered(own_plane: Plane) -> None:
    many = [record(InstanceKey(f"t-{n}/p/x")) for n in range(1_000)]
    own_plane.store.commit(Changes(records=many))
    answer = get(own_plane, "/v1/instances", NILS)
    assert [row["instance"] for row in answer.json()["instances"]] == [OWN, OWN_MEMBER]
    assert "t-1/p" not in answer.text
