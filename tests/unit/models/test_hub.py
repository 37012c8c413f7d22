"""Hub repositories from the cache, and what is said where the hub refuses or cannot be reached."""

from __future__ import annotations

import shutil

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from automl_ft.config.study import ModelConfig
from automl_ft.errors import ModelError
from automl_ft.models import hub
from automl_ft.models.load import load_tokenizer, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def refusing(error: type[HfHubHTTPError]):
    """Return a stand-in for the download that is answered with an error."""

    def refuse(*args: object, **kwargs: object) -> str:
        response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub/x"))
        raise error("404 from the hub.\nmore", response=response)

    return refuse


def test_a_cached_snapshot_needs_no_network_and_tells_its_commit(build, offline_cache):
    repository = offline_cache / "models--org--tiny"
    shutil.copytree(build("bert"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    config = ModelConfig(checkpoint="org/tiny")
    resolved = resolve(config)
    assert resolved.revision == COMMIT
    assert resolved.checkpoint == "org/tiny"
    assert load_tokenizer(resolved, config).pad_token == "<pad>"


def test_without_network_the_way_to_a_local_folder_is_told(offline_cache):
    with pytest.raises(ModelError) as caught:
        resolve(ModelConfig(checkpoint="org/tiny"))
    message = str(caught.value)
    assert "`org/tiny`" in message
    assert "`hf download org/tiny --local-dir FOLDER`" in message
    assert "cannot be reached" in message


def test_a_misspelt_bundled_name_gets_a_suggestion(offline_cache):
    with pytest.raises(ModelError, match=r"`minilm-6`.*Did you mean `minilm-l6`\?"):
        resolve(ModelConfig(checkpoint="minilm-6"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, r"`org/tiny` at revision `v9` .*not on the hub.*spelling"),
        (RevisionNotFoundError, r"has `org/tiny`, but not its revision `v9`"),
        (GatedRepoError, r"is gated.*hf auth login"),
        (HfHubHTTPError, r"cannot be reached \(404 from the hub\)"),
    ],
)
def test_each_refusal_of_the_hub_has_its_remedy(monkeypatch, error, message):
    monkeypatch.setattr(hub, "snapshot_download", refusing(error))
    with pytest.raises(ModelError, match=message):
        hub.download(ModelConfig(checkpoint="org/tiny", revision="v9"))


def test_what_cannot_be_a_hub_id_is_refused(offline_cache):
    with pytest.raises(ModelError, match="`no such model` is no folder, no bundled model"):
        resolve(ModelConfig(checkpoint="no such model"))


@pytest.mark.parametrize(("trusted", "asks_for_code"), [(True, True), (False, False)])
def test_only_what_is_read_is_downloaded(monkeypatch, tmp_path, trusted, asks_for_code):
    asked: dict[str, object] = {}

    def remember(name: str, **kwargs: object) -> str:
        asked.update(kwargs, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", remember)
    config = ModelConfig(checkpoint="org/tiny", revision="v1", trust_remote_code=trusted)
    assert hub.download(config) == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/tiny", "v1")
    assert ("*.py" in asked["allow_patterns"]) is asks_for_code
    assert not any(pattern.endswith(".bin") for pattern in asked["allow_patterns"])


def test_an_error_without_message_is_named_by_its_class():
    assert hub.first_line(OSError()) == "OSError"
    assert hub.first_line(OSError("one.\ntwo")) == "one"
