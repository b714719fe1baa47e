"""Every command says how it is used and what its exit code means."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from node_agent.main import main as agent
from reconciler.cli.main import gpuaas


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from commands(found, f"{name} {child}")


ALL = dict([*commands(gpuaas, "gpuaas"), *commands(agent, "gpuaas-agent")])


@pytest.mark.parametrize("name", [name for name in ALL if isinstance(ALL[name], click.Group)])
def test_a_group_says_in_whole_words_what_its_commands_do(name: str) -> None:
    text = ALL[name].get_help(click.Context(ALL[name], info_name=name, terminal_width=80))
    listed = text.partition("\nCommands:\n")[2].partition("Exit codes:")[0]
    assert [line for line in listed.splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize("name", ALL)
def test_help_has_examples_and_exit_codes(name: str) -> None:
    text = ALL[name].get_help(click.Context(ALL[name], info_name=name))
    assert "Examples:" in text
    assert "Exit codes:" in text
