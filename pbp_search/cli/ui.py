"""``pbp-search ui``: the MLflow UI on the studies' record."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import click

from pbp_search.cli import options

_HOST = "127.0.0.1"


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@options.home
@options.tracking_uri
def ui(port: int, home: Path, tracking_uri: str | None) -> int:
    """Open the MLflow UI on this machine only (loopback). Ctrl-C ends it."""
    from pbp_search.databases import Database
    from pbp_search.errors import InputError, StorageError
    from pbp_search.home import Home
    from pbp_search.tracking import check_store, is_server

    place = Home.at(home)
    if tracking_uri is None and not (place.folder / "mlflow.db").is_file():
        raise StorageError(f"There is no tracking store in {place.folder}: name the folder of the studies with --home.")
    if tracking_uri is not None and is_server(tracking_uri):
        raise InputError("An MLflow server shows its own UI: open its address in a browser.")
    check_store(place, tracking_uri)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise InputError(
                f"The port {port} cannot be used ({error.strerror}): choose another with --port."
            ) from None
    environment = {
        **os.environ,
        # One process instead of a dozen: the job runner is not needed to look at runs.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",  # of the server's own libraries: nothing that a user could do about them
    }
    # The URI may hold a password: the environment is not shown in process lists.
    store = Database.parse("tracking store", tracking_uri or place.tracking_uri)
    environment["MLFLOW_BACKEND_STORE_URI"] = store.secret_url
    command = [sys.executable, "-m", "mlflow", "ui", "--host", _HOST, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    command += ["--default-artifact-root", place.artifacts.as_uri()]
    click.echo("MLflow is starting ...", err=True)
    server = subprocess.Popen(command, env=environment)
    try:
        while server.poll() is None and not _answers(port):
            time.sleep(0.2)
        if server.poll() is None:
            # MLflow's first page is about language models: this one lists the studies.
            click.echo(f"MLflow: http://{_HOST}:{port}/#/experiments?workflowType=machine_learning (Ctrl-C ends it)")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((_HOST, port)) == 0
