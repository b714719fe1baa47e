"""`gpuaas init`: the first commit, by whom it is signed, and what is left alone."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.can import can
from reconciler.cli.init import init
from reconciler.cli.validate import validate
from reconciler.cli.whoami import whoami
from reconciler.devkit.signing import SigningKey, git_config
from reconciler.errors import Refused
from tests.cli.signed_state import ADMIN, PEOPLE, binding, dumped, identity
from tests.cli.state_repo import Done, run
from tests.services.git_repo import GitRepo


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of somebody whose Git knows nothing yet."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GPUAAS_SIGNATURES", "required")
    for name in ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "EMAIL", "GNUPGHOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return place


@pytest.fixture
def ada(tmp_path: Path) -> SigningKey:
    return SigningKey.ssh(tmp_path / "keys", "ada")


def public(key: SigningKey) -> Path:
    return key.private.with_name(key.private.name + ".pub")


def start(key: SigningKey, *args: str | Path, folder: str = "state") -> Done:
    who = ("--admin-name", ADMIN, "--admin-email", "ada@acme.example")
    return run(init, folder, "--admin-key", public(key), *who, *args)


def refusal(*args: Any, **more: Any) -> str:
    with pytest.raises(Refused) as refused:
        start(*args, **more)
    return str(refused.value)


def opened(folder: Path) -> GitRepo:
    return GitRepo(folder, make=False, config={})


def verified(folder: Path, key: SigningKey, tmp_path: Path) -> str:
    """What Git says of the head's signature: G, and of which key."""
    allowed = tmp_path / "allowed"
    allowed.write_text(f"* {key.public_line}\n")
    file = ("-c", f"gpg.ssh.allowedSignersFile={allowed}")
    return opened(folder).git(*file, "log", "-1", "--format=%G? %GF %an <%ae>").strip()


def test_a_new_repo(ada: SigningKey, tmp_path: Path) -> None:
    done = start(ada, "--environment", "eval", "--registry", "registry.example:443")
    state = tmp_path / "state"
    assert done.code == 0
    assert verified(state, ada, tmp_path) == f"G {ada.fingerprint} ada <ada@acme.example>"
    repo = opened(state)
    assert (repo.git("status", "--porcelain"), repo.git("branch")) == ("", "* main\n")
    assert run(validate, state).code == 0
    assert tomllib.loads((tmp_path / "gpuaas.toml").read_text()) == {
        "repo": str(state),
        "branch": "main",
        "environment": "eval",
        "admin_keys": [" ".join(ada.public_line.split()[:2])],
    }
    assert (
        'endpoint: "registry.example:443"\n  guards'
        in (state / "environments/eval.yaml").read_text()
    )


def test_what_people_see(ada: SigningKey, tmp_path: Path) -> None:
    done = start(ada)
    commit = opened(tmp_path / "state").head()[:12]
    assert [line for line in done.output.splitlines() if "PRIVATE" in line] == []
    assert done.output.splitlines()[:9] == [
        "wrote state/.gitignore",
        "wrote state/.pre-commit-config.yaml",
        "wrote state/README.md",
        "wrote state/environments/prod.yaml",
        "wrote state/platform/iam/ada.yaml",
        "",
        f"commit {commit} on main, signed with {ada.fingerprint} of ada",
        "",
        f"wrote {tmp_path / 'gpuaas.toml'}",
    ]


def test_a_persons_first_day(ada: SigningKey, tmp_path: Path) -> None:
    """init, who am I, may I, let somebody in, a change of hers and one too many."""
    start(ada)
    state = tmp_path / "state"
    assert run(whoami, "--repo", state).output.startswith("user/ada  ada\n")
    assert run(can, ADMIN, "create", "Node/gpu-1", "--repo", state).code == 0
    repo, olga = opened(state), SigningKey.ssh(tmp_path / "keys", "olga")
    repo.git("config", "user.name", "Ada")
    repo.git("config", "user.email", "ada@acme.example")
    (state / PEOPLE).write_text(
        dumped(
            identity("olga", olga),
            binding("fleet", "olga", "custom", {"platform": True})
            | {"spec": {"subjects": [{"identity": "olga"}], "role": "custom",
                        "permissions": ["platform.environment.edit"], "scope": {"platform": True}}},
        )
    )  # fmt: skip
    base = ("--base", "main")
    repo.git("checkout", "--quiet", "-b", "let-olga-in")
    repo.git("add", "--all")
    # No option: the new repo signs by itself.
    repo.git("commit", "--quiet", "--message", "Let Olga in")
    assert run(validate, state, *base, "--authority", "require").code == 0
    environment = state / "environments/prod.yaml"
    environment.write_text(environment.read_text().replace("max: 5", "max: 6"))
    repo.git(*git_config(olga), "commit", "--quiet", "--all", "--message", "One more at a time")
    assert run(validate, state, *base).code == 0
    (state / "platform/iam/mallory.yaml").write_text(
        dumped(binding("mallory", "olga", "platform-admin", {"platform": True}))
    )
    repo.git("add", "--all")
    repo.git(*git_config(olga), "commit", "--quiet", "--message", "And more for me")
    done = run(validate, state, *base)
    assert done.code == 1
    assert "user/olga may not change RoleBinding/mallory: platform.iam.edit is missing" in (
        done.output
    )


def test_json(ada: SigningKey, tmp_path: Path) -> None:
    found = start(ada, "--format", "json", "--settings", "control.toml").document
    assert found["format"] == "gpuaas.dev/init/v1"
    assert found["commit"] == opened(tmp_path / "state").head()
    assert (found["signed_with"], found["settings_file"]) == (ada.fingerprint, "control.toml")
    assert found["settings"] == (tmp_path / "control.toml").read_text()


def test_settings_that_are_there_stay(ada: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "gpuaas.toml").write_text("# mine\n")
    done = start(ada)
    assert "The control plane's gpuaas.toml has to say:" in done.output
    assert (tmp_path / "gpuaas.toml").read_text() == "# mine\n"


# --- who signs -----------------------------------------------------------------------------------


def test_a_key_that_can_not_sign(ada: SigningKey, tmp_path: Path) -> None:
    away = tmp_path / "away"
    ada.private.rename(away)
    done = start(ada)
    state = tmp_path / "state"
    assert done.code == 1
    assert "Staged, not committed: git_cannot_sign: Git could not sign the commit" in done.output
    repo = opened(state)
    assert "A  platform/iam/ada.yaml" in repo.git("status", "--porcelain")
    assert not (tmp_path / "gpuaas.toml").exists()
    away.rename(ada.private)
    command = next(line.strip() for line in done.output.splitlines() if "commit -S" in line)
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert verified(state, ada, tmp_path).startswith(f"G {ada.fingerprint}")


def test_git_that_does_not_know_who(ada: SigningKey, tmp_path: Path) -> None:
    done = run(init, "state", "--admin-key", public(ada), "--admin-name", ADMIN)
    assert done.code == 1
    assert "git_no_identity: Git does not know whose commit this would be" in done.output
    assert "A  platform/iam/ada.yaml" in opened(tmp_path / "state").git("status", "--porcelain")


def test_an_agent_signs(ada: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["ssh-agent", "-s", "-a", str(tmp_path / "agent")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pid = int(told.partition("SSH_AGENT_PID=")[2].partition(";")[0])
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        subprocess.run(["ssh-add", "-q", str(ada.private)], check=True)
        ada.private.unlink()
        assert start(ada).code == 0
        assert verified(tmp_path / "state", ada, tmp_path).startswith(f"G {ada.fingerprint}")
    finally:
        os.kill(pid, signal.SIGTERM)


def test_openpgp(home: Path, tmp_path: Path) -> None:
    key = SigningKey.openpgp(tmp_path / "gpg", "ada", "ada@acme.example")
    try:
        file = tmp_path / "ada.asc"
        file.write_text(key.public_line)
        (home / ".gitconfig").write_text(f"[gpg]\n\tprogram = {key.private / 'gpg'}\n")
        who = ("--admin-name", ADMIN, "--admin-email", "ada@acme.example")
        done = run(init, "state", "--admin-key", file, *who)
        state = tmp_path / "state"
        assert done.code == 0
        found = tomllib.loads((tmp_path / "gpuaas.toml").read_text())
        assert found["trust_root"] == opened(state).head()
        assert "admin_keys" not in found
        seen = run(whoami, "--repo", state, "--key", file)
        assert seen.output.startswith(f"user/ada  ada\n  openpgp {key.fingerprint}\n")
        by = run(whoami, "--repo", state, "--commit", "HEAD", "--format", "json").document
        assert by["actor"] == "user/ada"
    finally:
        key.close()


def test_the_name_of_a_private_key_stands_for_the_public_one(
    ada: SigningKey, tmp_path: Path
) -> None:
    who = ("--admin-name", ADMIN, "--admin-email", "ada@acme.example")
    assert run(init, "state", "--admin-key", ada.private, *who).code == 0
    assert "PRIVATE" not in (tmp_path / "state/platform/iam/ada.yaml").read_text()


# --- what is there already -----------------------------------------------------------------------


def existing(tmp_path: Path) -> GitRepo:
    repo = GitRepo(tmp_path / "state")
    repo.commit({"catalog/README.md": "ours\n", "environments/dev.yaml": "# ours\n"}, "long ago")
    return repo


def test_existing(ada: SigningKey, tmp_path: Path) -> None:
    repo = existing(tmp_path)
    (repo.folder / "draft.md").write_text("not yet\n")
    repo.git("add", "draft.md")
    before = repo.head()
    done = start(ada, "--existing")
    assert done.code == 0
    assert repo.git("rev-parse", "HEAD~1").strip() == before
    assert repo.git("show", "--format=", "--name-only", "HEAD").split() == ["platform/iam/ada.yaml"]
    assert "A  draft.md" in repo.git("status", "--porcelain")
    assert repo.git("config", "--default=none", "user.signingKey") == "none\n"
    found = tomllib.loads((tmp_path / "gpuaas.toml").read_text())
    assert (found["trust_root"], found.get("admin_keys")) == (repo.head(), None)
    assert "  git -C state config commit.gpgSign true" in done.output.splitlines()


def test_nothing_is_written_over(ada: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.md").write_text("mine\n")
    said = refusal(ada, folder="full")
    assert "full: init_exists: the folder holds notes.md already (name a new or empty" in said
    existing(tmp_path)
    said = refusal(ada)
    assert said == (
        "state: init_exists: this repository has commits "
        "(--existing adds to it, and takes what is there on your word)"
    )
    start(ada, "--existing")
    said = refusal(ada, "--existing")
    assert "platform/iam/ada.yaml: init_exists: this repo says already who may do what" in said


def test_where_there_is_nothing_to_add_to(ada: SigningKey) -> None:
    said = refusal(ada, "--existing")
    assert said == "state: init_nothing_there: there is no commit to add to (leave --existing out)"


def test_a_folder_of_another_repository(ada: SigningKey, tmp_path: Path) -> None:
    existing(tmp_path)
    said = refusal(ada, folder="state/inner")
    assert "state/inner: init_in_the_way: it lies in the work tree of another repository" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--admin-name", "Ada!"), "bad_name: --admin-name: not a name: 'Ada!'"),
        (("--environment", "a/b"), "bad_name: --environment: not a name: 'a/b'"),
        (("--registry", "nowhere"), "environments/prod.yaml:"),
        (("--admin-email", "no address"), "platform/iam/ada.yaml:"),
        (("--settings", "state/gpuaas.toml"), "init_settings: whoever may push could change it"),
    ],
)
def test_what_no_repo_can_say(ada: SigningKey, args: tuple[str, ...], says: str) -> None:
    assert says in refusal(ada, *args)
    assert not Path("state").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello\n", "key_unreadable: no public key is in there (an OpenSSH public key"),
        ("-----BEGIN PRIVATE KEY-----\n", "key_private: this is a private key (ssh-keygen -y -f"),
    ],
)
def test_a_file_that_is_no_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(Refused) as refused:
        run(init, "state", "--admin-key", tmp_path / "key")
    assert says in str(refused.value)
    assert not (tmp_path / "state").exists()
