"""Where settings come from, and which of several counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from reconciler.settings import Settings, settings_from


def test_what_is_given_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "gpuaas.toml"
    file.write_text('repo = "file"\nbranch = "file"\nenvironment = "file"\n')
    variables = {"GPUAAS_REPO": "variable", "gpuaas_branch": "variable"}
    found = settings_from({"repo": "given"}, variables, file)
    assert (found.repo, found.branch, found.environment) == ("given", "variable", "file")
    assert found.listen == Settings().listen


def test_text_becomes_what_a_setting_is() -> None:
    variables = {
        "GPUAAS_POLL_INTERVAL_S": "2.5",
        "GPUAAS_FILES_MAX": "7",
        "GPUAAS_ALLOW_REMOTE_READ": "true",
        "GPUAAS_STATE_DIR": "below/here",
        "GPUAAS_ALLOWED_HOSTS": '["one", "two"]',
    }
    found = settings_from({}, variables)
    assert found.poll_interval_s == 2.5
    assert found.files_max == 7
    assert found.allow_remote_read is True
    assert found.state_dir == Path("below/here")
    assert found.allowed_hosts == ("one", "two")


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert settings_from({}, {}, tmp_path / "gpuaas.toml") == Settings()


def test_variables_that_name_no_setting_count_nothing() -> None:
    assert settings_from({}, {"GPUAAS_JOIN_TOKEN": "x", "REPO": "y"}) == Settings()


@pytest.mark.parametrize(
    ("variables", "toml", "says"),
    [
        ({"GPUAAS_ALLOWED_HOSTS": "one,two"}, "", "allowed_hosts"),
        ({"GPUAAS_FILES_MAX": "many"}, "", "files_max"),
        ({"GPUAAS_POLL_INTERVAL_S": "0"}, "", "poll_interval_s"),
        ({}, 'enviroment = "dev"', "Extra inputs are not permitted"),
    ],
)
def test_what_is_no_setting_is_refused(
    tmp_path: Path, variables: dict[str, str], toml: str, says: str
) -> None:
    (tmp_path / "gpuaas.toml").write_text(toml)
    with pytest.raises(ValidationError, match=says):
        settings_from({}, variables, tmp_path / "gpuaas.toml")


def test_settings_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().repo = "other"  # type: ignore[misc]
