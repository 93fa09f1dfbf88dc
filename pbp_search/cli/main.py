"""The command group, and what becomes of errors."""

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import click

from pbp_search.cli.compare import compare
from pbp_search.cli.export import export
from pbp_search.cli.front import front, studies
from pbp_search.cli.run import run
from pbp_search.cli.space import space
from pbp_search.cli.ui import ui
from pbp_search.errors import InputError, PbpSearchError, said


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pbp_search")
def cli() -> None:
    """How small can a PyTorch network get at the accuracy you need, and do dendrites help?"""


cli.add_command(run)
cli.add_command(space)
cli.add_command(front)
cli.add_command(studies)
cli.add_command(compare)
cli.add_command(export)
cli.add_command(ui)


ENDING_SECONDS = 30
"""How long a program may take to end in good order after SIGTERM. Its workers notice its end, however it comes."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM. Not a SystemExit: a user's own code that ends the program is not a request to end it."""


def main(command: click.Command = cli) -> NoReturn:
    """Run a command. Bad input is one sentence and exit code 2, a failure while running exit code 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _send_again
    sys.exit(_run(command))


def _run(command: click.Command = cli) -> int:
    try:
        result = command.main(standalone_mode=False)
    except click.exceptions.Abort as error:
        return 143 if isinstance(error.__cause__, _Terminated) else 130
    except click.ClickException as error:
        error.show()
        return 2
    except InputError as error:
        return _fail(error, 2)
    except PbpSearchError as error:
        return _fail(error, 1)
    except OSError as error:
        return _fail(error, 1)
    except Exception as error:
        if type(getattr(error, "orig", None)).__name__ == "DatabaseError":
            help_ = "restore it from a backup, or begin anew with another --home"
            return _fail(InputError(f"A store is damaged ({_first_line(error)}): {help_}."), 2)
        if _of_a_store(error):
            return _fail(PbpSearchError(f"A store failed: {_first_line(error)}. The same command goes on."), 1)
        raise
    return result if isinstance(result, int) else 0


def _of_a_store(error: Exception) -> bool:
    """Whether Optuna's or MLflow's store raised an error: busy for too long, out of space, gone."""
    # By their names: the libraries are not loaded for commands that fail early.
    return any(
        kind.__module__.split(".")[0] in ("sqlalchemy", "mlflow") or kind.__name__ == "StorageInternalError"
        for kind in type(error).__mro__
    )


def _first_line(error: Exception) -> str:
    """What went wrong, without statements or addresses that may hold secrets."""
    origin = getattr(error.__cause__ or error, "orig", None)
    return f"{type(origin or error).__name__}: {str(origin).splitlines()[0]}" if origin else type(error).__name__


def _fail(error: Exception, code: int) -> int:
    click.echo(f"Error: {said(error) if isinstance(error, PbpSearchError) else ' '.join(str(error).split())}", err=True)
    return code


def _send_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """A signal that arrives while Python collects garbage is an error there, which nobody gets: send it again."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if isinstance(unraisable.exc_value, _Terminated) else signal.SIGINT
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # here it would be lost once more


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # The signal may have come where a library holds a lock, or catches everything: then nothing else would end us.
    timer = threading.Timer(ENDING_SECONDS, _end_now)
    timer.daemon = True
    timer.start()
    raise _Terminated


def _end_now() -> None:
    os.write(2, b"The program did not end by itself: it is stopped. What it was at, the next run does again.\n")
    os._exit(143)
