"""The names on disk are a format: studies of earlier versions are read by them."""

from pathlib import Path

from automl_ft.specs.layout import (
    BEST,
    LAST,
    LOGITS,
    activations_folder,
    encoded_folder,
    log_file,
    rows_folder,
    trial_folder,
)

STUDY = Path("studies/demo")


def test_a_trials_files_keep_their_names():
    assert (BEST, LAST, LOGITS) == ("best.safetensors", "last.pt", "validation_logits.npy")


def test_a_studys_folders_keep_their_places():
    assert trial_folder(STUDY, 7) == Path("studies/demo/trials/7")
    assert rows_folder(STUDY) == Path("studies/demo/data/splits")
    assert encoded_folder(STUDY) == Path("studies/demo/data/encoded")
    assert activations_folder(STUDY) == Path("studies/demo/data/activations")
    assert log_file(STUDY, 2) == Path("studies/demo/logs/worker-2.log")
