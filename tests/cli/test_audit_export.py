"""`gpuaas audit export`: a copy of the rows that can be checked anywhere, and what spoils it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.audit import chained
from reconciler.errors import Refused
from reconciler.use_cases import audit as trail
from reconciler.views.audit import export_line
from tests.cli.audit_state import ENTRIES, append, head, make_state, run, said, tamper


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_state(tmp_path)


class TestExport:
    def test_rows_and_a_checkpoint(self, state: Path) -> None:
        done = run(state, "export", "--out", "audit.jsonl")
        assert (done.return_value, done.stdout) == (0, "")
        assert done.stderr == "5 rows and a checkpoint in audit.jsonl\n"
        lines = Path("audit.jsonl").read_text().splitlines()
        assert lines[:5] == [export_line(row) for row in chained(ENTRIES, 0, "")]
        mark = json.loads(lines[5])["checkpoint"]
        assert (mark["after"], mark["seq"], mark["hash"]) == (0, *head(state))
        assert mark["signature"]["payloadType"] == trail.CHECKPOINT_TYPE
        assert Path("audit.jsonl").stat().st_mode & 0o777 == 0o600
        assert said(state, "export")[1].splitlines()[:5] == lines[:5]

    def test_it_is_checked_where_no_control_plane_is(self, state: Path) -> None:
        said(state, "export", "--out", "audit.jsonl")
        key = said(state, "export", "--key")[1].strip()
        nowhere = Path("nowhere")
        code, text = said(nowhere, "verify", "--from", "audit.jsonl", "--key", key)
        assert code == 0
        assert text == (
            f"whole: rows 1 to 5, the last is {head(state)[1]}\n"
            "  its checkpoint is signed by a key that is trusted here\n"
        )
        code, text = said(nowhere, "verify", "--from", "audit.jsonl")
        assert code == 0
        assert "its checkpoint's signature was not checked: pass --key" in text
        code, text = said(nowhere, "verify", "--from", "audit.jsonl", "--key", "0" * 64)
        assert (code, text.splitlines()[0]) == (
            1,
            "broken at row 5: the checkpoint after row 5 is not to be believed: signed by no key "
            "that is trusted here (audit_checkpoint_not_trusted)",
        )
        assert not nowhere.exists()

    def test_parts_follow_each_other(self, state: Path) -> None:
        said(state, "export", "--out", "one.jsonl")
        append(state, *ENTRIES[:2])
        said(state, "export", "--after", "5", "--out", "two.jsonl")
        code, text = said(
            state, "verify", "--from", "two.jsonl", "--checkpoint", "one.jsonl", "--format", "json"
        )
        found = json.loads(text)
        assert code == 0
        assert (found["first"], found["last"], found["signature"]) == (6, 7, "good")
        said(state, "export", "--after", "6", "--out", "three.jsonl")
        done = run(state, "verify", "--from", "three.jsonl", "--checkpoint", "one.jsonl")
        assert isinstance(done.exception, Refused)
        assert done.exception.message == ("the checkpoint is of row 5, these rows begin after 6")

    def test_nothing_new_is_a_checkpoint_alone(self, state: Path) -> None:
        assert len(said(state, "export", "--after", "5", "--out", "none.jsonl")[1]) == 0
        code, text = said(state, "verify", "--from", "none.jsonl")
        assert (code, text.splitlines()[0]) == (0, "whole: no rows")

    def test_from_a_row_that_is_not_there(self, state: Path) -> None:
        done = run(state, "export", "--after", "6")
        assert str(done.exception) == "--after: no_such_row: there is no row 6: the newest is 5"

    def test_a_file_that_cannot_be_written_leaves_nothing(self, state: Path) -> None:
        done = run(state, "export", "--out", "missing/audit.jsonl")
        assert str(done.exception) == "missing/audit.jsonl: not_written: No such file or directory"

    def test_an_export_that_fails_leaves_what_was_there(
        self, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("audit.jsonl").write_text("as it was")
        tamper(state, "UPDATE audit SET actor = 'user/eve' WHERE seq = 5")
        assert run(state, "export", "--out", "audit.jsonl").exception is not None
        assert Path("audit.jsonl").read_text() == "as it was"

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        said(state, "export", "--key")
        monkeypatch.setattr("os.fsync", full)
        tamper(state, "UPDATE audit SET actor = 'user/bob' WHERE seq = 5")
        done = run(state, "export", "--out", "audit.jsonl")
        assert str(done.exception) == "audit.jsonl: not_written: No space left on device"
        assert sorted(path.name for path in Path().iterdir()) == ["audit.jsonl", "state"]
        assert Path("audit.jsonl").read_text() == "as it was"

    def test_more_than_a_page(self, state: Path) -> None:
        append(state, *[ENTRIES[3]] * 2_500)
        said(state, "export", "--out", "audit.jsonl")
        code, text = said(state, "verify", "--from", "audit.jsonl", "--format", "json")
        assert (code, json.loads(text)["rows"]) == (0, 2_505)
        assert said(state, "verify")[0] == 0


Edit = Callable[[list[str]], list[str]]


def _forged_mark(lines: list[str]) -> list[str]:
    """The last row gone, and a checkpoint that says so, under the signature of the other."""
    found: dict[str, Any] = json.loads(lines[5])
    row = json.loads(lines[3])
    found["checkpoint"] |= {"seq": 4, "hash": row["row_hash"]}
    return [*lines[:4], json.dumps(found, sort_keys=True, separators=(",", ":"))]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda lines: [lines[0].replace("user/ada", "user/eve"), *lines[1:]],
            "broken at row 1: row 1 was changed: what it says does not have the hash it was given "
            "(audit_row_changed)",
        ),
        (
            lambda lines: [*lines[:2], *lines[3:]],
            "broken at row 3: row 3 is missing: row 4 comes next (audit_row_missing)",
        ),
        (
            lambda lines: lines[2:],
            "broken at row 1: the export began after row 0, this begins after row 2 "
            "(audit_row_missing)",
        ),
        (
            lambda lines: [*lines[:3], lines[1], *lines[3:]],
            "broken at row 2: row 2 comes after row 3: it was moved (audit_row_moved)",
        ),
        (
            lambda lines: lines[:5],
            "broken at row 6: the file ends without a checkpoint: its end was cut off "
            "(audit_cut_off)",
        ),
        (
            lambda lines: [*lines[:4], lines[5]],
            "broken at row 5: the last row is 4, but 5 were written: the end was cut off "
            "(audit_cut_off)",
        ),
        (
            _forged_mark,
            "broken at row 4: the checkpoint after row 4 is not to be believed: it is signed for "
            "something else (audit_checkpoint_not_trusted)",
        ),
        (
            lambda lines: [*lines, lines[0]],
            "broken at row 6: line 7 comes after the checkpoint (audit_unreadable)",
        ),
        (
            lambda lines: [lines[0], "{}", *lines[1:]],
            "broken at row 2: line 2 is no audit row as it was exported (audit_unreadable)",
        ),
        (
            lambda lines: [lines[0].replace('{"action', '{"actor":"x","action', 1), *lines[1:]],
            "broken at row 1: line 1 is no audit row as it was exported (audit_unreadable)",
        ),
        (
            lambda lines: ["[" * 300_000],
            "broken at row 1: line 1 is no audit row as it was exported (audit_unreadable)",
        ),
        (
            lambda _: [],
            "broken at row 1: the file ends without a checkpoint: its end was cut off "
            "(audit_cut_off)",
        ),
    ],
)
def test_what_was_done_to_an_export(state: Path, edit: Edit, message: str) -> None:
    said(state, "export", "--out", "audit.jsonl")
    lines = Path("audit.jsonl").read_text().splitlines()
    Path("audit.jsonl").write_text("".join(f"{line}\n" for line in edit(lines)))
    code, text = said(state, "verify", "--from", "audit.jsonl")
    assert (code, text.splitlines()[0]) == (1, message)


def test_a_key_that_is_none(state: Path) -> None:
    done = run(state, "verify", "--key", "x")
    assert str(done.exception) == (
        "bad_key: 'x' is no public key of 64 hex digits (`gpuaas audit export --key` prints it)"
    )
