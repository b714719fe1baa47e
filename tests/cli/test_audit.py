"""`gpuaas audit` on a store: what is shown, and that tampering is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reconciler.core.records import AuditEntry
from reconciler.core.times import time_text
from reconciler.errors import Refused
from reconciler.settings import Settings
from reconciler.wiring.ports import open_ports
from tests.cli.audit_state import AT_MS, ENTRIES, append, head, make_state, run, said, tamper


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_state(tmp_path)


class TestList:
    def test_a_line_a_row(self, state: Path) -> None:
        code, text = said(state, "list", "--last", "4")
        assert code == 0
        lines = text.splitlines()
        assert lines[0] == (
            "     2  2023-11-14T22:13:21Z  service_account/acme/lab/deployer via forge  "
            "state.appinstance.changed     AppInstance/acme/lab/hello  "
            "refused: outside_own_project  (aaaaaaaaaaaa)"
        )
        assert [line.split()[0] for line in lines] == ["2", "3", "4", "5"]

    @pytest.mark.parametrize(
        ("given", "numbers"),
        [
            ([], [1, 2, 3, 4, 5]),
            (["--last", "2"], [4, 5]),
            (["--object", "AppInstance/acme/lab/hello"], [2, 4]),
            (["--object", "AppInstance/acme/lab"], [2, 4]),
            (["--object", "AppInstance"], [2, 4, 5]),
            (["--object", "AppInstance/acme/lab/hello", "--last", "1"], [4]),
            (["--actor", "user/ada"], [1, 4]),
            (["--actor", "ada", "--object", "Project"], [1]),
            (["--actor", "acme/lab/deployer"], [2]),
            (["--since", time_text(AT_MS + 1_000)], [2, 3, 4, 5]),
            (["--since", "365000d"], [1, 2, 3, 4, 5]),
            (["--since", time_text(AT_MS + 1_000), "--last", "1"], [5]),
        ],
    )
    def test_which(self, state: Path, given: list[str], numbers: list[int]) -> None:
        _, text = said(state, "list", "--format", "json", *given)
        rows = [json.loads(line) for line in text.splitlines()]
        assert [row["seq"] for row in rows] == numbers

    def test_far_back(self, state: Path) -> None:
        append(state, *[ENTRIES[3]] * 2_500)
        _, text = said(state, "list", "--actor", "bob")
        assert [line.split()[0] for line in text.splitlines()] == ["5"]

    def test_every_field_in_json(self, state: Path) -> None:
        _, text = said(state, "list", "--format", "json", "--object", "Project")
        row = json.loads(text)
        assert row.pop("row_hash")
        assert row == {**vars(ENTRIES[0]), "seq": 1, "at": time_text(AT_MS), "previous_hash": ""}

    def test_a_part_is_said_to_be_one(self, state: Path) -> None:
        assert run(state, "list", "--last", "2").stderr == (
            "there may be more: --last 20 goes further back, the newest is 5\n"
        )
        assert run(state, "list").stderr == ""
        done = run(state, "list", "--actor", "eve")
        assert (done.return_value, done.stdout) == (0, "")
        assert done.stderr == "nothing of that among 5 rows\n"

    def test_no_time(self, state: Path) -> None:
        with pytest.raises(Refused) as refused:
            raise run(state, "list", "--since", "yesterday").exception or AssertionError
        assert str(refused.value) == (
            "bad_time: 'yesterday' is no time "
            "(write 2026-03-01T12:00:00Z, or how long ago: 90m, 12h, 7d)"
        )

    def test_what_others_wrote_does_nothing_to_the_terminal(self, state: Path) -> None:
        tamper(state, "UPDATE audit SET reason = char(27) || '[2J' || char(10) WHERE seq = 1")
        _, text = said(state, "list")
        assert "\x1b" not in text
        assert len(text.splitlines()) == 5


TAMPERED = [
    (
        ["UPDATE audit SET actor = 'user/eve' WHERE seq = 2"],
        "broken at row 2: row 2 was changed: what it says does not have the hash it was given "
        "(audit_row_changed)",
    ),
    (
        ["UPDATE audit SET via = '' WHERE seq = 2"],
        "broken at row 2: row 2 was changed: what it says does not have the hash it was given "
        "(audit_row_changed)",
    ),
    (
        ["UPDATE audit SET row_hash = 'f' WHERE seq = 5"],
        "broken at row 5: row 5 was changed: what it says does not have the hash it was given "
        "(audit_row_changed)",
    ),
    (
        ["DELETE FROM audit WHERE seq = 3"],
        "broken at row 3: row 3 is missing: row 4 comes next (audit_row_missing)",
    ),
    (
        ["DELETE FROM audit WHERE seq = 3", "UPDATE audit SET seq = seq - 1 WHERE seq > 3"],
        "broken at row 3: row 3 was changed: what it says does not have the hash it was given "
        "(audit_row_changed)",
    ),
    (
        ["UPDATE audit SET seq = 9 WHERE seq = 3"],
        "broken at row 3: row 3 is missing: row 4 comes next (audit_row_missing)",
    ),
    (
        [
            "UPDATE audit SET seq = 90 WHERE seq = 3",
            "UPDATE audit SET seq = 3 WHERE seq = 4",
            "UPDATE audit SET seq = 4 WHERE seq = 90",
        ],
        "broken at row 3: row 3 was changed: what it says does not have the hash it was given "
        "(audit_row_changed)",
    ),
    (
        ["DELETE FROM audit WHERE seq > 3"],
        "broken at row 4: the last row is 3, but 5 were written: the end was cut off "
        "(audit_cut_off)",
    ),
    (
        ["DELETE FROM audit"],
        "broken at row 1: the last row is 0, but 5 were written: the end was cut off "
        "(audit_cut_off)",
    ),
    (
        ["DELETE FROM singles WHERE name = 'audit_head'"],
        "broken at row 1: there are more rows than the 0 that were counted as they were written "
        "(audit_head_differs)",
    ),
]


class TestVerify:
    def test_whole(self, state: Path) -> None:
        _, last = head(state)
        assert said(state, "verify") == (0, f"whole: rows 1 to 5, the last is {last}\n")
        code, text = said(state, "verify", "--format", "json")
        assert code == 0
        assert json.loads(text) == {
            "format": "gpuaas.dev/audit-verification/v1",
            "whole": True,
            "rows": 5,
            "first": 1,
            "last": 5,
            "hash": last,
            "checkpoint": False,
            "signature": "",
            "broken": None,
        }

    def test_nothing_yet(self, tmp_path: Path) -> None:
        with open_ports(Settings(state_dir=tmp_path / "new")):
            pass
        assert said(tmp_path / "new", "verify") == (0, "whole: no rows\n")

    @pytest.mark.parametrize(("statements", "message"), TAMPERED, ids=str)
    def test_tampering_in_the_store(self, state: Path, statements: list[str], message: str) -> None:
        tamper(state, *statements)
        code, text = said(state, "verify")
        assert code == 1
        assert text.splitlines()[0] == message
        code, text = said(state, "verify", "--format", "json")
        broken = json.loads(text)["broken"]
        assert code == 1
        assert f"broken at row {broken['seq']}: {broken['message']} ({broken['code']})" == message

    @pytest.mark.parametrize(("statements", "message"), TAMPERED, ids=str)
    def test_what_is_not_whole_is_not_exported(
        self, state: Path, statements: list[str], message: str
    ) -> None:
        tamper(state, *statements)
        done = run(state, "export", "--out", "audit.jsonl")
        assert isinstance(done.exception, Refused)
        assert done.exception.message in message
        assert sorted(path.name for path in Path().iterdir()) == ["state"]

    def test_a_history_written_anew_is_found_with_a_hash_from_before(self, state: Path) -> None:
        known = head(state)[1]
        _rewrite(state)
        append(state, ENTRIES[0])
        assert said(state, "verify")[0] == 0
        code, text = said(state, "verify", "--checkpoint", known)
        assert (code, text.splitlines()[0]) == (
            1,
            "broken at row 1: no row has the hash of the checkpoint: the rows were rewritten since "
            "(audit_checkpoint_differs)",
        )

    def test_and_with_an_export_from_before(self, state: Path) -> None:
        said(state, "export", "--out", "before.jsonl")
        append(state, ENTRIES[0])
        code, text = said(state, "verify", "--checkpoint", "before.jsonl")
        assert code == 0
        assert "it goes on from the checkpoint that was given" in text
        assert said(state, "verify", "--checkpoint", head(state)[1])[0] == 0
        _rewrite(state)
        code, text = said(state, "verify", "--checkpoint", "before.jsonl")
        assert (code, text.splitlines()[0]) == (
            1,
            "broken at row 5: row 5 had another hash when the checkpoint was taken: it was "
            "rewritten since (audit_checkpoint_differs)",
        )

    def test_a_store_put_back_to_an_older_one(self, state: Path) -> None:
        said(state, "export", "--out", "before.jsonl")
        digest = json.loads(Path("before.jsonl").read_text().splitlines()[2])["row_hash"]
        tamper(
            state,
            "DELETE FROM audit WHERE seq > 3",
            f"""UPDATE singles SET document = '{{"seq":3,"row_hash":"{digest}"}}'
                WHERE name = 'audit_head'""",
        )
        assert said(state, "verify")[0] == 0
        code, text = said(state, "verify", "--checkpoint", "before.jsonl")
        assert (code, text.splitlines()[0]) == (
            1,
            "broken at row 4: the last row is 3, but 5 was there when the checkpoint was taken "
            "(audit_cut_off)",
        )

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("nowhere", "nowhere: no_checkpoint: neither a hash nor a file"),
            ("some.txt", "audit_checkpoint_unreadable: its last line is no checkpoint"),
        ],
    )
    def test_no_checkpoint(self, state: Path, given: str, message: str) -> None:
        Path("some.txt").write_text("hello\n")
        done = run(state, "verify", "--checkpoint", given)
        assert isinstance(done.exception, Refused)
        assert str(done.exception).startswith(message)


def _rewrite(state: Path) -> None:
    """All rows anew, with another actor, and every hash as it has to be."""
    with open_ports(Settings(state_dir=state), make=False) as ports:
        rows = ports.store.audit()
        count = len(rows)
    tamper(
        state,
        "DELETE FROM audit",
        "DELETE FROM counters WHERE name = 'audit'",
        "DELETE FROM singles WHERE name = 'audit_head'",
    )
    forged = AuditEntry(AT_MS, "user/eve", "user", "state.app.changed", "App/a")
    append(state, *[forged] * count)
