"""URIs are parsed strictly, and the defaults are those of the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from copick_cryosam.errors import InputError
from copick_cryosam.io.job import Job, PicksUri


def make(**given: Any) -> Job:
    return Job.create(**{"config": "c.json", "tomogram": "wbp@10.0", "seeds": "ribosome:curator/1", **given})


def test_defaults_follow_the_seeds_and_the_tomogram() -> None:
    job = make()
    assert str(job.output) == "ribosome:cryosam/1"
    assert str(job.output_segmentation) == "ribosome:cryosam/1"
    assert job.tomogram.voxel_spacing == 10.0
    assert make(points_only=True).output_segmentation is None


def test_segmentation_follows_the_output_picks() -> None:
    job = make(output="ribosome:me/7")
    assert str(job.output_segmentation) == "ribosome:me/7"
    assert str(make(output_segmentation="ribosome:x/2@10.0?instance=true").output_segmentation) == "ribosome:x/2@10.0"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tomogram": "wbp@ten"}, "tomogram URI"),
        ({"tomogram": "wbp@-10"}, "tomogram URI"),
        ({"tomogram": "wbp@nan"}, "tomogram URI"),
        ({"tomogram": "w*"}, "tomogram URI"),
        ({"tomogram": ""}, "tomogram URI"),
        ({"seeds": "ribo*:curator/1"}, "input URI"),
        ({"seeds": "re:ribosome:curator/1"}, "input URI"),
        ({"seeds": "a:b:c"}, "input URI"),
        ({"seeds": "ribosome:/1"}, "input URI"),
        ({"seeds": ":curator/1"}, "input URI"),
        ({"seeds": "ribosome:curator/1?x=1"}, "input URI"),
        ({"output": "ribosome:cryo*/1"}, "output URI"),
        ({"output": "ribosome:my_tool/1"}, "output URI"),
        ({"output": "ribosome:a/b/c"}, "output URI"),
        ({"output": "ribosome:{user}/1"}, "output URI"),
        ({"output": "ribosome:-x/1"}, "output URI"),
        ({"output": "ribosome:curator/1"}, "output URI"),
        ({"negatives": "ribosome:cryosam/1"}, "output URI"),
        ({"negatives": "*"}, "negatives URI"),
        ({"output_segmentation": "ribosome:cryosam/1@20.0"}, "output segmentation URI"),
        ({"output_segmentation": "ribosome:cryosam/1?multilabel=true"}, "output segmentation URI"),
        ({"output_segmentation": "ribosome:cryosam/1", "points_only": True}, "output segmentation URI"),
        ({"roi": "a:b:c@10"}, "ROI URI"),
    ],
)
def test_malformed_uri_is_refused_with_its_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field) as caught:
        make(**given)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_seed_uri_may_leave_user_and_session_open() -> None:
    uri = PicksUri.parse("ribosome", "input URI")
    assert uri.matches("ribosome", "anyone", "9")
    assert not uri.matches("ribosome-large", "anyone", "9")
    assert PicksUri.parse("ribosome:cur*/1", "input URI").matches("ribosome", "curator", "1")


def test_identity_is_json_and_changes_with_the_seeds_only_where_it_matters() -> None:
    assert json.loads(json.dumps(make().identity())) == make().identity()
    assert make().identity() == make(config="other.json", runs=("TS_001",), overwrite=True).identity()
    assert make().identity() != make(seeds="ribosome:curator/2").identity()
    assert make(seed_runs=("b", "a")).identity() == make(seed_runs=("a", "b")).identity()
