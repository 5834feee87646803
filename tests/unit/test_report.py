"""The report shows what it is given, escapes it, and stands alone."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from copick_cryosam.errors import InputError, OutputError
from copick_cryosam.evaluation import localization
from copick_cryosam.report import Report, RunReport, render_report, write_report
from copick_cryosam.report.gallery import groups_by_score
from copick_cryosam.report.planes import outline, planes, verdicts
from copick_cryosam.types import Grid, Instance, VoxelPoints, centroids

GRID = Grid((24, 40, 48), 10.0)
RADIUS = 40.0


def ball(centre: tuple[int, int, int], score: float) -> Instance:
    edge = 7
    grid = np.indices((edge,) * 3) - edge // 2
    z, y, x = (value - edge // 2 for value in centre)
    return Instance(
        mask=(grid**2).sum(axis=0) <= 9,
        origin_zyx=(z, y, x),
        prompt_zyx=centre,
        similarity=score,
        confidence=0.9,
        score=score,
    )


def make_run(name: str = "TS_001", *, found: int = 20, truth: bool = True) -> RunReport:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=GRID.shape_zyx).astype(np.float32)
    spots = [(z, y, x) for z in (6, 17) for y in (6, 20, 33) for x in (6, 18, 30, 42)]
    instances = [ball(spot, 0.95 - 0.02 * index) for index, spot in enumerate(spots[:found])]
    true = GRID.to_angstrom(VoxelPoints(np.array(spots[1:], dtype=np.float64)))
    positions = GRID.to_angstrom(centroids(instances))
    scores = localization(positions, np.array([one.score for one in instances]), true, RADIUS) if truth else None
    return RunReport(
        run_name=name,
        volume=volume,
        grid=GRID,
        instances=instances,
        radius_angstrom=RADIUS,
        color=(200, 20, 120, 255),
        seeds=VoxelPoints(np.array([spots[0]], dtype=np.float64)),
        truth=true if truth else None,
        scores=scores,
        baseline_scores=scores,
        threshold=0.5,
        candidates=np.linspace(0.1, 0.9, 35),
        candidate_threshold=0.45,
        notes=["The seeds agree."],
    )


def make_report(*runs: RunReport) -> Report:
    return Report(
        title="ribosome",
        runs=runs,
        parameters={"preset": "embedded", "encoder": {"name": "embednet"}},
        versions={"copick-cryosam": "0.1.0", "embednet": "ab" * 32},
        command="copick inference cryosam -i 'ribosome:<me>/1'",
        warnings=["One seed only."],
    )


class Page(HTMLParser):
    """Tags, ids, references and text of a page; fails on tags that do not nest."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, css: str) -> int:
        return sum(one == tag and css in (attrs.get("class") or "").split() for one, attrs in self.tags)


def test_full_report() -> None:
    first, second = make_run("TS_001"), make_run("TS_002", found=4)
    text = render_report(make_report(first, second))
    page = Page(text)
    # Twenty picks fill three groups of six, four picks one group.
    assert page.count("figure", "pick") == 18 + 4
    assert len(re.findall(r'href="data:image/jpeg;base64,', text)) == 2 * 3 + 18 + 4
    for words in ("TS_001", "TS_002", "All runs", "encoder.name", "embednet", "ab" * 32, "One seed only.", "nm³"):
        assert words in page.text
    assert first.scores is not None
    assert f"{first.scores.precision:.3f}" in page.text
    assert f"{first.scores.recall:.3f}" in page.text
    assert "copick inference cryosam -i 'ribosome:<me>/1'" in page.text
    assert "threshold 0.5" in page.text
    assert "left out (15)" in page.text
    assert "segmented (20)" in page.text
    assert "--own: rgb(200 20 120)" in text


def test_report_stands_alone_and_can_be_repeated() -> None:
    text = render_report(make_report(make_run()))
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("href", "xlink:href", "src")]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert {link[1:] for link in links if link and link.startswith("#")} <= set(ids)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not re.search(r"url\((?!#)", text)
    assert text == render_report(make_report(make_run()))


def test_images_and_tables_are_described() -> None:
    page = Page(render_report(make_report(make_run())))
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in drawings)
    regions = [attrs for _, attrs in page.tags if "scroll" in (attrs.get("class") or "").split()]
    assert regions
    assert all(attrs.get("tabindex") == "0" for attrs in regions)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_names_are_escaped() -> None:
    name = '<script>alert("1")</script>'
    run = replace(make_run(name), notes=["<b>note</b>"])
    report = replace(make_report(run), title="<i>t</i>", parameters={"<u>": "<s>"})
    page = Page(render_report(report))
    assert not {"script", "i", "u", "s"} & {tag for tag, _ in page.tags}
    for words in (name, "<b>note</b>", "<i>t</i>", "<u>", "<s>"):
        assert words in page.text


def test_no_picks_and_no_truth() -> None:
    run = replace(
        make_run(truth=False), instances=[], candidates=None, seeds=VoxelPoints(np.empty((0, 3))), baseline_scores=None
    )
    page = Page(render_report(make_report(run)))
    assert page.count("figure", "pick") == 0
    assert "No picks." in page.text
    assert "No seeds in this tomogram" in page.text
    for words in ("Precision", "not in the truth", "All runs", "Distributions"):
        assert words not in page.text


def test_no_picks_but_truth() -> None:
    run = make_run(found=0)
    page = Page(render_report(make_report(run)))
    assert "missed" in page.text
    assert page.count("g", "missed") > 1


def test_no_runs() -> None:
    assert "No tomogram was searched." in Page(render_report(make_report())).text


def test_slices_go_through_the_seed_and_mark_what_lies_near() -> None:
    run = make_run()
    xy, xz, yz = planes(run, run.load())
    assert [one.name for one in (xy, xz, yz)] == ["xy", "xz", "yz"]
    assert xy.caption.startswith("xy at z = 6 ")
    assert (xy.width, xy.height) == (48, 40)
    assert (yz.width, yz.height) == (40, 24)
    seed = [one for one in xy.marks if one.kind == "seed"]
    assert [(one.x, one.y) for one in seed] == [(6.5, 6.5)]
    # Twelve picks lie in the plane of the seed; the one on the seed is not in the truth.
    assert sum(one.kind == "hit" for one in xy.marks) == 11
    assert [(one.x, one.y) for one in xy.marks if one.kind == "false"] == [(6.5, 6.5)]
    assert len(xy.contours) == 12
    assert xy.bar_label == "10 nm"
    assert xy.bar_voxels == 10.0
    assert base64.b64decode(xy.image.split(",")[1]).startswith(b"\xff\xd8")


def test_verdicts() -> None:
    run = make_run()
    twice = replace(run, instances=[*run.instances, ball((6, 6, 19), 0.1)])
    kinds = verdicts(twice)
    assert kinds[0] == "false"
    assert kinds[1] == "hit"
    assert kinds[-1] == "duplicate"
    assert set(verdicts(replace(run, truth=None))) == {"pick"}


def test_outline_encloses_the_mask() -> None:
    mask = np.ones((3, 4), dtype=bool)
    numbers = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", outline(mask, 10, 20)), dtype=np.float64)
    assert numbers.min(axis=0).tolist() == [20.0, 10.0]
    assert numbers.max(axis=0).tolist() == [24.0, 13.0]
    assert outline(mask & False, 0, 0) == ""


def test_groups_by_score() -> None:
    scores = np.linspace(1, 0, 11)
    groups = groups_by_score(scores, 0.5, 2)
    assert [members for _, members in groups] == [[0, 1], [4, 5], [9, 10]]
    assert groups[1][0].startswith("Borderline")
    assert [name.split(":")[0] for name, _ in groups_by_score(scores, 0.0, 2)] == ["Best", "Middle", "Worst"]
    assert [members for _, members in groups_by_score(scores[:3], None, 2)] == [[0, 1], [2]]
    assert groups_by_score(np.empty(0), 0.5, 2) == []


def test_picks_at_the_edge_and_lazy_volumes() -> None:
    run = make_run(truth=False)
    edge = Instance(
        mask=np.ones((2, 2, 2), dtype=bool),
        origin_zyx=(0, 0, 46),
        prompt_zyx=(0, 0, 47),
        similarity=1.0,
        confidence=1.0,
        score=1.0,
    )
    lazy = replace(run, volume=run.load, instances=[edge])
    assert Page(render_report(make_report(lazy))).count("figure", "pick") == 1


def test_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    wrong = replace(make_run(), grid=Grid((24, 40, 47), 10.0))
    with pytest.raises(InputError, match=r"TS_001.*expected shape \(24, 40, 47\), found \(24, 40, 48\)"):
        write_report(make_report(wrong), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert write_report(make_report(make_run()), path) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match=r"missing/report\.html"):
        write_report(make_report(), tmp_path / "missing" / "report.html")


def test_size_of_three_usual_tomograms(tmp_path: Path) -> None:
    grid = Grid((64, 256, 256), 10.0)
    volume = np.random.default_rng(0).normal(size=grid.shape_zyx).astype(np.float32)
    run = replace(make_run(truth=False), volume=volume, grid=grid)
    path = write_report(make_report(run, run, run), tmp_path / "report.html")
    assert 100_000 < path.stat().st_size < 4_000_000


def test_wrong_values_are_named() -> None:
    with pytest.raises(InputError, match="radius"):
        replace(make_run(), radius_angstrom=0.0)
    with pytest.raises(InputError, match="color"):
        replace(make_run(), color=(0, 0))
