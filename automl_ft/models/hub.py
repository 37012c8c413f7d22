"""How the files of a hub repository come into the local cache, and what may stand in the way."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from automl_ft.config.study import ModelConfig
from automl_ft.errors import ModelError, did_you_mean
from automl_ft.models.bundled import BUNDLED_MODELS

__all__ = ["download", "first_line"]

_FILES = ["*.json", "model.safetensors", "model-*.safetensors", "*.txt", "*.model", "*.jinja"]


def download(config: ModelConfig) -> Path:
    """Bring a snapshot of a hub repository into the local cache, without other weight formats.

    Args:
        config: The model as the user asks for it; no folder and no bundled name.

    Returns:
        The snapshot's folder, named after the commit.

    Raises:
        ModelError: The repository or revision does not exist, may not be read, or the hub cannot
            be reached and the cache does not hold it.
    """
    name = config.checkpoint
    shown = f"`{name}`" + (f" at revision `{config.revision}`" if config.revision else "")
    files = [*_FILES, "*.py"] if config.trust_remote_code else _FILES
    try:
        folder = snapshot_download(
            name, revision=config.revision, allow_patterns=files, ignore_patterns=["*/*"]
        )
    except RevisionNotFoundError as error:
        raise ModelError(
            f"The hub has `{name}`, but not its revision `{config.revision}`. Give a branch, tag or"
            " commit that it has, or none for the main branch."
        ) from error
    except GatedRepoError as error:
        raise ModelError(
            f"The model {shown} is gated: accept its terms on the hub, log in with `hf auth login`,"
            " and run again."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"The model {shown} is no folder, no bundled model, and not on the hub."
            f" {_hint(name)} Check the spelling; for a private one log in with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"The model {shown} is no folder and no bundled model, so it must come from the hub,"
            f" which cannot be reached ({first_line(error)}). {_hint(name)} Without a network,"
            f" download it elsewhere with `hf download {name} --local-dir FOLDER` and give that"
            " folder as the model."
        ) from error
    return Path(folder)


def _hint(name: str) -> str:
    hint = did_you_mean(name, BUNDLED_MODELS)
    return hint if hint.startswith("Did") else f"Bundled: {', '.join(BUNDLED_MODELS)}."


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop.

    Args:
        error: Any exception.

    Returns:
        The line; the name of the exception's class where it has no message.
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
