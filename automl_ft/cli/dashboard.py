"""`automl-ft dashboard`: Optuna Dashboard on the study database, on localhost."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click

from automl_ft.cli.options import storage_option
from automl_ft.errors import UsageError

__all__ = ["command"]

_PORT = 8080
_HELP = """Open the studies in Optuna Dashboard.

Serves on this machine only, until Ctrl-C; a running search can be watched and a trial ended. Needs
the extra: pip install automl-ft[dashboard]"""

_EPILOG = """\b
Examples:
  automl-ft dashboard
  automl-ft dashboard --port 9000 --no-open
  automl-ft dashboard --storage postgresql://me@db.example/studies"""


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each request, so that a slow plot does not hold up the page."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """No line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@click.command(name="dashboard", help=_HELP, epilog=_EPILOG)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help=f"Port.  [default: {_PORT}, or a free one]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@storage_option
def command(port: int | None, host: str, no_open: bool, storage: str | None) -> None:
    """Run the command."""
    app, location = _application(storage)
    with _bind(host, port, app) as server:
        url = f"http://{_in_url(host)}:{server.server_port}/"
        click.echo(f"Optuna Dashboard on {location}", err=True)
        click.echo(url)
        click.echo("Ctrl-C ends it.", err=True)
        sys.stdout.flush()
        if not no_open and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("\nThe dashboard has ended; the studies are where they were.", err=True)


def _application(storage: str | None) -> tuple[Callable[..., Any], str]:
    """Build the dashboard on a database; return it with the database's name."""
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UsageError(
            "`automl-ft dashboard` needs optuna-dashboard, which is not installed. Install it"
            " with: pip install automl-ft[dashboard]"
        ) from None
    from automl_ft.storage.database import open_storage

    database = open_storage(storage, create=False)
    return wsgi(database.rdb), database.address.shown


def _bind(host: str, port: int | None, app: Callable[..., Any]) -> WSGIServer:
    """Listen on the port that was asked for; by default on a free one if ours is taken."""
    for candidate in (_PORT, 0) if port is None else (port,):
        try:
            return make_server(host, candidate, app, _Server, _QuietHandler)
        except OSError as error:
            reason = error.strerror or str(error)
    raise UsageError(
        f"Cannot listen on {host} port {_PORT if port is None else port}: {reason}. Choose another"
        " --port or --host."
    )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _has_screen() -> bool:
    """Tell whether a browser would open a window: in a bare terminal it would take it over."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
