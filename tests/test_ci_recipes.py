"""The recipes under deploy/ci: they parse, call what exists, and comment without being fooled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import pytest
import yaml
from click.testing import CliRunner

from reconciler.cli.main import gpuaas
from reconciler.core.problems import Problem
from reconciler.views.problems import Verdict, sarif_document

ROOT = Path(__file__).resolve().parent.parent
CI = ROOT / "deploy" / "ci"
RECIPES = sorted(CI.glob("*.yml"))
SCRIPT = CI / "sticky-comment.sh"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
TOKEN = "t0ken-of-ci"
MARKER = "<!-- gpuaas-plan:prod -->"


def scripts(value: Any) -> Iterator[str]:
    """Every shell script in a recipe."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key == "run":
                yield below
            elif key == "script":
                yield "\n".join(below)
            else:
                yield from scripts(below)
    elif isinstance(value, list):
        for below in value:
            yield from scripts(below)


def recipe(path: Path) -> str:
    return "\n".join(scripts(yaml.safe_load(path.read_text())))


def calls(script: str) -> Iterator[list[str]]:
    """The words of each `gpuaas` command, continued lines joined."""
    for found in re.findall(r"\bgpuaas ((?:validate|plan)\b[^\n]*)", script.replace("\\\n", " ")):
        yield re.split(r"\s+", re.split(r" [>|]", found)[0].strip())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_calls_commands_and_options_that_exist(path: Path) -> None:
    found = [words for words in calls(recipe(path)) if words]
    assert {words[0] for words in found} == {"validate", "plan"}
    context = click.Context(gpuaas)
    for name, *words in found:
        command = gpuaas.get_command(context, name)
        assert command is not None
        known = {option for one in command.params for option in one.opts}
        used = set(re.findall(r"--[a-z][a-z-]*", " ".join(words)))
        assert used <= known
        for option, value in re.findall(r"--(format) (\w+)", " ".join(words)):
            (kind,) = (one.type for one in command.params if one.name == "output")
            assert isinstance(kind, click.Choice)
            assert value in kind.choices, option


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_shell_that_parses(path: Path) -> None:
    for script in scripts(yaml.safe_load(path.read_text())):
        done = subprocess.run(
            ["sh", "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), script


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_nothing_of_a_pull_request_is_written_into_a_script(path: Path) -> None:
    """Attempted: a branch or title that is shell. Such text comes by environment variables."""
    for script in scripts(yaml.safe_load(path.read_text())):
        filled = re.findall(r"\$\{\{\s*(.*?)\s*\}\}", script)
        assert set(filled) <= {"vars.GPUAAS_VERSION"}
    assert "pull_request_target" not in path.read_text()


def test_the_hook_for_pre_commit_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (hook,) = yaml.safe_load(HOOKS.read_text())
    assert (hook["id"], hook["language"]) == ("gpuaas-validate", "python")
    assert hook["pass_filenames"] is False
    assert re.search(hook["files"], "tenants/a/tenant.yaml")
    words: list[str] = [*hook["entry"].split(), *hook["args"]]
    assert words[0] == "gpuaas"
    monkeypatch.chdir(ROOT / "example-state-repo")
    done = CliRunner().invoke(gpuaas, words[1:], standalone_mode=False)
    assert done.return_value == 0
    assert "no problem" in done.output


def test_gitlab_gets_its_code_quality_report(tmp_path: Path) -> None:
    problem = Problem("a.yaml", 3, 1, "tag", "tag '!x' is not taken")
    whole = Problem("b.yaml", 0, 0, "symlink", "a symbolic link")
    sarif = sarif_document(Verdict("0", 1, (problem, whole), 0.1), "1.0.0")
    (tmp_path / "gpuaas.sarif").write_text(json.dumps(sarif))
    (script,) = re.findall("<<'PY'\n(.*?)\nPY", recipe(CI / "gitlab.yml"), re.DOTALL)
    done = subprocess.run(
        ["python3", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second = json.loads(done.stdout)
    assert first["check_name"] == "tag"
    assert first["location"] == {"path": "a.yaml", "lines": {"begin": 3}}
    assert second["location"]["lines"]["begin"] == 1
    assert first["fingerprint"] != second["fingerprint"]


# --- the comment ---------------------------------------------------------------------------------


@dataclass
class Forge:
    """The comments of one pull request, as the three APIs show them."""

    kind: str
    comments: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    pages: bool = True
    url: str = ""

    def add(self, author: str, body: str) -> None:
        who, login = ("author", "username") if self.kind == "gitlab" else ("user", "login")
        number = 100 + len(self.comments)
        self.comments.append({"id": number, "body": body, who: {login: author}})

    def bodies(self) -> list[str]:
        return [comment["body"] for comment in self.comments]

    @property
    def list_path(self) -> str:
        if self.kind == "gitlab":
            return "/projects/17/merge_requests/5/notes"
        return "/repos/acme/state/issues/5/comments"

    @property
    def one_path(self) -> str:
        return self.list_path if self.kind == "gitlab" else "/repos/acme/state/issues/comments"

    def answer(self, method: str, url: str, sent: Any) -> tuple[int, Any]:
        parts = urlsplit(url)
        self.seen.append((method, parts.path))
        if method == "GET" and parts.path == self.list_path:
            page = int(parse_qs(parts.query)["page"][0])
            these = slice(100 * (page - 1), 100 * page) if self.pages else slice(None)
            return 200, self.comments[these]
        if method == "POST" and parts.path == self.list_path:
            self.add("ci-bot", sent["body"])
            return 201, {}
        for comment in self.comments:
            update = "PUT" if self.kind == "gitlab" else "PATCH"
            if (method, parts.path) == (update, f"{self.one_path}/{comment['id']}"):
                comment["body"] = sent["body"]
                return 200, {}
        return 404, {"message": "Not Found"}


HEADERS = {
    "github": ("Authorization", f"Bearer {TOKEN}"),
    "gitea": ("Authorization", f"token {TOKEN}"),
    "gitlab": ("PRIVATE-TOKEN", TOKEN),
}


@contextmanager
def serving(forge: Forge) -> Iterator[Forge]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            sent = json.loads(self.rfile.read(size)) if size else None
            name, value = HEADERS[forge.kind]
            if self.headers.get(name) == value:
                status, found = forge.answer(self.command, self.path, sent)
            else:
                status, found = 401, {"message": "Bad credentials"}
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = _any

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    forge.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield forge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(params=HEADERS)
def forge(request: pytest.FixtureRequest) -> Iterator[Forge]:
    with serving(Forge(request.param)) as found:
        yield found


def comment(
    forge: Forge, folder: Path, plan: str, **changed: str
) -> subprocess.CompletedProcess[str]:
    (folder / "plan.md").write_text(plan)
    environment = {
        "PATH": os.environ["PATH"],
        "API": forge.url,
        "TOKEN": TOKEN,
        "PROJECT": "17" if forge.kind == "gitlab" else "acme/state",
        "NUMBER": "5",
        "AUTHOR": "other-bot ci-bot",
        **changed,
    }
    return subprocess.run(
        ["sh", str(SCRIPT), forge.kind, "plan.md"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_comment_is_made_and_then_updated(forge: Forge, tmp_path: Path) -> None:
    forge.add("ann", "looks good")
    first = comment(forge, tmp_path, f'{MARKER}\n1 to launch: "ä" \\ $x\n')
    assert (first.returncode, first.stdout, first.stderr) == (0, "sticky-comment: created\n", "")
    second = comment(forge, tmp_path, f"{MARKER}\nnothing to do\n")
    assert (second.returncode, second.stdout, second.stderr) == (0, "sticky-comment: updated\n", "")
    assert forge.bodies() == ["looks good", f"{MARKER}\nnothing to do\n"]
    comment(forge, tmp_path, "<!-- gpuaas-plan:dev -->\nother\n")
    assert len(forge.bodies()) == 3


def test_a_comment_of_somebody_else_is_left_alone(forge: Forge, tmp_path: Path) -> None:
    """Attempted: a comment that begins as ours, to be filled in by CI and edited afterwards."""
    forge.add("mallory", f"{MARKER}\nnothing to do")
    assert comment(forge, tmp_path, f"{MARKER}\nremoves everything\n").returncode == 0
    assert forge.bodies() == [f"{MARKER}\nnothing to do", f"{MARKER}\nremoves everything\n"]


def test_it_is_found_behind_many_others(forge: Forge, tmp_path: Path) -> None:
    for number in range(250):
        forge.add("ann", f"remark {number}")
    forge.add("ci-bot", f"{MARKER}\nold")
    assert comment(forge, tmp_path, f"{MARKER}\nnew\n").stdout == "sticky-comment: updated\n"
    assert len(forge.bodies()) == 251


def test_a_forge_without_pages_is_asked_twice_at_most(forge: Forge, tmp_path: Path) -> None:
    forge.pages = False
    for number in range(150):
        forge.add("ann", f"remark {number}")
    assert comment(forge, tmp_path, f"{MARKER}\nnew\n").stdout == "sticky-comment: created\n"
    assert [method for method, _ in forge.seen] == ["GET", "GET", "POST"]


def test_a_token_that_may_not_comment_fails_and_is_not_shown(forge: Forge, tmp_path: Path) -> None:
    done = comment(forge, tmp_path, f"{MARKER}\nnew\n", TOKEN="wr0ng")
    assert done.returncode != 0
    assert "401" in done.stderr
    assert "wr0ng" not in done.stdout + done.stderr
    assert forge.bodies() == []


def test_the_checkout_brings_no_code_into_it(forge: Forge, tmp_path: Path) -> None:
    """Attempted: a module in the repo that Python would take for its own, next to the token."""
    (tmp_path / "json.py").write_text("raise SystemExit('the code of a pull request ran')")
    done = comment(forge, tmp_path, f"{MARKER}\nnew\n")
    assert (done.returncode, done.stderr) == (0, "")
    for path in (*RECIPES, SCRIPT):
        assert not re.search(r"python3 (?!-I )-", path.read_text())


def test_a_plan_that_lies_in_the_repo_is_not_posted() -> None:
    """Attempted: a committed plan.md, posted in our name when the step before could not begin."""
    steps = yaml.safe_load((CI / "github.yml").read_text())["jobs"]["plan"]["steps"]
    (posted,) = (step for step in steps if step.get("name") == "Comment")
    assert "steps.plan.outcome != 'skipped'" in posted["if"]


def test_what_is_no_plan_is_not_posted(forge: Forge, tmp_path: Path) -> None:
    forge.add("ann", "a remark")
    done = comment(forge, tmp_path, "error: no such commit\n")
    assert done.returncode == 1
    assert "the first line of the plan is no marker" in done.stderr
    assert len(forge.bodies()) == 1
