"""Every error this package raises on purpose. Each message is a sentence: what is wrong, and what to do."""

import re


def said(error: BaseException, length: int = 1000) -> str:
    """What an error says, on one line that any store and terminal takes: a user's own code may say anything."""
    try:
        text = str(error)
    except Exception:  # an error that cannot even say what it is
        text = ""
    text = " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())
    # MLflow and others tell URLs with all that is secret in them: a password, or a server's token in place of the user.
    text = re.sub(r"://([^:/\s@]*):[^\s@]*@", r"://\1:***@", text)
    text = re.sub(r"(https?://)[^:/\s@]+@", r"\1***@", text)
    if not isinstance(error, PbpSearchError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= length else f"{text[: length - 3]}..."


class PbpSearchError(Exception):
    """Base of all errors of this package."""


class InputError(PbpSearchError):
    """Something the user gave cannot be used. Command lines exit with code 2."""


class SettingsError(InputError, ValueError):
    """A setting has a value that is not allowed."""


class TaskError(InputError):
    """A task is incomplete, or its data, model, loss or score do not fit together."""


class UnsupportedModuleError(InputError):
    """A network has a module, or uses one in a way, that dendrites cannot be attached to."""


class CheckpointError(InputError):
    """A milestone file is missing, damaged or of another format."""


class StorageError(InputError):
    """A study's storage or tracking store cannot be opened, or belongs to something else."""


class StudyError(InputError):
    """A study is missing, or was made with other settings."""


class NothingFitsError(InputError):
    """No member of a front satisfies the limits."""


class TrainingError(PbpSearchError):
    """Training cannot go on, for example because the loss is NaN. The rung fails, the study goes on."""


class ExportError(PbpSearchError):
    """An exported file does not compute what the network computes."""
