"""The studies of a storage."""

import optuna

from pbp_search.home import Home
from pbp_search.search.definition import DEFINITION
from pbp_search.search.storage import open_storage
from pbp_search.search.study import Study


def list_studies(home: Home, storage: str | None = None) -> list[Study]:
    """The studies of a storage that this program made, by name.

    Raises:
        StorageError: The storage cannot be opened.
    """
    opened = open_storage(home, storage, create=False)
    studies = [optuna.load_study(study_name=name, storage=opened) for name in optuna.get_all_study_names(opened)]
    ours = [Study(study, home, storage) for study in studies if DEFINITION in study.user_attrs]
    return sorted(ours, key=lambda study: study.name)
