"""URIs of a training and of a detection, and their defaults."""

from __future__ import annotations

import json

import pytest

from copick_cryosam.errors import InputError
from copick_cryosam.io.sasi_job import DetectionJob, TrainingJob


def detection(output: str = "", masks: str = "") -> DetectionJob:
    return DetectionJob.create(config="c", tomogram="wbp@10", model="m", output=output, output_segmentation=masks)


@pytest.mark.parametrize(
    ("output", "masks", "picks", "segmentation"),
    [
        ("", "", "gold:sasi/1", "sasi:sasi/1"),
        ("me", "", "gold:me/1", "sasi:me/1"),
        ("me/2", "", "gold:me/2", "sasi:me/2"),
        ("me/2", "all", "gold:me/2", "all:me/2"),
        ("me/2", "all:you/3@10.0?multilabel=true", "gold:me/2", "all:you/3@10.0"),
    ],
)
def test_outputs(output: str, masks: str, picks: str, segmentation: str) -> None:
    job = detection(output, masks)
    assert str(job.set_of("gold")) == picks
    assert str(job.output_segmentation) == segmentation
    assert json.loads(json.dumps(job.identity())) == job.identity()


@pytest.mark.parametrize("output", ["gold:me/1", "me/1@10", "me/1/2", "m e/1", "me/x*", "me?x"])
def test_output_is_user_and_session(output: str) -> None:
    with pytest.raises(InputError, match="output"):
        detection(output)


def test_classes_are_the_objects_in_order() -> None:
    job = TrainingJob.create(
        config="c", tomogram="wbp", points=("b:x/1", "a:x/1", "b:y/2", "b:x/1"), model="m", pseudo=("a:cryosam/1",)
    )
    assert job.objects == ("b", "a")
    assert [str(uri) for uri in job.points] == ["b:x/1", "a:x/1", "b:y/2"]
    assert json.loads(json.dumps(job.identity())) == job.identity()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": ()}, "found none"),
        ({"pseudo": ("c:x/1",)}, "an object that has points"),
        ({"pseudo": ("a:x/1",)}, "in both"),
        ({"min_precision": 1.5}, "--min-precision"),
        ({"min_precision": float("nan")}, "--min-precision"),
    ],
)
def test_training_refused(change: dict[str, object], words: str) -> None:
    values = {"config": "c", "tomogram": "wbp", "points": ("a:x/1",), "model": "m", **change}
    with pytest.raises(InputError, match=words):
        TrainingJob.create(**values)  # type: ignore[arg-type]
