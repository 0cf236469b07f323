"""An example at the end of every command's help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import typer
from typer.models import CommandInfo


def show_examples(app: typer.Typer, program: str, examples: Mapping[str, str]) -> None:
    """Let each command of `app` end its help with how it is called.

    Args:
        app: the commands.
        program: the name that they are called by.
        examples: arguments by the command's words: ``{"jobs list": "--state failed"}``.
    """
    for words, command in commands(app):
        if words in examples:
            command.epilog = f"Example: {program} {words} {examples[words]}".rstrip()


def commands(app: typer.Typer) -> Iterator[tuple[str, CommandInfo]]:
    """Each command with its words, as ``jobs list``."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__.replace("_", "-"), command
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for words, command in commands(group.typer_instance):
            yield f"{group.name} {words}", command
