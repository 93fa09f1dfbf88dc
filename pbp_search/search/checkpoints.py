"""The checkpoints of a study's milestones, in Optuna's artifact store: a folder that machines may share.

What is kept: the checkpoints of the front, and of every milestone that may still be continued. One that is not on the
front is never needed again when its continuations, by every step that the space and the limit of parameters let it
take, have finished, whatever came of them; or when its last generation was thrown away. Its checkpoint is removed when
that is known and its epochs are in MLflow: by the worker that recorded it, or at the end of a run. Its figures stay.
"""

import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import FrozenTrial

from pbp_search.errors import CheckpointError
from pbp_search.front import Front
from pbp_search.home import StudyFolder
from pbp_search.search.rungs import Rung, continued_by
from pbp_search.training import Checkpoint, Step


class Checkpoints:
    """The checkpoints of one study.

    Args:
        folder: The study's.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._store = FileSystemArtifactStore(folder.milestones)

    def save(self, trial: FrozenTrial, checkpoint: Checkpoint, storage: optuna.storages.BaseStorage) -> str:
        """Store a trial's checkpoint.

        Returns:
            Its name in the store. It counts once the trial's rung tells of it.
        """
        # In a folder of its own: what else is written beside it, a worker that is killed leaves behind.
        with TemporaryDirectory(prefix=self._prefix(trial), dir=self._folder.incoming) as folder:
            file = Path(folder) / f"trial-{trial.number:05d}.safetensors"
            checkpoint.save(file)
            return upload_artifact(
                artifact_store=self._store, file_path=str(file), study_or_trial=trial, storage=storage
            )

    def _prefix(self, trial: FrozenTrial) -> str:
        return f"trial-{trial.number:05d}-"

    def discard(self, trial: FrozenTrial, storage: optuna.storages.BaseStorage) -> None:
        """Remove what earlier workers of a trial left when they died."""
        for folder in self._folder.incoming.glob(f"{self._prefix(trial)}*"):
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that was only silent, and wakes up
        for artifact in get_all_artifact_meta(trial, storage=storage):
            self.remove(artifact.artifact_id)

    def remove(self, name: str) -> None:
        """Remove a checkpoint by its name in the store."""
        self._file(name).unlink(missing_ok=True)

    def load(self, rung: Rung) -> Checkpoint:
        """Read a rung's checkpoint.

        Raises:
            CheckpointError: It has been removed, is missing or is damaged.
        """
        file = self.file(rung)
        if not file.exists():
            raise CheckpointError(
                f"There is no checkpoint of trial {rung.trial} in {self._folder.milestones}: kept are those of the "
                "front, and of milestones that may still be continued."
            )
        return Checkpoint.load(file)

    def file(self, rung: Rung) -> Path:
        """Where a rung's checkpoint is, or was."""
        return self._file(rung.checkpoint)

    def _file(self, name: str) -> Path:
        return self._folder.milestones / Path(name).name  # never outside, whatever the storage says

    def tidy(
        self,
        trials: Sequence[FrozenTrial],
        rungs: Sequence[Rung],
        front: Front[Rung],
        steps: Callable[[Rung], Iterable[Step]],
        recorded: Container[int],
    ) -> None:
        """Remove the checkpoints that are never needed again. Those of planned chains stay until who planned them
        removes them.

        Args:
            trials: All of the study's trials.
            rungs: Those of them that left a milestone.
            front: Their front.
            steps: What may lead on from a rung.
            recorded: The trials whose epochs are in MLflow. Those of others are in their checkpoints only.
        """
        kept = {point.payload.trial for point in front}
        # Not while it is waiting or being trained, which may be done again.
        continued = continued_by(trial for trial in trials if trial.state.is_finished())
        there = {file.name for file in self._folder.milestones.iterdir()}
        for rung in rungs:
            if (
                rung.checkpoint not in there
                or rung.trial in kept
                or rung.trial not in recorded
                or rung.plan is not None
            ):
                continue
            if not rung.milestone.accepted or all((rung.trial, step) in continued for step in steps(rung)):
                self.remove(rung.checkpoint)
