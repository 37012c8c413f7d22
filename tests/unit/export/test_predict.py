from __future__ import annotations

import csv
import io
import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import dynamic_module_utils

from automl_ft.data.saved import load_saved_splits
from automl_ft.errors import DataError, ExportError, UsageError
from automl_ft.export.model import rebuild_model, save_model
from automl_ft.export.predict import PredictOptions, main, predict_file


@pytest.fixture(scope="module")
def exported(bert_study, make_job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    job = make_job(bert_study, folder)
    save_model(job, rebuild_model(job), folder / "model")
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,review\n1,the cat and the dog\n2,\n3,pear\n4,a saw of the axe and drill\n")
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_keep_their_order_and_columns(exported, rows, tmp_path):
    assert predict_file(exported, rows, to=tmp_path / "o.csv") == 4
    found = read(tmp_path / "o.csv")
    assert list(found[0]) == ["id", "review", "predicted_label", "score"]
    assert [row["id"] for row in found] == ["1", "2", "3", "4"]
    assert {row["predicted_label"] for row in found} <= {"animal", "fruit", "tool", ""}


def test_predictions_are_those_of_the_trial(exported, bert_study, tmp_path):
    splits = load_saved_splits(bert_study.folder / "data" / "splits")
    texts = [text for (text,) in splits.validation.texts]
    (tmp_path / "v.txt").write_text("\n".join(texts) + "\n")
    predict_file(exported / "model", tmp_path / "v.txt", to=tmp_path / "o.csv")
    logits = np.load(bert_study.folder / "trials" / "0" / "validation_logits.npy")
    labels = [splits.labels[best] for best in logits.argmax(axis=1)]
    odds = np.exp(logits.astype(np.float64))
    scores = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
    found = read(tmp_path / "o.csv")
    assert [row["predicted_label"] for row in found] == labels
    np.testing.assert_allclose([float(row["score"]) for row in found], scores, atol=1e-5)


def test_a_row_without_text_has_an_empty_label_and_score(exported, rows, tmp_path):
    predict_file(exported, rows, to=tmp_path / "o.csv")
    assert read(tmp_path / "o.csv")[1]["predicted_label"] == ""
    assert read(tmp_path / "o.csv")[1]["score"] == ""


def test_a_file_without_any_text_is_predicted_too(exported, tmp_path):
    (tmp_path / "r.csv").write_text("id,review\n1,\n")
    assert predict_file(exported, tmp_path / "r.csv", to=tmp_path / "o.parquet") == 1
    [row] = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert row["predicted_label"] is row["score"] is None


def test_the_batch_size_makes_no_difference(exported, rows, tmp_path):
    for size in (1, 64):
        options = PredictOptions(batch_size=size)
        predict_file(exported, rows, to=tmp_path / f"{size}.csv", options=options)
    one, many = read(tmp_path / "1.csv"), read(tmp_path / "64.csv")
    assert [row["predicted_label"] for row in one] == [row["predicted_label"] for row in many]


def test_probabilities_of_all_classes_add_up_to_one(exported, rows, tmp_path):
    options = PredictOptions(probabilities=True)
    predict_file(exported, rows, to=tmp_path / "o.jsonl", options=options)
    first, empty, *_ = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    shares = [first[f"probability/{label}"] for label in ("animal", "fruit", "tool")]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) == first["score"]
    assert empty["probability/fruit"] is None


def test_another_text_column_can_be_named(exported, tmp_path):
    (tmp_path / "r.csv").write_text("body\nthe cat\n")
    with pytest.raises(DataError, match="no column `review`"):
        predict_file(exported, tmp_path / "r.csv")
    options = PredictOptions(text=("body",))
    assert predict_file(exported, tmp_path / "r.csv", to=tmp_path / "o.csv", options=options) == 1


def test_the_number_of_text_columns_must_fit(exported, rows):
    with pytest.raises(UsageError, match=r"reads 1 text column\(s\), but 2 are given \(a, b\)"):
        predict_file(exported, rows, options=PredictOptions(text=("a", "b")))


def test_a_bad_target_is_met_before_the_model_is_loaded(exported, rows, tmp_path):
    with pytest.raises(DataError, match="another ending"):
        predict_file(exported, rows, to=tmp_path / "o.xls")


def test_a_file_that_is_there_is_replaced_on_request_only(exported, rows, tmp_path, capsys):
    target = tmp_path / "o.csv"
    target.write_text("kept")
    words = [str(exported), str(rows), "--to", str(target)]
    assert main(words) == 2
    assert "o.csv` exists. Give another one, or --force" in capsys.readouterr().err
    assert target.read_text() == "kept"
    assert main([*words, "--force"]) == 0
    assert len(read(target)) == 4


@pytest.mark.parametrize("name", ["rows.csv", "../{folder}/rows.csv", "link.csv"])
def test_the_rows_themselves_are_never_replaced(exported, rows, tmp_path, name):
    (tmp_path / "link.csv").symlink_to(rows)
    before = rows.read_text()
    with pytest.raises(ExportError, match="is the file of the rows itself"):
        predict_file(exported, rows, to=tmp_path / name.format(folder=tmp_path.name), force=True)
    assert rows.read_text() == before


def test_a_folder_is_no_target(exported, rows, tmp_path):
    (tmp_path / "o.csv").mkdir()
    with pytest.raises(ExportError, match="is no file"):
        predict_file(exported, rows, to=tmp_path / "o.csv", force=True)


def test_empty_lines_of_a_file_of_one_column_keep_their_place(exported, tmp_path):
    (tmp_path / "r.csv").write_text("review\nthe cat\n\npear\n")
    assert predict_file(exported, tmp_path / "r.csv", to=tmp_path / "o.csv") == 3
    assert [row["review"] for row in read(tmp_path / "o.csv")] == ["the cat", "", "pear"]


def test_a_file_without_rows_is_refused(exported, tmp_path):
    (tmp_path / "r.csv").write_text("review,id\n")
    with pytest.raises(DataError, match="has a header but no rows"):
        predict_file(exported, tmp_path / "r.csv")


@pytest.mark.parametrize(("name", "said"), [("", "holds no exported model"), ("no", "not exist")])
def test_a_folder_without_an_exported_model_is_refused(tmp_path, rows, name, said):
    with pytest.raises(ExportError, match=said):
        predict_file(tmp_path / name, rows)


def test_a_damaged_note_beside_the_weights_is_refused(tmp_path, rows):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "automl_ft.json").write_text('{"text": 1}')
    with pytest.raises(ExportError, match=r"automl_ft.json` cannot be read"):
        predict_file(tmp_path, rows)


def test_a_model_without_weights_is_refused(tmp_path, rows):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "automl_ft.json").write_text('{"text": ["review"]}')
    with pytest.raises(ExportError, match="cannot be loaded"):
        predict_file(tmp_path, rows)


CODE = """
from transformers import BertConfig, BertForSequenceClassification


class TinyConfig(BertConfig):
    model_type = "tiny-of-our-own"


class TinyModel(BertForSequenceClassification):
    config_class = TinyConfig
"""


@pytest.fixture
def own_code(exported, tmp_path, monkeypatch):
    """Make of an exported model one that needs code of its own."""
    folder = tmp_path / "own"
    shutil.copytree(exported / "model", folder)
    (folder / "tiny.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "TinyConfig", "AutoModelForSequenceClassification": "TinyModel"}
    config["auto_map"] = {auto: f"tiny.{name}" for auto, name in names.items()}
    config["model_type"] = "tiny-of-our-own"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


def test_a_model_with_code_of_its_own_is_refused_unless_it_is_trusted(own_code, rows, capsys):
    assert main([str(own_code), str(rows)]) == 2
    captured = capsys.readouterr()
    assert "if you trust it, give --trust-remote-code" in captured.err
    assert captured.out == ""


def test_a_trusted_model_with_code_of_its_own_predicts_the_same(own_code, exported, rows, capsys):
    assert main([str(own_code), str(rows), "--trust-remote-code"]) == 0
    own = capsys.readouterr().out
    assert main([str(exported), str(rows)]) == 0
    assert own == capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [({"batch_size": 0}, "--batch-size: `0`"), ({"device": "gpu"}, "--device: `gpu`")],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        PredictOptions(**options)


def test_the_command_prints_csv_and_says_how_many(exported, rows, capsys):
    assert main([str(exported), str(rows), "--text", "review", "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    assert len(list(csv.DictReader(io.StringIO(captured.out)))) == 4
    assert captured.err == "Predicted 4 rows.\n"


def test_the_command_names_the_file_that_it_wrote(exported, rows, tmp_path, capsys):
    assert main([str(exported), str(rows), "--to", str(tmp_path / "o.csv")]) == 0
    assert capsys.readouterr().err == f"Predicted 4 rows to {tmp_path / 'o.csv'}.\n"


def test_bad_input_ends_the_command_with_code_2(tmp_path, rows, capsys):
    assert main([str(tmp_path), str(rows)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
