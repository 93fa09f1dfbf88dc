"""The command that goes on with what a command was stopped in."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pbp_search.databases import holds_secret


def continuing_command(arguments: Sequence[str]) -> str:
    """The command line of a program as it was given, so that it goes on with its study.

    URLs with secrets are left out, with a word on that.

    Args:
        arguments: ``sys.argv``.
    """
    words = [_without_secret(word) for word in arguments[1:] if word != "--fresh"]
    command = shlex.join([*_program(arguments[0]), *words])
    hidden = any(map(holds_secret, arguments[1:]))
    return f"{command}\nURL stands for the one that was given: it holds a password." if hidden else command


def _program(name: str) -> list[str]:
    if Path(name).name == "__main__.py":
        return [sys.executable, "-m", Path(name).parent.name]
    if name.endswith(".py"):
        return [sys.executable, name]
    short = Path(name).name
    return [short if shutil.which(short) == name else name]


def _without_secret(word: str) -> str:
    if not holds_secret(word):
        return word
    option, equals, _ = word.partition("=") if word.startswith("--") else ("", "", "")
    return f"{option}{equals}URL"
