"""The command line: parses, calls, prints."""

from __future__ import annotations

import typer

from showtell import __version__

app = typer.Typer(name="showtell", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Show what you say, tell what you show."""
    if version:
        typer.echo(f"showtell {__version__}")
        raise typer.Exit


def main() -> None:
    app()
