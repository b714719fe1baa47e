"""Pull intents over HTTP: whose artifacts they open, and no more of what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.use_cases.transfers import opened_by
from tests.fakes.registry import FakeRegistry
from tests.server.auth_world import accept
from tests.server.harness import (
    NOW_MS,
    Plane,
    refusal,
)
from tests.server.intents_world import (
    DIGEST,
    IMAGE,
    REPOSITORY,
    a_plane,
    artifact,
    complete,
    opened,
    pull,
    shows,
    unwrap,
    world,
)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture(params=["memory", "sqlite"])
def plane(
    request: pytest.FixtureRequest, tmp_path: Path, registry: FakeRegistry
) -> Iterator[Plane]:
    with a_plane(request.param, tmp_path, registry) as plane:
        yield plane


class TestPulling:
    @pytest.mark.parametrize(
        ("visibility", "project", "who", "seen"),
        [
            ("project", "acme/lab", "nils", True),
            ("project", "acme/ops", "ada", False),
            ("project", "globex/lab", "gus", False),
            ("tenant", "acme/ops", "ada", True),
            ("tenant", "globex/lab", "gus", False),
            ("platform", "globex/lab", "gus", True),
        ],
    )
    def test_who_sees_what(
        self,
        plane: Plane,
        registry: FakeRegistry,
        visibility: str,
        project: str,
        who: str,
        seen: bool,
    ) -> None:
        registry.publish(REPOSITORY, IMAGE)
        registered = artifact("acme/lab/notebook/1.0.0/image", visibility=visibility)
        accept(plane.store, *world(registered))
        answer = pull(plane, project, who=who)
        if seen:
            assert opened(answer)["digest"] == DIGEST
            return
        unregistered = pull(plane, project, f"{REPOSITORY}@sha256:{'0' * 64}", who)
        first, second = refusal(answer), refusal(unregistered)
        assert first[:2] == second[:2] == (404, "no_such_artifact")
        assert first[2].replace(DIGEST, "") == second[2].replace(f"sha256:{'0' * 64}", "")

    def test_ones_own_repository_is_opened_as_it_is(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
        found = opened(pull(plane, "acme/lab", who="vera"))
        assert found["place"] == found["repository"] == REPOSITORY
        allowed = {REPOSITORY: ("pull",)}
        assert opened_by(plane.store, found["id"], unwrap(plane, found), NOW_MS) == allowed
        assert registry.copied == []

    def test_of_anothers_repository_only_this_artifact_is_opened(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        """A token is for a repository, and there may be more in it than the project may see."""
        registry.publish(REPOSITORY, IMAGE)
        shared = artifact("acme/lab/notebook/1.0.0/image", visibility="platform")
        private = artifact("acme/lab/notebook/2.0.0/image", digest=f"sha256:{'2' * 64}")
        accept(plane.store, *world(shared, private))
        found = opened(pull(plane, "globex/lab", who="gus"))
        place = f"gpuaas/intents/{found['id']}"
        assert found["place"] == place
        assert [to for _, to, _ in registry.copied] == [place]
        allowed = {place: ("pull",)}
        assert opened_by(plane.store, found["id"], unwrap(plane, found), NOW_MS) == allowed

    @pytest.mark.parametrize("state", ["revoked", "retired"])
    def test_what_is_no_good_any_more(self, plane: Plane, state: str) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image", state=state)))
        assert refusal(pull(plane, "acme/lab"))[:2] == (409, f"artifact_{state}")

    def test_revoked_by_its_owner_is_revoked_for_all(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        registry.publish(REPOSITORY, IMAGE)
        paths = [f"{project}/notebook/1.0.0/image" for project in ("acme/lab", "globex/lab")]
        for states, refused in (
            (("revoked", "promoted"), ("nils", "gus")),
            (("promoted", "revoked"), ("gus",)),
        ):
            said = zip(paths, states, strict=True)
            words = [artifact(path, state=state, visibility="platform") for path, state in said]
            accept(plane.store, *world(*words))
            for project, who in (("acme/lab", "nils"), ("globex/lab", "gus")):
                answer = pull(plane, project, who=who)
                if who in refused:
                    assert refusal(answer)[:2] == (409, "artifact_revoked")
                else:
                    assert opened(answer)["digest"] == DIGEST

    def test_nobody_shows_what_its_owner_does_not(self, plane: Plane) -> None:
        """Attempted: to pull a private image by registering it oneself, for all to see."""
        private = artifact("acme/lab/notebook/1.0.0/image")
        mine = artifact("globex/lab/notebook/1.0.0/image", visibility="platform")
        accept(plane.store, *world(private, mine))
        for named in (f"{REPOSITORY}@{DIGEST}", "globex/lab/notebook/1.0.0/image"):
            found = refusal(pull(plane, "globex/lab", named, "gus"))
            assert found[:2] == (404, "no_such_artifact")

    def test_what_its_owner_narrowed_is_opened_for_no_other_any_more(
        self, plane: Plane, registry: FakeRegistry
    ) -> None:
        """Attempted: with a registration of one's own, made while it was shown to all."""
        registry.publish(REPOSITORY, IMAGE)
        theirs = artifact("globex/lab/notebook/1.0.0/image", state="published")
        for visibility, seen in (("platform", True), ("tenant", False), ("project", False)):
            owners = artifact("acme/lab/notebook/1.0.0/image", visibility=visibility)
            accept(plane.store, *world(owners, theirs))
            copied = len(registry.copied)
            for named in (f"{REPOSITORY}@{DIGEST}", "globex/lab/notebook/1.0.0/image"):
                answer = pull(plane, "globex/lab", named, "gus")
                if seen:
                    assert opened(answer)["digest"] == DIGEST
                    continue
                assert refusal(answer)[:2] == (404, "no_such_artifact")
                assert len(registry.copied) == copied

    def test_by_the_path_of_its_manifest(self, plane: Plane) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
        assert opened(pull(plane, "acme/lab", "acme/lab/notebook/1.0.0/image"))["digest"] == DIGEST
        hidden = pull(plane, "globex/lab", "acme/lab/notebook/1.0.0/image", "gus")
        assert refusal(hidden)[:2] == (404, "no_such_artifact")

    @pytest.mark.parametrize("named", ["notebook", DIGEST, f"@{DIGEST}", "x@latest", "a" * 701])
    def test_what_names_no_artifact(self, plane: Plane, named: str) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
        assert refusal(pull(plane, "acme/lab", named))[:2] in (
            (404, "no_such_artifact"),
            (422, "wish_invalid"),
        )

    def test_who_may_not_read_there(self, plane: Plane) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
        assert refusal(pull(plane, "acme/lab", who="gus"))[:2] == (403, "not_permitted")

    def test_there_is_nothing_to_complete(self, plane: Plane) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
        found = opened(pull(plane, "acme/lab"))
        assert refusal(complete(plane, found))[:2] == (409, "transfer_not_publish")

    def test_whoever_asked_may_close_it(self, plane: Plane) -> None:
        accept(plane.store, *world(artifact("acme/lab/notebook/1.0.0/image")))
        path = f"/v1/intents/{opened(pull(plane, 'acme/lab', who='ada'))['id']}"
        assert refusal(plane.client.delete(path, headers=shows(plane, "vera")))[0] == 403
        mine = f"/v1/intents/{opened(pull(plane, 'acme/lab', who='vera'))['id']}"
        assert plane.client.delete(mine, headers=shows(plane, "vera")).status_code == 200
