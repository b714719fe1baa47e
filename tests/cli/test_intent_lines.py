"""What `gpuaas intent publish` and `pull` tell to do, as lines for a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reconciler.cli.intent import opened_lines

PASSWORD = "gpuaas unwrap --token-file intent-4f.token --out intent-4f.password"


def opened(kind: str, **commands: list[str]) -> dict[str, Any]:
    return {
        "id": "4f",
        "kind": kind,
        "expires_at_ms": 0,
        "signature": None,
        "credential": {"hand_over": "h1"},
        "commands": {"unwrap": [PASSWORD], **commands},
    }


def test_variables_are_explained_where_they_are_used() -> None:
    found = opened(
        "publish",
        oras=["oras push r/x:1 $FILES"],
        skopeo=['skopeo copy "$SOURCE" docker://r/x:1'],
        docker=['docker tag "$IMAGE" r/x:1'],
        complete=['gpuaas intent complete 4f --digest "$DIGEST"'],
    )
    assert opened_lines(found, Path("here")) == [
        "# Intent 4f, open until 1970-01-01T00:00:00Z.",
        "gpuaas unwrap --token-file here --out intent-4f.password",
        "",
        "# With oras (FILES: what to publish, files, each with :MEDIA_TYPE behind it if need be):",
        "oras push r/x:1 $FILES",
        "",
        "# With skopeo (SOURCE: what to publish, such as oci:build or docker-archive:app.tar):",
        'skopeo copy "$SOURCE" docker://r/x:1',
        "",
        "# With docker (IMAGE: what to publish, an image that docker has):",
        'docker tag "$IMAGE" r/x:1',
        "",
        "# Then:",
        'gpuaas intent complete 4f --digest "$DIGEST"',
    ]


def test_oras_is_said_to_pull_no_images() -> None:
    """It ends with 0 and has nothing of them: their layers have no file names."""
    found = opened("pull", oras=["oras pull r/x@d"], docker=["docker pull r/x@d"])
    lines = opened_lines(found, None)
    assert "# With oras (for what oras pushed; images are for skopeo and docker):" in lines
    assert "# With docker:" in lines
