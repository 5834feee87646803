"""Settings: presets, YAML over them, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from copick_cryosam.config import PRESETS, Settings, load_settings, override, preset
from copick_cryosam.errors import InputError


def test_the_default_preset_is_the_embedded_one() -> None:
    assert preset("embedded") == Settings()
    assert Settings().encoder.name == "embednet"
    assert Settings().segmenter.name == "promptnet"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_know_their_name(name: str) -> None:
    assert preset(name).preset == name


def test_the_paper_s_choices() -> None:
    paper = preset("paper")
    assert (paper.encoder.name, paper.encoder.longest_side, paper.encoder.whitening) == (
        "dinov2-reg-large",
        518,
        "none",
    )
    assert (paper.segmenter.name, paper.segmenter.model) == ("sam", "vit_h")
    assert (paper.segmenter.padding, paper.segmenter.channels) == ("square", "repeat")
    assert (paper.segmenter.mask_choice, paper.segmenter.fuse) == ("best", "union")
    assert paper.segmenter.iou_stop == 0.5
    assert (paper.matching.strategy, paper.matching.ratios) == ("hierarchical", (16, 8, 4))
    assert (paper.matching.similarity_threshold, paper.matching.max_proposals) == (0.5, 512)
    # Nothing is dropped for its size or its expected precision.
    assert (paper.instances.min_precision, paper.instances.size_range) == (0, (0, 1e9))
    assert paper.instances.rank_by == "product"


def test_the_foundation_preset_is_sam_and_dinov2_at_full_resolution() -> None:
    foundation = preset("foundation")
    assert (foundation.encoder.name, foundation.encoder.longest_side) == ("dinov2-reg-large", None)
    assert foundation.encoder.whitening == "full"
    assert (foundation.segmenter.name, foundation.segmenter.model) == ("sam", None)
    assert (foundation.segmenter.padding, foundation.segmenter.mask_choice) == ("native", "consistent")
    assert foundation.matching == Settings().matching
    assert foundation.instances == Settings().instances


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"expected one of embedded, fake, foundation, paper, found 'best'"):
        preset("best")


def test_yaml_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("matching:\n  strategy: hierarchical\npolarity: light\n")
    read = load_settings(path, preset("embedded"))
    assert read.matching.strategy == "hierarchical"
    assert read.matching.ratios == Settings().matching.ratios
    assert read.polarity == "light"
    assert read.segmenter == Settings().segmenter


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("")
    assert load_settings(path, preset("embedded")) == preset("embedded")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matching:\n  tau: 0.5\n", r"setting matching\.tau: extra inputs are not permitted, found 0\.5"),
        ("segmenter:\n  iou_stop: 2\n", r"setting segmenter\.iou_stop: .* found 2"),
        ("matching: [1, 2]\n", r"setting matching: .* found \[1, 2\]"),
        (
            "encoder: {name: sam}\nalignment: {second_look: true}\n",
            r"setting alignment\.second_look: expected the encoder embednet, .*, "
            r"found sam, exhaustive matching and none whitening\. Leave it out",
        ),
        ("alignment: {tilt_range: [60, -60]}\n", r"setting alignment\.tilt_range: .*two angles from -90 to 90"),
        ("alignment: {tilt_range: [0, 91]}\n", r"setting alignment\.tilt_range: .*two angles from -90 to 90"),
        ("- a\n- b\n", "expected a mapping, found list"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_bad_settings_are_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_settings(path, preset("embedded"))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        load_settings(tmp_path / "none.yaml", preset("embedded"))


def test_settings_survive_a_round_trip() -> None:
    changed = override(Settings(), {"instances": {"size_range": (0.5, 2.0)}, "matching": {"ratios": (8, 4)}})
    assert Settings.model_validate_json(changed.model_dump_json()) == changed


def test_an_unknown_setting_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"setting segmenter\.bach: .*Known here: name, .*batch"):
        override(preset("embedded"), {"segmenter": {"bach": 4}})
    with pytest.raises(InputError, match=r"setting segmentor: .*Known here: preset, encoder, segmenter"):
        override(preset("embedded"), {"segmentor": {}})


@pytest.mark.parametrize(
    ("values", "looks"),
    [
        ({}, True),
        ({"alignment": {"second_look": True}}, True),
        ({"alignment": {"second_look": False}}, False),
        ({"encoder": {"name": "sam"}}, False),
        ({"matching": {"strategy": "hierarchical"}}, False),
        ({"matching": {"whitening": "mean"}}, False),
        ({"segmenter": {"name": "fake"}}, True),
    ],
)
def test_a_second_look_is_taken_where_its_ranking_was_learned(values: dict[str, object], looks: bool) -> None:
    assert override(preset("embedded"), values).looks_again is looks


def test_other_presets_take_no_second_look_and_cannot_be_asked_for_one() -> None:
    assert [name for name in sorted(PRESETS) if preset(name).looks_again] == ["embedded"]
    for name in ("foundation", "paper", "fake"):
        with pytest.raises(InputError, match=r"setting alignment\.second_look: expected the encoder embednet"):
            override(preset(name), {"alignment": {"second_look": True}})
