"""Where `gpuaas import` writes: a new file in the checkout, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.cli.import_ import _write
from reconciler.errors import Refused
from reconciler.use_cases.importing import Manifest

MADE = Manifest("platform/nodes/gpu-07.yaml", "kind: Node\n", "as its agent reports")


def test_a_new_file_and_its_folders(tmp_path: Path) -> None:
    assert _write(MADE, tmp_path) == 0
    assert (tmp_path / MADE.path).read_text() == MADE.text
    assert _write(MADE, tmp_path) == 0, "the same once more is no conflict"


def test_a_file_that_says_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "platform/nodes").mkdir(parents=True)
    (tmp_path / MADE.path).write_text("kind: Other\n")
    with pytest.raises(Refused, match="import_exists"):
        _write(MADE, tmp_path)
    assert (tmp_path / MADE.path).read_text() == "kind: Other\n"


@pytest.mark.parametrize("linked", ["platform", "platform/nodes", MADE.path])
def test_no_link_leads_out_of_the_checkout(linked: str, tmp_path: Path) -> None:
    """Attempted: a link that somebody merged, to a place where the person may write."""
    checkout, outside = tmp_path / "state", tmp_path / "home"
    (checkout / linked).parent.mkdir(parents=True)
    outside.mkdir()
    target = outside / "new.yaml" if linked == MADE.path else outside
    (checkout / linked).symlink_to(target)
    with pytest.raises(Refused, match="not_written: a link in the checkout leads out of it"):
        _write(MADE, checkout)
    assert list(outside.rglob("*")) == []
