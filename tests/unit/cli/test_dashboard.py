import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from automl_ft.cli import dashboard
from automl_ft.storage.studies import open_database

pytest.importorskip("optuna_dashboard", reason="needs the extra `dashboard`")


@pytest.fixture
def url(tmp_path, make):
    url = f"sqlite:///{tmp_path}/studies.db"
    database = open_database(url, create=True)
    database.create(make.make_record())
    database.close()
    return url


@pytest.fixture
def served(url):
    """Start a real dashboard on a free port; give its process and address."""
    words = ["dashboard", "--storage", url, "--port", "0", "--no-open"]
    process = subprocess.Popen(
        [sys.executable, "-m", "automl_ft.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and all they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_the_studies_are_served_until_ctrl_c(served):
    process, address = served
    with urllib.request.urlopen(f"{address}api/studies", timeout=20) as answer:
        studies = json.load(answer)["study_summaries"]
    assert [study["study_name"] for study in studies] == ["demo"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "has ended" in err
    assert "Traceback" not in err


def test_a_missing_database_is_refused(run):
    ran = run("dashboard", "--no-open")
    assert ran.code == 2
    assert "There are no studies" in ran.err


def test_without_the_extra_the_message_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    ran = run("dashboard")
    assert ran.code == 2
    assert "pip install automl-ft[dashboard]" in ran.err


def test_a_port_that_is_taken_is_refused(url, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run("dashboard", "--storage", url, "--port", port, "--no-open")
    assert ran.code == 2
    assert f"port {port}" in ran.err


def test_a_taken_default_port_gives_way_to_a_free_one(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(dashboard, "_PORT", taken.getsockname()[1])
        with dashboard._bind("127.0.0.1", None, lambda *_: []) as server:
            assert server.server_port != taken.getsockname()[1]


@pytest.mark.parametrize(
    ("platform", "display", "expected"),
    [("linux", "", False), ("linux", ":0", True), ("darwin", "", True)],
)
def test_a_browser_is_opened_only_where_there_is_a_screen(monkeypatch, platform, display, expected):
    monkeypatch.setattr(dashboard.sys, "platform", platform)
    monkeypatch.setattr(os, "environ", {"DISPLAY": display})
    assert dashboard._has_screen() is expected


def test_an_address_of_version_6_is_put_in_brackets():
    assert (dashboard._in_url("::1"), dashboard._in_url("localhost")) == ("[::1]", "localhost")
