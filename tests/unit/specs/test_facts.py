"""What is known of a study's checkpoints, taken together."""

from __future__ import annotations

from dataclasses import replace

from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.facts import CheckpointFacts, DataFacts, StudyFacts


def checkpoint(name: str, num_layers: int) -> CheckpointFacts:
    return CheckpointFacts(
        checkpoint=name,
        revision="",
        weights_hash="",
        architecture="bert",
        num_layers=num_layers,
        num_parameters=1,
        max_length=8,
        num_truncated=0,
        num_tokens=1,
    )


def test_a_study_has_the_blocks_that_all_its_checkpoints_have() -> None:
    data = DataFacts(
        labels=("a", "b"), num_examples={}, class_counts={}, fingerprint="", split_fingerprints={}
    )
    facts = StudyFacts(
        data=data,
        checkpoints=(checkpoint("large", 24), checkpoint("small", 6)),
        device="cpu",
        versions={},
    )
    assert facts.num_layers == 6


def test_facts_of_older_versions_are_read() -> None:
    plain = to_plain(checkpoint("small", 6))
    newer = ("batching", "can_bf16", "fallbacks")
    old = {key: plain[key] for key in plain if key not in newer}
    assert from_plain(CheckpointFacts, old) == checkpoint("small", 6)


def test_fallbacks_are_stored_and_read() -> None:
    facts = replace(checkpoint("small", 6), fallbacks=("One.", "Two."), batching="bucketed")
    assert from_plain(CheckpointFacts, to_plain(facts)) == facts


def test_a_model_without_bf16_computes_in_fp32() -> None:
    able, unable = checkpoint("able", 2), replace(checkpoint("unable", 2), can_bf16=False)
    data = DataFacts(
        labels=("a", "b"), num_examples={}, class_counts={}, fingerprint="", split_fingerprints={}
    )
    facts = StudyFacts(
        data=data, checkpoints=(able, unable), device="cpu", versions={}, precision="bf16"
    )
    assert [facts.precision_of(model) for model in (able, unable)] == ["bf16", "fp32"]
    on_gpu = replace(facts, device="cuda:1 (NVIDIA H200)")
    assert [on_gpu.precision_of(model) for model in (able, unable)] == ["bf16", "tf32"]
    tf32 = replace(facts, precision="tf32")
    assert [tf32.precision_of(model) for model in (able, unable)] == ["tf32", "tf32"]
