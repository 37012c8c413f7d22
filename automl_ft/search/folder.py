"""Where do a study's files lie, and whose are they?

A study's folder holds `study.json` (which study it belongs to), `data/` (its own copy of the rows,
the encoded ones, and cached activations), `trials/NUMBER/` (checkpoints) and `logs/`. The mark in
`study.json` is the moment the study was created: two studies of one name in two databases do not
mix their files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from automl_ft.config.study import StudyConfig
from automl_ft.errors import StudyExistsError, UsageError
from automl_ft.files.atomic import write_json
from automl_ft.specs.layout import OWN, log_file, trial_folder
from automl_ft.storage.records import StudyRecord

__all__ = ["StudyFolder", "check_creatable", "study_folder"]


class StudyFolder:
    """The folder of one study."""

    def __init__(self, path: Path) -> None:
        """Store the path.

        Args:
            path: Absolute path; need not exist.
        """
        self.path = path

    def trial(self, number: int) -> Path:
        """Return the folder of a trial's checkpoints.

        Args:
            number: The trial.

        Returns:
            Its path; need not exist.
        """
        return trial_folder(self.path, number)

    def log(self, worker: int) -> Path:
        """Return the log file of a worker.

        Args:
            worker: Its index.

        Returns:
            Its path; need not exist.
        """
        return log_file(self.path, worker)

    def check_free(self, name: str, mark: str | None) -> None:
        """Refuse a folder that belongs to something else, or cannot be written.

        Args:
            name: The study, for the message.
            mark: Its mark; None for a study that is yet to be created.

        Raises:
            StudyExistsError: The folder belongs to another study, or holds files of somebody's
                that would be deleted with the study.
            UsageError: It is a file, or cannot be created or written.
        """
        check_creatable(self.path, f"The output folder of study `{name}`", "--output")
        owner = self._read_mark()
        if owner is None and mark is None and self.path.is_dir() and any(self.path.iterdir()):
            raise StudyExistsError(
                f"The output folder `{self.path}` of study `{name}` holds other files, which"
                " would be deleted with the study. Choose a new or empty folder with --output."
            )
        if owner is not None and owner != mark:
            raise StudyExistsError(
                f"The output folder `{self.path}` belongs to another study (see its study.json),"
                f" perhaps one of the same name in another database. Choose another folder for"
                f" study `{name}` with --output, or delete that folder if its study is gone."
            )

    def check_apart(self, name: str, database: Path | None) -> None:
        """Refuse a folder that is, or holds, what must outlive the study.

        Args:
            name: The study, for the message.
            database: The database's file; None where it is on a server.

        Raises:
            UsageError: It is or holds the database, the working directory or the home folder.
        """
        others = {"the working directory": Path.cwd(), "the home folder": Path.home()}
        if database is not None:
            others["the study database"] = database
        path = self.path.resolve()
        for what, other in others.items():
            # SQLite keeps files of its own beside the database, named after it.
            is_beside = what.endswith("database") and self.path.name.startswith(
                (other.name, f".{other.name}")
            )
            if other.resolve().is_relative_to(path) or (is_beside and path.parent == other.parent):
                raise UsageError(
                    f"The output folder `{self.path}` of study `{name}` is or would hold {what}"
                    f" (`{other}`), which must outlive the study. Choose a folder of its own with"
                    " --output, or another --name."
                )

    def claim(self, name: str, mark: str) -> None:
        """Create the folder and mark it.

        Args:
            name: The study.
            mark: Its mark.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._read_mark() != mark:
            write_json(self.path / "study.json", {"study": name, "created_at": mark})

    def drop_trial(self, number: int) -> None:
        """Delete a trial's checkpoints.

        Args:
            number: The trial.
        """
        shutil.rmtree(self.trial(number), ignore_errors=True)

    def delete(self, mark: str) -> bool:
        """Delete what is the study's in the folder, and the folder if nothing else is in it.

        Args:
            mark: The study's mark.

        Returns:
            Whether there was anything of the study to delete.
        """
        if self._read_mark() != mark:
            return False
        for name in OWN:
            part = self.path / name
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody put files of their own in it
            self.path.rmdir()
        return True

    def is_of(self, mark: str) -> bool:
        """Tell whether the folder belongs to a study.

        Args:
            mark: The study's mark.

        Returns:
            Whether it is there and bears the mark.
        """
        return self._read_mark() == mark

    def _read_mark(self) -> str | None:
        try:
            plain = json.loads((self.path / "study.json").read_text(encoding="utf-8"))
            return str(plain["created_at"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def study_folder(config: StudyConfig, record: StudyRecord | None = None) -> StudyFolder:
    """Find the folder of a study.

    Args:
        config: What the user asks for; its `output` counts first.
        record: The stored study, whose own `output` counts next.

    Returns:
        The folder; `studies/NAME` below the working directory where nothing else is said.
    """
    name = record.name if record is not None else config.name
    usual = str(Path("studies") / str(name))
    if record is None:
        return _folder(config.output or usual)
    stored = record.config.output
    wanted = _folder(config.output or stored or usual)
    # A project that was moved or copied as a whole: its own folder counts, not the one that the
    # stored path still names; the mark says that it is this study's.
    own = _folder(usual)
    is_own = config.output in (None, stored) and own.is_of(record.created_at.isoformat())
    return own if is_own else wanted


def _folder(path: str) -> StudyFolder:
    return StudyFolder(Path(path).expanduser().absolute())


def check_creatable(folder: Path, what: str, option: str) -> None:
    """Refuse a folder that cannot be created or written, without creating it.

    Args:
        folder: Absolute path.
        what: What it is, for the message.
        option: The option that names another one.

    Raises:
        UsageError: It or a folder above it is a file, or may not be written.
    """
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(
            f"{what} cannot be `{folder}`: `{there}` is no folder. Choose another with {option}."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"{what} cannot be `{folder}`: `{there}` may not be written. Choose another with"
            f" {option}."
        )
