"""Keys for the demo and the tests: Git signs with them, and manifests may hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.adapters.git_chain import GitCommitLog
from reconciler.core.authority.facts import Signature
from reconciler.core.kinds.keys import SignerKey
from reconciler.devkit.signing import SigningKey, git_config
from reconciler.errors import Refused
from reconciler.settings import Settings
from tests.services.git_repo import GitRepo


@pytest.mark.parametrize("type_", ["ssh", "openpgp"])
def test_git_signs_with_it_and_a_manifest_may_hold_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, type_: str
) -> None:
    # gpg's sockets lie beside its keys, and their names may not be long.
    folder = tmp_path_factory.mktemp("k'")
    if type_ == "ssh":
        key = SigningKey.ssh(folder, "ada")
    else:
        key = SigningKey.openpgp(folder, "ada", "ada@acme.example")
    repo = GitRepo(tmp_path / "state")
    repo.git(*git_config(key), "commit", "--quiet", "--allow-empty", "--message", "change")
    key.close()
    log = GitCommitLog(repo.folder / ".git", Settings())
    said = log.signatures([repo.head()], [key.public_line])
    assert said == {repo.head(): Signature("good", key.fingerprint)}
    entry = SignerKey.model_validate(key.identity_key("laptop"))
    assert (entry.id, entry.type) == ("laptop", type_)
    assert entry.fingerprint == (key.fingerprint if type_ == "openpgp" else None)


def test_a_key_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="there is no ssh-keygen here"):
        SigningKey.ssh(tmp_path, "ada")
