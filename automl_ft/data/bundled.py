"""The data set that is always at hand: which library is a docstring from?

`docstrings` holds first sentences of docstrings of libraries that automl-ft itself installs, read
from their installed source without importing them; the label is the library. Its splits are
fixed: a row's split depends on its text alone, not on a seed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import datasets

from automl_ft.data.fingerprint import text_key
from automl_ft.data.readers import RawTable
from automl_ft.errors import DataError
from automl_ft.files.atomic import write_text

__all__ = ["BUNDLED", "cache_folder", "read_bundled"]

BUNDLED = ("docstrings",)
"""Names that `data.path` accepts besides files, folders and hub ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Library:
    """One class of the data set."""

    package: str
    distribution: str
    names: tuple[str, ...]


# Every one of them is a dependency of automl-ft, directly or (networkx, sympy) through torch.
# torch and transformers themselves are left out: there is too much of them to read quickly.
_LIBRARIES = (
    _Library(package="huggingface_hub", distribution="huggingface_hub", names=("hugging",)),
    _Library(package="networkx", distribution="networkx", names=("networkx", "nx.")),
    _Library(package="numpy", distribution="numpy", names=("numpy", "np.")),
    _Library(package="optuna", distribution="optuna", names=("optuna",)),
    _Library(package="pandas", distribution="pandas", names=("pandas", "pd.")),
    _Library(package="rich", distribution="rich", names=("rich",)),
    _Library(package="scipy", distribution="scipy", names=("scipy",)),
    _Library(package="sklearn", distribution="scikit-learn", names=("sklearn", "scikit")),
    _Library(package="sqlalchemy", distribution="sqlalchemy", names=("sqlalchemy",)),
    _Library(package="sympy", distribution="sympy", names=("sympy",)),
)
_PER_LIBRARY = 90  # 900 rows: a search on two CPU cores gets somewhere in four minutes
_PER_FILE = 4  # no file gives a library its vocabulary
_WORDS = range(6, 41)
_SHARES: Mapping[str, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
# Tests, and code of others that a library carries along, which would blur the classes.
_SKIPPED = re.compile(r"tests?|testing|conftest|_?vendor(ed)?|externals?|_lib|.*compat.*")
_RECIPE = 2  # part of the cache key: raise it when the rows change


def read_bundled(name: str) -> dict[str, RawTable]:
    """Read a bundled data set, from the user's cache where it was built before.

    Args:
        name: One of `BUNDLED`.

    Returns:
        Tables with the columns `text` and `label`, by split.

    Raises:
        DataError: Too few of the libraries are installed with their source.
    """
    rows = _cached_rows(cache_folder() / f"{name}-{_versions_key()}.json")
    tables = {}
    for split in _SHARES:
        mine = [
            {"text": row["text"], "label": row["label"]} for row in rows if row["split"] == split
        ]
        tables[split] = RawTable(name=f"{name}:{split}", dataset=datasets.Dataset.from_list(mine))
    return tables


def cache_folder() -> Path:
    """Return the user's cache folder, which need not exist.

    Returns:
        `AUTOML_FT_CACHE` where it is set, else `automl-ft` in `XDG_CACHE_HOME` or `~/.cache`.
    """
    given = os.environ.get("AUTOML_FT_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "automl-ft"


def _cached_rows(path: Path) -> list[dict[str, str]]:
    try:
        rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        rows = _build()
        # The cache saves seconds, no more: a home that cannot be written is no error.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(rows, ensure_ascii=False, indent=0))
    return rows


def _versions_key() -> str:
    versions = [str(_RECIPE)]
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{library.package}=={metadata.version(library.distribution)}")
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]


def _build() -> list[dict[str, str]]:
    """Read the rows of all libraries; a text that two of them share is left out."""
    by_library = {library.package: _sentences(library) for library in _LIBRARIES}
    owners = Counter(key for texts in by_library.values() for key in texts)
    rows: list[dict[str, str]] = []
    for package, texts in by_library.items():
        own = [text for key, text in texts.items() if owners[key] == 1][:_PER_LIBRARY]
        rows.extend(_split_rows(package, own))
    if len({row["label"] for row in rows}) < 2:
        raise DataError(
            "The bundled data set `docstrings` cannot be built: fewer than two of the libraries it"
            f" reads ({', '.join(library.package for library in _LIBRARIES)}) are installed with"
            " their source. Give data of your own in `data.path`."
        )
    return rows


def _split_rows(package: str, texts: list[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a library in the order of their hashes, the first ones for training."""
    end, bounds = 0.0, {}
    for split, share in _SHARES.items():
        end += share
        bounds[split] = round(end * len(texts))
    for number, text in enumerate(texts):
        split = next(name for name, bound in bounds.items() if number < bound)
        yield {"text": text, "label": package, "split": split}


def _sentences(library: _Library) -> dict[bytes, str]:
    """Return first sentences by text key, in hash order; more than are needed, not all."""
    found: dict[bytes, str] = {}
    for path in _source_files(library.package):
        taken = 0
        for sentence in _file_sentences(path, library.names):
            key = text_key((sentence,))
            taken += key not in found
            found.setdefault(key, sentence)
            if taken == _PER_FILE:
                break
        # Texts that other libraries share will go: read some more than are wanted.
        if len(found) >= _PER_LIBRARY * 1.2:
            break
    return dict(sorted(found.items()))


def _source_files(package: str) -> list[Path]:
    """Return the package's source files in the order of their hashed names; not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    wanted = [
        name for name in names if not any(map(_SKIPPED.fullmatch, name.with_suffix("").parts))
    ]
    wanted.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    return [root / name for name in wanted]


def _file_sentences(path: Path, forbidden: tuple[str, ...]) -> Iterator[str]:
    """Yield the file's usable first sentences in hash order."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # templates, broken encodings, dangling links
        return
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    sentences = {_first_sentence(docstring) for docstring in docstrings if docstring}
    for sentence in sorted(sentences, key=lambda text: text_key((text,))):
        lower = sentence.lower()
        if len(sentence.split()) in _WORDS and not any(name in lower for name in forbidden):
            yield sentence


def _first_sentence(docstring: str) -> str:
    """Return the first sentence of the first paragraph on one line."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]
