"""Where do a study's files lie, and whose are they?

A study's folder holds `study.json` (which study it belongs to), `data/` (its own copy of the rows,
and the encoded ones), `trials/NUMBER/` (checkpoints) and `logs/`. The mark in `study.json` is the
moment the study was created: two studies of one name in two databases do not mix their files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from automl_ft.config.study import StudyConfig
from automl_ft.errors import StudyExistsError
from automl_ft.files.atomic import write_json
from automl_ft.storage.records import StudyRecord

__all__ = ["StudyFolder", "study_folder"]


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
        return self.path / "trials" / str(number)

    def log(self, worker: int) -> Path:
        """Return the log file of a worker.

        Args:
            worker: Its index.

        Returns:
            Its path; need not exist.
        """
        return self.path / "logs" / f"worker-{worker}.log"

    def check_free(self, name: str, mark: str | None) -> None:
        """Refuse a folder that belongs to something else.

        Args:
            name: The study, for the message.
            mark: Its mark; None for a study that is yet to be created.

        Raises:
            StudyExistsError: The folder belongs to another study, or is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise StudyExistsError(
                f"The output folder `{self.path}` of study `{name}` is a file. Choose another"
                " folder with --output."
            )
        owner = self._read_mark()
        if owner is not None and owner != mark:
            raise StudyExistsError(
                f"The output folder `{self.path}` belongs to another study (see its study.json),"
                f" perhaps one of the same name in another database. Choose another folder for"
                f" study `{name}` with --output, or delete that folder if its study is gone."
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
        """Delete the folder with all that is in it, if it is this study's.

        Args:
            mark: The study's mark.

        Returns:
            Whether there was anything of the study to delete.
        """
        if self._read_mark() != mark:
            return False
        shutil.rmtree(self.path)
        return True

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
    stored = record.config.output if record is not None else None
    name = record.name if record is not None else config.name
    path = config.output or stored or str(Path("studies") / str(name))
    return StudyFolder(Path(path).expanduser().absolute())
