"""The names that scripts import from smdebug, and that what lies behind them answers as smdebug does."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from stepwatch.rules.smdebug import install
from tests.smdebug_reference import REFERENCE
from tests.store.test_profiler_files import BEGAN, write_metrics, write_timeline

install()

NAMES = {
    "smdebug": "modes SaveConfig SaveConfigMode ReductionConfig CollectionKeys __version__",
    "smdebug.pytorch": "Hook get_hook set_hook del_hook Collection CollectionKeys SaveConfig SaveConfigMode"
    " ReductionConfig modes create_trial",
    "smdebug.trials": "create_trial Trial LocalTrial S3Trial",
    "smdebug.trials.utils": "create_trial",
    "smdebug.trials.profiler_trial": "ProfilerTrial",
    "smdebug.rules": "Rule invoke_rule RequiredTensors RequiredTensorsForTrial",
    "smdebug.rules.rule": "Rule",
    "smdebug.rules.rule_invoker": "invoke_rule",
    "smdebug.rules.action": "Actions",
    "smdebug.rules.action.message_action": "MessageAction",
    "smdebug.rules.action.stop_training_action": "StopTrainingAction",
    "smdebug.exceptions": "NoMoreData StepUnavailable TensorUnavailable MissingCollectionFiles SMDebugCustomerError",
    "smdebug.analysis.utils": "no_refresh refresh parse_list_from_str parse_bool",
    "smdebug.core.modes": "ModeKeys ALLOWED_MODES",
    "smdebug.core.collection": "Collection CollectionKeys",
    "smdebug.core.collection_manager": "CollectionManager",
    "smdebug.core.writer": "FileWriter",
    "smdebug.core.reader": "FileReader",
    "smdebug.core.tensor": "StepState Tensor",
    "smdebug.core.locations": "IndexFileLocationUtils TensorFileLocation TensorLocation",
    "smdebug.core.access_layer": "TSAccessFile TSAccessS3 check_dir_exists training_has_ended has_training_ended",
    "smdebug.core.access_layer.utils": "delete_s3_prefixes check_dir_exists has_training_ended",
    "smdebug.core.access_layer.s3handler": "S3Handler ListRequest ReadObjectRequest",
    "smdebug.core.config_constants": "DEFAULT_COLLECTIONS_FILE_NAME DEFAULT_WORKER_NAME CLAIM_FILENAME",
    "smdebug.core.json_config": "create_hook_from_json_config get_json_config_as_dict CONFIG_FILE_PATH_ENV_STR",
    "smdebug.profiler.algorithm_metrics_reader": "AlgorithmMetricsReader LocalAlgorithmMetricsReader",
    "smdebug.profiler.system_metrics_reader": "SystemMetricsReader LocalSystemMetricsReader S3SystemMetricsReader",
    "smdebug.profiler.profiler_constants": "DEFAULT_PREFIX HOROVODTIMELINE_SUFFIX CPROFILE_NAME CONVERT_TO_MICROSECS",
    "smdebug.profiler.utils": "TimeUnits convert_utc_datetime_to_microseconds us_since_epoch_to_human_readable_time",
    "smdebug.core.utils": "SagemakerSimulator ScriptSimulator error_handling_agent get_logger FRAMEWORK",
    "smdebug.core.hook": "BaseHook CallbackHook",
    "smdebug.core.index_reader": "ReadIndexFilesCache",
    "smdebug.pytorch.utils": "get_reduction_of_data is_pt_1_8 is_current_version_supported",
    "smdebug.profiler": "LocalAlgorithmMetricsReader S3AlgorithmMetricsReader LocalSystemMetricsReader"
    " S3SystemMetricsReader MetricsReaderBase ProfilerSystemEvents SystemProfilerEventParser SMProfilerEvents"
    " HorovodProfilerEvents SMDataParallelProfilerEvents TraceEvent TraceEventParser",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_are_there(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def answers(python: str | Path, *arguments: object) -> dict[str, str]:
    script = Path(__file__).parents[1] / "smdebug_surface.py"
    command = [str(python), "-P", str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.smdebug
@pytest.mark.skipif(not REFERENCE.exists(), reason=f"no smdebug at {REFERENCE}; scripts/smdebug_env.sh makes it")
def test_the_same_answers_as_smdebug(tmp_path: Path) -> None:
    write_metrics(tmp_path, 3)
    write_timeline(tmp_path, 40)
    window = (tmp_path, BEGAN * 10**6, (BEGAN + 200) * 10**6)
    for arguments in ((), window):
        theirs, ours = answers(REFERENCE, *arguments), answers(sys.executable, "--ours", *arguments)
        different = {each: (theirs[each], ours[each]) for each in theirs if theirs[each] != ours[each]}
        assert theirs and different == {}


def test_what_a_writer_wrote_is_a_trial(tmp_path: Path) -> None:
    from smdebug import modes
    from smdebug.core.access_layer.utils import training_has_ended
    from smdebug.core.collection_manager import CollectionManager
    from smdebug.core.writer import FileWriter
    from smdebug.trials import create_trial

    folder = str(tmp_path / "job")
    for step in (0, 2, 5):
        with FileWriter(trial_dir=folder, step=step, worker="worker_0") as writer:
            writer.write_tensor(tdata=np.full((2, 2), step, np.float32), tname="foo", mode=modes.TRAIN, mode_step=step)
            writer.write_tensor(tdata=np.empty(0), tname="nothing")
            writer.write_shape("bar", (3, 4), mode=modes.TRAIN, mode_step=step)
    manager = CollectionManager()
    manager.get("mine").include("fo+")
    manager.export(folder, "worker_0_collections.json")
    training_has_ended(folder)
    trial = create_trial(folder)
    assert trial.steps(modes.TRAIN) == [0, 2, 5] and trial.tensor_names() == ["bar", "foo"]
    assert trial.tensor_names(collection="mine") == ["foo"] and trial.loaded_all_steps
    assert trial.tensor("foo").value(2).tolist() == [[2, 2], [2, 2]]
    assert trial.tensor("bar").shape(5) == (3, 4)
    assert trial.arrays()["foo"].values.shape == (3, 2, 2)


def test_a_trial_of_the_profiler(tmp_path: Path) -> None:
    from smdebug.exceptions import NoMoreProfilerData
    from smdebug.rules.rule import Rule
    from smdebug.rules.rule_invoker import invoke_rule
    from smdebug.trials import create_trial

    write_metrics(tmp_path, 3, gpu=12.5)
    write_timeline(tmp_path, 400)
    (tmp_path / "system" / "training_job_end.ts").touch()
    trial = create_trial(str(tmp_path), profiler=True, output_dir=str(tmp_path / "reports"))
    assert trial.first_timestamp == BEGAN * 10**6 and trial.get_latest_timestamp() == (BEGAN + 120) * 10**6
    assert trial.job_finished() and trial.temp_dir.endswith(".sagemaker-ignore")

    class LowGpu(Rule):
        """As rules of the profiler are written: a window of a minute for each step."""

        def __init__(self, base_trial) -> None:
            super().__init__(base_trial)
            self.seen: list[float] = []

        def invoke_at_step(self, step: int) -> bool:
            return False

        def invoke(self, step: int) -> None:
            start = self.base_trial.first_timestamp + step * 60 * 10**6
            self.base_trial.wait_for_data(start + 60 * 10**6, start)
            events = self.base_trial.get_system_metrics(start, start + 60 * 10**6 - 1)
            self.seen += [event.value for event in events if event.dimension == "GPUUtilization"]

    rule = LowGpu(trial)
    invoke_rule(rule)  # ends with the data
    assert len(rule.seen) == 2 * 120 and set(rule.seen) == {12.5}
    with pytest.raises(NoMoreProfilerData):
        trial.wait_for_data((BEGAN + 9000) * 10**6, (BEGAN + 8940) * 10**6)
    steps = [event for event in trial.get_framework_metrics(0, 1 << 60) if event.event_name.startswith("Step:")]
    assert len(steps) == 400 and steps[3].event_args["step_num"] == "3"


def test_files_in_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from smdebug.core.access_layer import TSAccessS3, check_dir_exists, training_has_ended
    from smdebug.core.access_layer.s3handler import ListRequest, ReadObjectRequest, S3Handler
    from smdebug.core.access_layer.utils import delete_s3_prefixes
    from smdebug.core.writer import FileWriter

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="jobs")
        with FileWriter(trial_dir="s3://jobs/one", step=0, worker="worker_0") as writer:
            writer.write_tensor(tdata=np.ones(3), tname="foo")
        keys = S3Handler.list_prefix(ListRequest("jobs", "one/"))
        assert [key.rpartition("/")[2] for key in keys] == [
            "000000000000_worker_0.tfevents",
            "000000000000_worker_0.json",
        ]
        assert S3Handler.get_object(ReadObjectRequest("s3://jobs/none")) is None
        assert len(S3Handler.get_objects([ReadObjectRequest(f"s3://jobs/{keys[0]}", 8, 4)])[0] or b"") == 4
        assert not check_dir_exists("s3://jobs/one")
        training_has_ended("s3://jobs/one")
        assert check_dir_exists("s3://jobs/one")
        file = TSAccessS3("jobs", "one/text", binary=False)
        file.write("abc")
        file.close()
        again = TSAccessS3("jobs", "one/text", binary=False)
        again.ingest_all()
        assert again.read(2) == "ab" and again.has_data()
        delete_s3_prefixes("jobs", ["one"])
        assert S3Handler.list_prefix(ListRequest("jobs", "")) == []
    finally:
        server.stop()


def test_the_signal_to_end_a_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from smdebug.core.access_layer import is_rule_signalled_gracetime_passed

    signal = tmp_path / "stop"
    monkeypatch.setenv("SAGEMAKER_ENV_RULE_STOP_SIGNAL_FILE", str(signal))
    assert not is_rule_signalled_gracetime_passed(str(tmp_path))
    signal.write_text(str(time.time()))
    assert not is_rule_signalled_gracetime_passed(str(tmp_path))
    signal.write_text(str(time.time() - 100))
    assert is_rule_signalled_gracetime_passed(str(tmp_path))


def test_what_a_hook_says_of_the_open_step(tmp_path: Path) -> None:
    import smdebug.pytorch as smd
    import torch

    model = torch.nn.Linear(2, 1)
    config = smd.SaveConfig({smd.modes.TRAIN: smd.SaveConfigMode(save_interval=2)})
    hook = smd.Hook(str(tmp_path / "run"), save_config=config, include_collections=["weights"])
    try:
        hook.register_module(model)
        hook.set_mode(smd.modes.TRAIN)
        said = []
        for _ in range(3):
            model(torch.zeros(1, 2)).sum().backward()
            said.append(hook.should_save_tensor_or_collection("Linear_weight", "weights"))
        assert said == [True, False, True]
        assert not hook.should_save_tensor_or_collection("Linear_bias", "biases")
        assert hook.mode_steps == {smd.modes.TRAIN: 2, smd.modes.GLOBAL: 2} and hook.step == 2
        assert hook.count_parameters(model) == 3 and not hook.has_default_configuration()
    finally:
        hook.close()
        smd.del_hook()


def test_a_trial_of_the_job_that_runs_here_has_every_step_that_ended(tmp_path: Path) -> None:
    import smdebug.pytorch as smd
    import torch
    from smdebug.trials import create_trial

    model = torch.nn.Linear(2, 1)
    hook = smd.Hook(str(tmp_path / "run"), save_config=smd.SaveConfig(save_interval=1), include_collections=["weights"])
    try:
        hook.register_module(model)
        trial = None
        for step in range(4):
            model(torch.zeros(1, 2)).sum().backward()
            trial = trial or create_trial(str(tmp_path / "run"))
            assert trial.steps() == list(range(step))
        hook.close()
        assert trial is not None and trial.steps() == [0, 1, 2, 3]
        assert hook.get_collection("weights").tensor_names == {"Linear_weight"}
    finally:
        hook.close()
        smd.del_hook()


def test_trials_stay_as_they_are_where_a_rule_wants_it(tmp_path: Path) -> None:
    from smdebug.analysis.utils import no_refresh, refresh
    from smdebug.trials import create_trial

    folder = tmp_path / "job"
    write_steps(folder, [0, 1])
    trial = create_trial(str(folder))
    with no_refresh([trial]) as [same]:
        write_steps(folder, [2])
        assert same is trial and trial.steps() == [0, 1] == trial.tensor("foo").steps()
        with refresh(trial):
            assert trial.steps() == [0, 1, 2]
        write_steps(folder, [3])
        assert trial.steps() == [0, 1, 2]
    assert trial.steps() == [0, 1, 2, 3]


def test_collections_of_a_trial_can_be_added_to(tmp_path: Path) -> None:
    from smdebug.trials import create_trial

    folder = tmp_path / "job"
    write_steps(folder, [0], names=("foo_1", "foo_2", "bar_1", "bar_2"))
    trial = create_trial(str(folder))
    trial.collection("mine").include("foo")
    trial.collection("mine").add_tensor_name("bar_2")
    trial.collection("mine").add_tensor_name("never")
    assert trial.tensor_names(collection="mine") == ["bar_2", "foo_1", "foo_2"]
    assert trial.tensor_names(collection=trial.collection("mine"), step=0) == ["bar_2", "foo_1", "foo_2"]
    assert trial.tensor_names(collection="default") == ["bar_1", "bar_2", "foo_1", "foo_2"]


def test_the_oldest_of_too_many_incomplete_steps_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smdebug.trials import create_trial

    monkeypatch.setenv("SMDEBUG_INCOMPLETE_STEP_WAIT_WINDOW", "4")
    folder = tmp_path / "job"
    write_steps(folder, range(8), workers=2)
    trial = create_trial(str(folder))
    assert trial.steps() == [0, 1, 2, 3] and trial.last_complete_step == 3 and trial.num_workers == 2
    assert trial.steps(show_incomplete_steps=True) == list(range(8))
    assert trial.last_index_token == str(folder / "index" / "000000000" / "000000000003_worker_1.json")


def write_steps(folder: Path, steps: Iterable[int], names: tuple[str, ...] = ("foo",), workers: int = 1) -> None:
    """What the first of some workers saves at some steps, and the collections of all."""
    from smdebug.core.collection_manager import CollectionManager
    from smdebug.core.writer import FileWriter

    for worker in range(workers):
        manager = CollectionManager()
        manager.get("default").include("foo|bar")
        manager.set_num_workers(workers)
        manager.export(str(folder), f"worker_{worker}_collections.json")
    for step in steps:
        with FileWriter(str(folder), "worker_0", step) as writer:
            for name in names:
                writer.write_tensor(tdata=np.full(2, step, np.float32), tname=name)


def test_an_error_ends_the_recording_and_not_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    from smdebug.core.error_handling_agent import BASE_ERROR_MESSAGE
    from smdebug.core.logger import get_logger
    from smdebug.core.utils import error_handling_agent

    @error_handling_agent.catch_smdebug_errors(default_return_val=lambda number: -number)
    def half(number: int) -> int:
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(f"{record.getMessage()} {record.exc_info[1]}")  # type: ignore[index,method-assign]
    get_logger().addHandler(listener)
    try:
        assert half(4) == 2 and not error_handling_agent.disable_smdebug
        assert half(3) == -3 and error_handling_agent.disable_smdebug
        assert half(4) == -4
        assert said == [f"{BASE_ERROR_MESSAGE} 3 is odd"]
    finally:
        error_handling_agent.disable_smdebug = False
        get_logger().removeHandler(listener)


def test_a_container_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import smdebug.pytorch as smd
    from smdebug.core.utils import SagemakerSimulator, ScriptSimulator

    for name in ("DEFAULT_SAGEMAKER_OUTDIR", "DEFAULT_SAGEMAKER_TENSORBOARD_PATH"):
        monkeypatch.setattr(f"stepwatch.rules.smdebug.core.simulation.{name}", str(tmp_path / name))
    contents = json.dumps({"LocalPath": str(tmp_path / "tensors"), "HookParameters": {"save_interval": 7}})
    with SagemakerSimulator(str(tmp_path / "hook.json"), str(tmp_path / "tb"), json_file_contents=contents) as job:
        smd.del_hook()
        hook = smd.get_hook(create_if_not_exists=True)
        assert hook is not None and hook.tensorboard_dir == job.tensorboard_dir
        assert hook.save_config.get_save_config(smd.modes.TRAIN).save_interval == 7
        hook.close()
        smd.del_hook()
    assert "TRAINING_JOB_NAME" not in os.environ and not (tmp_path / "hook.json").exists()
    with ScriptSimulator(str(tmp_path / "script")) as script:
        hook = smd.Hook(out_dir=script.out_dir, export_tensorboard=True)
        hook.close()
        assert hook.tensorboard_dir == os.path.join(script.out_dir, "tensorboard")
    smd.del_hook()
    assert not (tmp_path / "script").exists()


def test_star_imports_have_the_hook() -> None:
    names: dict[str, object] = {}
    exec("from smdebug.pytorch.hook import *\nfrom smdebug.pytorch.collection import *", names)
    assert {"Hook", "Collection", "CollectionKeys"} <= names.keys()
