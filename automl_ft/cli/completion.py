"""`automl-ft completion`: the script that a shell needs to complete our commands."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

_SHELLS = ("bash", "zsh", "fish")
_HELP = """Print the script for shell completion.

Completes commands, options, files, and the names of studies and search spaces. Without SHELL the
script is for the shell in the environment variable SHELL."""

_EPILOG = """\b
Examples:
  eval "$(automl-ft completion bash)"        in ~/.bashrc
  eval "$(automl-ft completion zsh)"         in ~/.zshrc
  automl-ft completion fish > ~/.config/fish/completions/automl-ft.fish"""


@click.command(name="completion", help=_HELP, epilog=_EPILOG)
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
def command(shell: str | None) -> None:
    """Run the command."""
    from automl_ft.cli.main import PROGRAM, cli

    shell = shell or _current_shell()
    kind = get_completion_class(shell)
    assert kind is not None  # click knows the shells above
    click.echo(kind(cli, {}, PROGRAM, "_AUTOML_FT_COMPLETE").source())


def _current_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        raise click.UsageError(
            f"The shell `{name or 'unknown'}` has no completion; accepted: {', '.join(_SHELLS)}."
        )
    return name
