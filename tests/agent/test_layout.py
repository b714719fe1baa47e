"""Images from a layout folder: wrong bytes and hostile archives."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from node_agent.engines.base import EngineFailure
from node_agent.engines.layout import Layout
from node_agent.wire import FailureReason
from tests.agent.cases import process_image

LAYER = "application/vnd.oci.image.layer.v1.tar"


def blob(folder: Path, content: bytes) -> dict[str, object]:
    value = hashlib.sha256(content).hexdigest()
    path = folder / "blobs" / "sha256" / value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"digest": f"sha256:{value}", "size": len(content)}


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return output.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, 0o644
    return member


def image(folder: Path, *layers: bytes, media_type: str = LAYER) -> str:
    manifest = {
        "config": blob(folder, json.dumps({"config": {"Cmd": ["run"]}}).encode()),
        "layers": [{**blob(folder, layer), "mediaType": media_type} for layer in layers],
    }
    return str(blob(folder, json.dumps(manifest).encode())["digest"])


def test_layers_are_laid_over_each_other_and_whiteouts_remove(tmp_path: Path) -> None:
    folder, root = tmp_path / "layout", tmp_path / "root"
    root.mkdir()
    below = archive((entry("a/old"), b"1"), (entry("a/kept"), b"2"), (entry("b/gone"), b"3"))
    above = archive((entry("a/.wh.old"), b""), (entry("b/.wh..wh..opq"), b""))
    assert Layout(folder).unpack(image(folder, below, above), root) == ("run",)
    assert [path.name for path in sorted(root.rglob("*"))] == ["a", "kept", "b"]


HOSTILE = {
    "a name that climbs": archive((entry("../escaped"), b"x")),
    "a link that climbs": archive((entry("out", tarfile.SYMTYPE, "../.."), b"")),
    "an absolute link": archive((entry("out", tarfile.SYMTYPE, "/etc"), b"")),
    "a hard link outside": archive((entry("out", tarfile.LNKTYPE, "../secret"), b"")),
    "a device": archive((entry("null", tarfile.CHRTYPE), b"")),
    "no archive": b"not a tar at all" * 100,
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_nothing_lands_outside(tmp_path: Path, case: str) -> None:
    folder, root = tmp_path / "layout", tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    (tmp_path / "deep" / "secret").write_text("untouched")
    with pytest.raises(EngineFailure, match="the image can't be unpacked") as refused:
        Layout(folder).unpack(image(folder, HOSTILE[case]), root)
    assert refused.value.reason is FailureReason.CREATE_REFUSED
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"root", "secret"}


def test_a_whiteout_can_not_remove_outside(tmp_path: Path) -> None:
    folder, root = tmp_path / "layout", tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    (tmp_path / "deep" / "secret").write_text("untouched")
    hostile = archive((entry(".wh..."), b""), (entry("../.wh.secret"), b""))
    with pytest.raises(EngineFailure, match="leads out of its folder"):
        Layout(folder).unpack(image(folder, hostile), root)
    assert (tmp_path / "deep" / "secret").read_text() == "untouched"


def long_way_out(*last: tarfile.TarInfo) -> bytes:
    """Links through a path too long for realpath(), so that only the kernel sees where it ends."""
    deep, steps, members, folder = "d" * 247, "abcdefghijklmnop", [], ""
    for step in steps:
        members.append(entry(f"{folder}{deep}", tarfile.DIRTYPE))
        members.append(entry(f"{folder}{step}", tarfile.SYMTYPE, deep))
        members[-2].mode = 0o755
        folder += deep + "/"
    turn = "/".join(steps) + "/" + "l" * 254
    members.append(entry(turn, tarfile.SYMTYPE, "../" * len(steps)))
    members.append(entry("out", tarfile.SYMTYPE, turn + "/.."))
    return archive(*((member, b"") for member in (*members, *last)))


@pytest.mark.parametrize(
    "last",
    [
        entry("out/secret"),
        entry("out/.wh.secret"),
        entry("taken", tarfile.LNKTYPE, "out/secret"),
        entry("out/new/folder", tarfile.DIRTYPE),
    ],
    ids=["write", "remove", "hard link", "folder"],
)
def test_a_path_too_long_to_be_resolved_leads_nowhere(
    tmp_path: Path, last: tarfile.TarInfo
) -> None:
    """Attempted: the escape from tarfile's own filter (CVE-2025-4517), for each kind of entry."""
    folder, root = tmp_path / "layout", tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    (tmp_path / "deep" / "secret").write_text("untouched")
    with pytest.raises(EngineFailure, match="the image can't be unpacked"):
        Layout(folder).unpack(image(folder, long_way_out(last)), root)
    assert (tmp_path / "deep" / "secret").read_text() == "untouched"
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"root", "secret"}


def test_a_file_replaces_a_link_and_is_not_written_through_it(tmp_path: Path) -> None:
    folder, root = tmp_path / "layout", tmp_path / "root"
    root.mkdir()
    layers = archive((entry("real"), b"kept"), (entry("name", tarfile.SYMTYPE, "real"), b""))
    Layout(folder).unpack(image(folder, layers, archive((entry("name"), b"new"))), root)
    assert ((root / "real").read_text(), (root / "name").read_text()) == ("kept", "new")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_can_not_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    """Attempted: a layer of a few MB whose first header claims a name of many GB."""
    bomb = entry("x", kind)
    bomb.size = 8 * 1024**3 - 1
    (tmp_path / "root").mkdir()
    digest = image(tmp_path / "layout", bomb.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(EngineFailure, match=r"can't be unpacked \(ReadError\)"):
        Layout(tmp_path / "layout").unpack(digest, tmp_path / "root")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_blob_with_other_bytes_of_the_same_length_is_refused(tmp_path: Path, which: int) -> None:
    digest = process_image(tmp_path / "layout").digest
    path = sorted((tmp_path / "layout" / "blobs" / "sha256").iterdir())[which]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    (tmp_path / "root").mkdir()
    with pytest.raises(EngineFailure, match="are not what the digest says") as refused:
        Layout(tmp_path / "layout").unpack(digest, tmp_path / "root")
    assert refused.value.reason is FailureReason.DIGEST_MISMATCH


def test_what_is_wrong_is_said_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    odd = image(folder, b"x", media_type="application/zip")
    with pytest.raises(EngineFailure, match="of type application/zip can't be unpacked"):
        Layout(folder).check(odd)
    nothing = str(blob(folder, b"{}")["digest"])
    with pytest.raises(EngineFailure, match="is not an image manifest"):
        Layout(folder).check(nothing)
    with pytest.raises(EngineFailure, match="is not in"):
        Layout(folder).check("sha256:" + "0" * 64)
    with pytest.raises(EngineFailure, match="not SHA-256"):
        Layout(folder).check("sha256:../../../etc/passwd")
