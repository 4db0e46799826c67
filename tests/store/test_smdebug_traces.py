"""Directories of smdebug: read as they are, imported, exported; the same to smdebug itself in either direction."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from stepwatch.cli.main import main
from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.statistics import measure
from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.reader import Trace
from stepwatch.probe.store.smdebug.directory import SMDebugDirectory
from stepwatch.probe.store.smdebug.event import Event, decode, encode
from stepwatch.probe.store.smdebug.exporting import export_smdebug
from stepwatch.probe.store.smdebug.importing import import_smdebug, statistics
from stepwatch.probe.store.smdebug.wire import frame
from stepwatch.rules.exceptions import TensorUnavailableForStep
from stepwatch.rules.trial import create_trial
from tests.smdebug_reference import KINDS, REFERENCE, differences, job


@pytest.fixture(scope="module")
def imported(smdebug_jobs: tuple[Path, dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    for kind in KINDS:
        import_smdebug(smdebug_jobs[0] / kind, folder / kind)
    return folder


@pytest.mark.smdebug
@pytest.mark.parametrize("source", ["as it is", "imported"])
def test_queries_answer_as_smdebug_does(smdebug_jobs: tuple[Path, dict], imported: Path, source: str) -> None:
    folder = imported if source == "imported" else smdebug_jobs[0]
    ours = job(Path(sys.executable), "read", *(folder / kind for kind in KINDS), "--ours")
    assert differences(smdebug_jobs[1], ours) == []


@pytest.mark.smdebug
def test_smdebug_opens_what_was_exported(
    smdebug_jobs: tuple[Path, dict], imported: Path, run: Path, tmp_path: Path
) -> None:
    for kind in KINDS:
        export_smdebug(Trace(imported / kind), tmp_path / kind)
    export_smdebug(Trace(run), tmp_path / "ours")
    exported = job(REFERENCE, "read", *(tmp_path / kind for kind in KINDS), tmp_path / "ours")
    read = exported.pop("ours")
    assert differences(smdebug_jobs[1], exported) == []
    assert read["steps"] == {"TRAIN": [0, 1, 2, 3], "EVAL": [0, 1], "PREDICT": [], "GLOBAL": [0, 1, 2, 3, 4, 5]}
    assert read["collections"]["gradients"] == ["gradient/Linear_bias", "gradient/Linear_weight"]
    trial = create_trial(run)
    for name, tensor in read["tensors"].items():
        for step, value in tensor["values"].items():
            if tensor["steps"]["GLOBAL"] == [0, 1, 3, 4] and not isinstance(value, str):
                expected = trial.tensor(name).value({0: 0, 1: 1, 3: 2, 4: 3}[int(step)])
                assert [float(entry) for entry in value[2]] == pytest.approx(expected.ravel().tolist())
    weight = read["tensors"]["Linear_weight"]
    assert weight["steps"]["TRAIN"] == [0, 2]
    for reduction in ("mean", "abs mean", "std", "l2"):
        (shown,) = weight["reductions"][reduction][2]
        abs_, _, name = reduction.rpartition(" ")
        assert float(shown) == pytest.approx(trial.tensor("Linear_weight").reduction_value(2, name, abs=bool(abs_)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training steps, every second saved, an evaluation after each two."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    model, loss_fn = nn.Linear(4, 2), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = SaveConfig(save_interval=2)
    with Hook(folder, model=model, optimizer=optimizer, loss_fn=loss_fn, save_config=config, system_interval=0) as hook:
        for step in range(4):
            model.train()
            loss_fn(model(torch.randn(3, 4)), torch.tensor([0, 1, 0])).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 2:
                model.eval()
                with torch.no_grad():
                    loss_fn(model(torch.randn(3, 4)), torch.tensor([0, 1, 0]))
                hook.log("accuracy", step / 4)
    return folder


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    """A directory as smdebug writes them, made without it."""
    export_smdebug(Trace(run), tmp_path / "exported")
    return tmp_path / "exported"


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command, within this process."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def test_commands(run: Path, tmp_path: Path) -> None:
    done = cli("export", "--format", "smdebug", run, tmp_path / "theirs")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/theirs: 6 steps\n")
    done = cli("import", tmp_path / "theirs", tmp_path / "ours")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/ours: 6 saved steps of 1 worker\n")
    shown = cli("show", tmp_path / "theirs")
    assert "CrossEntropyLoss_output_0" in shown.stdout and "finished after 5 steps" in shown.stdout
    judged = cli("analyze", "--json", tmp_path / "theirs")
    assert judged.returncode == 0 and json.loads(judged.stdout)["rules"]
    for command in (["import", tmp_path / "theirs", tmp_path / "ours"], ["import", run, tmp_path / "new"]):
        done = cli(*command)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_a_growing_directory_is_followed(exported: Path) -> None:
    (exported / "training_job_end.ts").unlink()
    late = exported / "index" / "000000000" / "000000000005_worker_0.json"
    content = late.read_bytes()
    late.unlink()
    trial = create_trial(exported)
    assert trial.steps() == [0, 1, 2, 3, 4] and not trial.loaded_all_steps
    late.write_bytes(content)
    assert trial.steps() == [0, 1, 2, 3, 4, 5]
    (exported / "training_job_end.ts").touch()
    assert trial.loaded_all_steps


def test_commands_follow_a_growing_directory(exported: Path) -> None:
    """A whole command, from before the last step to after the end of the job."""
    (exported / "training_job_end.ts").unlink()
    late = exported / "index" / "000000000" / "000000000005_worker_0.json"
    content = late.read_bytes()
    late.unlink()
    now = cli("analyze", "--json", exported)
    assert now.returncode == 0 and json.loads(now.stdout)["live"]
    command = [sys.executable, "-m", "stepwatch.cli", "analyze", "--follow", "--json", str(exported)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        with pytest.raises(subprocess.TimeoutExpired):
            following.wait(2)
        late.write_bytes(content)
        (exported / "training_job_end.ts").touch()
        output, error = following.communicate(timeout=60)
    assert following.returncode == 0, error
    assert not json.loads(output)["live"]


def test_a_step_waits_for_all_workers(exported: Path) -> None:
    (exported / "training_job_end.ts").unlink()
    collections = exported / "collections" / "000000000" / "worker_0_collections.json"
    collections.write_text(collections.read_text().replace('"num_workers": 1', '"num_workers": 2'))
    collections.with_name("worker_1_collections.json").write_text(collections.read_text())
    trial = create_trial(exported)
    assert trial.steps() == [] and trial.steps(show_incomplete_steps=True) == [0, 1, 2, 3, 4, 5]
    index = exported / "index" / "000000000"
    (index / "000000000002_worker_1.json").write_bytes((index / "000000000002_worker_0.json").read_bytes())
    assert trial.steps() == [0, 1, 2]  # what is behind a complete step is not waited for
    assert trial.workers() == ["worker_0", "worker_1"]


INDEX = {
    "meta": {"mode": "TRAIN", "mode_step": 3, "event_file_name": "events/000000000003/000000000003_worker_0.tfevents"},
    "tensor_payload": [{"tensorname": "x", "start_idx": 0, "length": 97}],
    "shape_payload": [{"tensorname": "x", "originalname": "x", "shape": [2, 3]}],
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["meta", "tensor_payload", "shape_payload"]), st.text(max_size=9), anything)
def test_an_index_with_anything_in_it_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, part: str, key: str, value: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    (folder / "index" / "000000000").mkdir(parents=True, exist_ok=True)
    (folder / "events").mkdir(exist_ok=True)
    known = list(INDEX["meta"]) if part == "meta" else list(INDEX[part][0])
    field = known[len(key) % len(known)]
    content = json.loads(json.dumps(INDEX))
    (content["meta"] if part == "meta" else content[part][0])[field] = value
    (folder / "index" / "000000000" / "000000000003_worker_0.json").write_text(json.dumps(content))
    try:
        (step,) = SMDebugDirectory(folder).poll()
        assert step.step == 3 and all(isinstance(name, str) for name in step.names())
    except TraceError as error:
        assert "000000000003_worker_0.json" in str(error)


numbers = hnp.arrays(
    st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u1", "?", "c16"]), hnp.array_shapes(min_dims=0, max_dims=4)
)


@given(numbers, st.text(min_size=1, max_size=40), st.integers(0, 2**40), st.sampled_from(["TRAIN", "EVAL", "GLOBAL"]))
def test_what_was_encoded_is_decoded(value: np.ndarray, name: str, step: int, mode: str) -> None:
    found = decode(encode(Event(name, value, step, 1.5), mode, step // 3))
    assert (found.name, found.step, found.wall_time) == (name, step, 1.5)
    assert found.value.dtype == value.dtype and found.value.shape == value.shape
    assert found.value.tobytes() == value.tobytes()


RECORD = encode(Event("Net_fc.weight", np.arange(6, dtype=np.float32).reshape(2, 3), 7, 1.5), "TRAIN", 7)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RECORD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_record_is_refused_or_read(changes: list[tuple[int, int]]) -> None:
    record = bytearray(RECORD)
    for at, byte in changes:
        record[at] = byte
    try:
        assert decode(bytes(record)).value.nbytes <= len(RECORD)
    except TraceError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_event_is_refused(content: bytes) -> None:
    for record in (content, frame(content)):
        with pytest.raises(TraceError):
            decode(record)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start_idx", 10**12, "ends before the"),
        ("length", 10**15, "ends before the"),
        ("length", -1, "expected numbers from 0"),
        ("length", 20, "a record"),
    ],
)
def test_an_index_that_lies_is_refused(exported: Path, field: str, value: int, message: str) -> None:
    path = exported / "index" / "000000000" / "000000000000_worker_0.json"
    content = json.loads(path.read_bytes())
    content["tensor_payload"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(TraceError, match=message):
        create_trial(exported).tensor(content["tensor_payload"][0]["tensorname"]).value(0)
    with pytest.raises(TraceError):
        import_smdebug(exported, exported.with_name("imported"))
    shown = cli("show", exported)
    assert shown.returncode == 2 and len(shown.stderr.splitlines()) == 1 and str(exported) in shown.stderr


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"meta": {}}', '{"meta": {"mode": "x", "mode_step": 1}}', "[" * 100_000, '{"meta": 3}']
    + [json.dumps({"meta": {"mode": "TRAIN", "mode_step": 0, "event_file_name": name}}) for name in ("/x", "../x", 3)]
    + [json.dumps({"meta": {"mode": "TRAIN", "mode_step": count}}) for count in (10**30, 1.5, None)]
    + [
        json.dumps({"meta": {"mode": "TRAIN", "mode_step": 0}, "shape_payload": [shape]})
        for shape in (
            {"tensorname": "half \ud800 a character", "shape": []},
            {"tensorname": "x", "shape": [1e400]},
            {"shape": []},
            3,
        )
    ],
)
def test_a_damaged_index_is_refused(exported: Path, content: str) -> None:
    path = exported / "index" / "000000000" / "000000000000_worker_0.json"
    path.write_text(content)
    with pytest.raises(TraceError, match=path.name.replace(".", r"\.")):
        SMDebugDirectory(exported).poll()


def test_an_event_file_that_is_gone(exported: Path) -> None:
    (exported / "events" / "000000000000" / "000000000000_worker_0.tfevents").unlink()
    with pytest.raises(TensorUnavailableForStep):
        create_trial(exported).tensor("learning_rate").value(0)
    import_smdebug(exported, exported.with_name("imported"))
    imported = Trace(exported.with_name("imported"))
    assert any("is missing: the tensors of step 0" in note for note in imported.notes)
    assert create_trial(imported.path).tensor("learning_rate").steps() == [1, 3, 4]


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.floats(width=32)))
def test_statistics_are_those_of_the_hook(rows: np.ndarray) -> None:
    expected = measure([torch.from_numpy(row.copy()) for row in rows]).result()
    np.testing.assert_allclose(statistics(rows), expected, rtol=1e-5, atol=1e-30)
