"""Many tomograms: seeds are pooled, every run is searched once, and one bad run does not stop the others."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from copick_cryosam import second_look
from copick_cryosam.compute import Listener, Outcome, plan, run_job
from copick_cryosam.compute.faults import naming
from copick_cryosam.compute.reporting import ReportCollector
from copick_cryosam.compute.seeds import agreed, inside
from copick_cryosam.config import Settings, override, preset
from copick_cryosam.encoders.embednet import EmbedNetEncoder
from copick_cryosam.encoders.fake import FakeEncoder
from copick_cryosam.errors import CryosamError, DataError, DeviceError, InputError, SeedError
from copick_cryosam.findings import Tomogram
from copick_cryosam.io.job import Job
from copick_cryosam.io.writing import Writer
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.types import AngstromPoints, Grid

SHAPE = (32, 44, 52)
RADIUS = 6
CENTRES = np.array([[9.0, 10, 11], [10, 30, 12], [20, 12, 30], [21, 33, 41], [9, 20, 43]])
FAKE = preset("fake")
EMBEDDED = override(preset("embedded"), {"alignment": {"company": 1, "rotations": 200}, "device": "cpu"})


def balls(sign: int = -1, seed: int = 0) -> NDArray[np.float32]:
    """Noise with balls at `CENTRES`, dark for sign -1."""
    volume = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    z, y, x = np.indices(SHAPE)
    for centre in CENTRES:
        volume[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= RADIUS**2] += 3 * sign
    return volume


def job_for(project: Any, **given: Any) -> Job:
    return Job.create(**{"config": str(project.config), "tomogram": "wbp@10.0", "seeds": "ribosome:curator/1", **given})


def add_seed(project: Any, run: str, index: int = 0, **given: Any) -> None:
    project.add_picks(run, CENTRES[index : index + 1, ::-1] * 10.0, **given)


@pytest.fixture
def project(project_on_disk: Any) -> Any:
    """Three tomograms with dark balls; one ball of the second is a seed."""
    for number, run in enumerate(("A", "B", "C")):
        project_on_disk.add_tomogram(run, balls(seed=number))
    add_seed(project_on_disk, "B")
    return project_on_disk


class Recorder(Listener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.stages: set[str] = set()
        self.outcomes: dict[str, Outcome] = {}

    def begun(self, pending: int) -> None:
        self.events.append(("begun", pending))

    def run_started(self, run: str, task: str) -> None:
        self.events.append((task, run))

    def progress(self, stage: str, done: int, total: int) -> None:
        # what takes long as a whole is announced before any of it is done
        assert (0 if stage in ("second look", "compete") else 1) <= done <= total
        self.stages.add(stage)

    def run_ended(self, outcome: Outcome) -> None:
        self.events.append((outcome.state, outcome.run))
        self.outcomes[outcome.run] = outcome


def test_every_run_is_searched_and_the_seed_s_tomogram_is_encoded_once(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    original = FakeEncoder.encode

    def counting(self: FakeEncoder, volume: Any, **given: Any) -> Any:
        encoded.append(volume.shape)
        return original(self, volume, **given)

    monkeypatch.setattr(FakeEncoder, "encode", counting)
    heard = Recorder()
    summary = run_job(job_for(project), FAKE, heard)
    assert len(encoded) == 3
    assert summary.succeeded
    assert [(one.run, one.state, one.picks) for one in summary.outcomes] == [(run, "done", 5) for run in "ABC"]
    assert summary.polarity == "dark"
    assert heard.events == [
        ("begun", 3),
        ("seeds", "B"),
        *(each for run in "BAC" for each in (("search", run), ("done", run))),
    ]
    assert heard.stages == {"read", "encode", "segment"}
    assert len(heard.outcomes["B"].search.seeds) == 1  # type: ignore[union-attr]
    assert all(one.search is None for one in summary.outcomes)


@pytest.mark.parametrize("preset_name", ["fake", "embedded"])
def test_one_tomogram_is_in_memory_at_a_time(project: Any, monkeypatch: pytest.MonkeyPatch, preset_name: str) -> None:
    add_seed(project, "A")
    add_seed(project, "C")
    opened: list[weakref.ref[Tomogram]] = []
    alive = []
    original = CryoSAM.open

    def watched(self: CryoSAM, *args: Any, **given: Any) -> Tomogram:
        gc.collect()
        alive.append(sum(each() is not None for each in opened))
        tomogram = original(self, *args, **given)
        opened.append(weakref.ref(tomogram))
        return tomogram

    monkeypatch.setattr(CryoSAM, "open", watched)
    # A and B keep the others company: they are looked at after the seeds, of which C's are read last
    settings, times = {"fake": (FAKE, 5), "embedded": (EMBEDDED, 6)}[preset_name]
    assert run_job(job_for(project), settings).succeeded
    assert alive == [0] * times
    gc.collect()
    assert all(each() is None for each in opened)


def picked(project: Any, run: str) -> list[tuple[float, ...]]:
    """Picks of a run: x, y, z and score."""
    (found,) = project.root().get_run(run).get_picks(object_name="ribosome", user_id="cryosam")
    return [(one.location.x, one.location.y, one.location.z, one.score) for one in found.points]


def forget(project: Any, run: str) -> None:
    """As if a run had never been searched."""
    for path in (project.overlay / "ExperimentRuns" / run).rglob("*cryosam*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_candidates_of_other_runs_keep_each_run_company(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, company, competed = [], [], []
    encode, rank, share_out = EmbedNetEncoder.encode, CryoSAM.rank, second_look.share_out

    def encoding(self: EmbedNetEncoder, volume: Any, **given: Any) -> Any:
        encoded.append(volume.shape)
        return encode(self, volume, **given)

    def ranking(self: CryoSAM, *args: Any, **given: Any) -> Any:
        company.append(len(given["company"]))
        return rank(self, *args, **given)

    def sharing(aligner: Any, crowd: Any, *args: Any) -> Any:
        competed.append((len(crowd.tomograms), len(crowd.searched) == len(crowd)))
        return share_out(aligner, crowd, *args)

    monkeypatch.setattr(EmbedNetEncoder, "encode", encoding)
    monkeypatch.setattr(CryoSAM, "rank", ranking)
    monkeypatch.setattr(second_look, "share_out", sharing)
    heard = Recorder()
    assert run_job(job_for(project), EMBEDDED, heard).succeeded
    assert len(encoded) == 3
    # that of the seed first, then by name; what is still open is searched first
    assert heard.events == [
        ("begun", 3),
        ("seeds", "B"),
        ("look", "B"),
        ("look", "A"),
        *(each for run in "ABC" for each in (("search", run), ("done", run))),
    ]
    assert company == [1, 1, 2]
    # A and B compete once for both
    assert competed == [(2, True), (2, False)]
    assert heard.stages == {"read", "encode", "second look", "compete", "segment"}
    records = {
        run: json.loads((project.overlay / f"ExperimentRuns/{run}/CryoSAM/cryosam_1_ribosome.json").read_text())
        for run in "ABC"
    }
    asked = {run: record["parameters"]["result"]["company"] for run, record in records.items()}
    assert asked == {"A": ["B"], "B": ["A"], "C": ["A"]}


@pytest.mark.parametrize("run", ["A", "C"])
def test_what_was_finished_before_does_not_change_what_is_found(project: Any, run: str) -> None:
    assert run_job(job_for(project), EMBEDDED).succeeded
    before = picked(project, run)
    assert len(before) > 1
    forget(project, run)
    assert run_job(job_for(project), EMBEDDED).runs("done") == (run,)
    assert picked(project, run) == before


def test_a_run_that_cannot_keep_others_company_is_replaced(project: Any) -> None:
    (tomogram,) = project.root().get_run("A").get_voxel_spacing(10.0).get_tomograms("wbp")
    zarr.open(tomogram.zarr(), mode="a")["0"][:] = np.nan
    heard = Recorder()
    summary = run_job(job_for(project), EMBEDDED, heard)
    assert (summary.runs("failed"), summary.runs("done")) == (("A",), ("B", "C"))
    assert [event for event in heard.events if event[0] == "look"] == [("look", "B"), ("look", "A"), ("look", "C")]


def test_finished_runs_load_nothing(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run_job(job_for(project, runs=("A", "B")), FAKE)
    monkeypatch.setattr(CryoSAM, "from_settings", lambda _: pytest.fail("models were loaded"))
    heard = Recorder()
    summary = run_job(job_for(project, runs=("B", "A")), FAKE, heard)
    assert [(one.run, one.state, one.picks, one.stale) for one in summary.outcomes] == [
        ("B", "skipped", 5, False),
        ("A", "skipped", 5, False),
    ]
    assert heard.events == [("begun", 0), ("skipped", "B"), ("skipped", "A")]
    assert summary.succeeded


def test_stale_results_are_told_from_those_of_the_same_job(project: Any) -> None:
    run_job(job_for(project, runs=("A",)), FAKE)

    def stale(settings: Settings, **given: Any) -> tuple[str, ...]:
        return run_job(job_for(project, runs=("A",), **given), settings).stale

    assert stale(override(FAKE, {"device": "cpu"})) == ()
    assert stale(override(FAKE, {"instances": {"max_picks": 2}})) == ("A",)
    assert stale(FAKE, seed_runs=("B",)) == ("A",)
    add_seed(project, "C")
    assert stale(FAKE) == ("A",)


def test_a_failing_run_does_not_stop_the_others(project: Any) -> None:
    broken = balls()
    broken[0, 0, 0] = np.nan
    project.root().get_run("A").get_voxel_spacing(10.0).get_tomograms("wbp")[0].from_numpy(broken, levels=1)
    summary = run_job(job_for(project), FAKE)
    assert [one.state for one in summary.outcomes] == ["failed", "done", "done"]
    assert isinstance(summary.outcomes[0].error, DataError)
    assert summary.outcomes[0].error.__traceback__ is None
    assert not summary.succeeded
    assert not list((project.overlay / "ExperimentRuns/A").glob("Picks/cryosam*"))


def test_a_failing_seed_run_is_reported_and_the_others_serve(project: Any) -> None:
    project.add_picks("A", [[1e6, 0, 0]])
    heard = Recorder()
    summary = run_job(job_for(project), FAKE, heard)
    assert [(one.run, one.state) for one in summary.outcomes] == [("A", "failed"), ("B", "done"), ("C", "done")]
    assert ("search", "A") not in heard.events
    assert heard.events.count(("failed", "A")) == 1

    elsewhere = run_job(job_for(project, runs=("C",), overwrite=True), FAKE)
    assert elsewhere.runs("done") == ("C",)
    assert list(elsewhere.seed_failures) == ["A"]
    assert not elsewhere.succeeded
    record = json.loads((project.overlay / "ExperimentRuns/C/CryoSAM/cryosam_1_ribosome.json").read_text())
    assert record["parameters"]["result"]["unused_seed_runs"] == ["A"]
    with pytest.raises(SeedError, match=r"run A: expected seeds inside 520 x 440 x 320 Å"):
        run_job(job_for(project, seed_runs=("A",), runs=("C",), overwrite=True), FAKE)


def test_seeds_of_both_polarities_are_refused(project: Any) -> None:
    project.add_tomogram("D", balls(sign=1))
    add_seed(project, "D")
    before = project.files()
    with pytest.raises(SeedError, match="dark in B; light in D"):
        run_job(job_for(project), FAKE)
    assert project.files() == before
    with pytest.raises(SeedError, match="one kind"):
        agreed({"a": "dark", "b": "light"})
    assert agreed({"a": "dark", "b": "dark"}) == "dark"


def test_negatives_are_read_where_they_lie(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add_seed(project, "B", 1, uri=("apoferritin", "curator", "1"))
    add_seed(project, "C", 2, uri=("apoferritin", "curator", "1"))
    seen = []
    original = CryoSAM.query

    def watched(self: CryoSAM, seeded: Any, negatives: Any = ()) -> Any:
        seen.append((len(seeded), [tuple(one.instances[0].prompt_zyx) for one in negatives]))
        return original(self, seeded, negatives)

    monkeypatch.setattr(CryoSAM, "query", watched)
    summary = run_job(job_for(project, negatives="apoferritin:curator/1"), FAKE)
    assert summary.succeeded
    assert seen == [(1, [tuple(CENTRES[1]), tuple(CENTRES[2])])]


def test_a_run_of_another_voxel_spacing_fails_alone(project: Any) -> None:
    project.add_tomogram("D", balls(), spacing=13.5)
    summary = run_job(job_for(project, tomogram="wbp"), FAKE)
    assert summary.runs("failed") == ("D",)
    assert "expected the voxel spacing 10.0 of run B, found 13.5" in str(summary.outcomes[3].error)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (MemoryError(), "expected enough memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "expected enough GPU memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "expected enough memory"),
    ],
)
def test_out_of_memory_names_the_run_and_what_to_halve(
    project: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, words: str
) -> None:
    original = CryoSAM.finish
    calls = []

    def failing(self: CryoSAM, *args: Any, **given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise raised
        return original(self, *args, **given)

    monkeypatch.setattr(CryoSAM, "finish", failing)
    summary = run_job(job_for(project), FAKE)
    assert summary.runs("failed") == ("A",)
    error = summary.outcomes[0].error
    assert isinstance(error, DeviceError)
    assert f"run A: {words}" in error.message
    assert "segmenter.batch (now 128)" in error.hint


def test_faults_of_the_program_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), naming("A", FAKE):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(InputError, match=r"^run A: radius: wrong\. Set it$"), naming("A", FAKE):
        raise InputError("radius: wrong", hint="Set it")
    with pytest.raises(CryosamError, match=r"^run A, tomogram x: bad") as caught, naming("A", FAKE):
        raise DataError("run A, tomogram x: bad", hint="Mend it")
    assert caught.value.hint == "Mend it"


def test_an_interrupt_leaves_whole_runs_only(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Writer._write_record

    def interrupted(self: Writer, run: str, *args: Any) -> None:
        if run == "A":
            raise KeyboardInterrupt
        original(self, run, *args)

    monkeypatch.setattr(Writer, "_write_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_job(job_for(project), FAKE)
    assert not list((project.overlay / "ExperimentRuns/A").rglob("*cryosam*"))
    monkeypatch.undo()
    summary = run_job(job_for(project), FAKE)
    assert (summary.runs("skipped"), summary.runs("done")) == (("B",), ("A", "C"))


def test_seeds_must_lie_inside() -> None:
    grid = Grid((10, 20, 30), 2.0)
    np.testing.assert_allclose(inside(AngstromPoints([[2, 4, 6]]), grid, "A", "seeds").zyx, [[3, 2, 1]])  # type: ignore[arg-type]
    with pytest.raises(SeedError, match=r"60 x 40 x 20 Å \(x, y, z\), found 1 outside, the first at \(2, 44, 6\)"):
        inside(AngstromPoints([[2, 4, 6], [2, 44, 6]]), grid, "A", "seeds")  # type: ignore[arg-type]


def test_plan_writes_nothing_and_grows_with_the_work(project: Any) -> None:
    run_job(job_for(project, runs=("B",)), FAKE)
    project.root().new_run("D")
    before = project.files()
    planned = plan(job_for(project), override(FAKE, {"instances": {"max_picks": 1}}))
    assert project.files() == before
    assert [(one.run, one.state, one.pending) for one in planned.runs] == [
        ("A", "absent", True),
        ("B", "stale", False),
        ("C", "absent", True),
        ("D", "absent", True),
    ]
    assert [one.run for one in planned.pending] == ["A", "C"]
    assert planned.runs[3].grid is None
    assert planned.runs[0].grid == Grid(SHAPE, 10.0)
    assert planned.seeds == {"B": 1}
    assert planned.seconds == pytest.approx(2 * planned.runs[0].seconds)
    assert planned.memory == planned.runs[0].memory > 4 * np.prod(SHAPE)
    again = plan(job_for(project, overwrite=True), FAKE)
    assert [one.state for one in again.runs] == ["absent", "finished", "absent", "absent"]
    assert len(again.pending) == 3


def test_a_seed_on_background_is_named_everywhere(project: Any, caplog: pytest.LogCaptureFixture) -> None:
    seeds = ("ribosome", "curator", "2")
    project.add_picks("B", np.concatenate([CENTRES[:3], [[26.0, 8, 46]]])[:, ::-1] * 10.0, uri=seeds)
    add_seed(project, "C", 3, uri=seeds)
    collector = ReportCollector(Recorder())
    job = job_for(project, seeds="ribosome:curator/2")
    summary = run_job(job, FAKE, collector)
    assert summary.succeeded
    (remark,) = summary.seed_remarks
    assert remark.startswith("seed 4 of run B at (460, 80, 260) Å does not agree with the other 4: agreement ")
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [remark]
    for run in "ABC":
        record = json.loads((project.overlay / f"ExperimentRuns/{run}/CryoSAM/cryosam_1_ribosome.json").read_text())
        diagnosis = record["parameters"]["result"]["seed_diagnosis"]
        assert [one["verdict"] for one in diagnosis["B"]] == ["agrees"] * 3 + ["disagrees"]
        assert [one["verdict"] for one in diagnosis["C"]] == ["agrees"]
        assert diagnosis["B"][3]["position"] == [460.0, 80.0, 260.0]
    text = collector.write(project.folder / "report.html", job, summary, "").read_text(encoding="utf-8")
    assert f"<li>S{remark[1:]}.</li>" in text
    assert text.count('<strong class="suspicious">disagrees</strong>') == 1
    assert text.count("<td>agrees</td>") == 4
    assert "result.seed_diagnosis" not in text


def test_report_reads_tomograms_one_at_a_time(project: Any) -> None:
    collector = ReportCollector(Recorder())
    job = job_for(project)
    summary = run_job(job, FAKE, collector)
    path = collector.write(project.folder / "report.html", job, summary, "copick inference cryosam -c config.json")
    text = path.read_text(encoding="utf-8")
    assert "ribosome in wbp@10.0" in text
    assert text.count("Histogram of the match") == 3
    assert "settings.matching.nms_radius" in text
    assert "copick inference cryosam -c config.json" in text
    skipped = ReportCollector(Recorder())
    with pytest.raises(InputError, match="at least one run searched"):
        skipped.write(path, job, run_job(job, FAKE, skipped), "")
