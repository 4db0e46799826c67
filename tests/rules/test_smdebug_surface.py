"""The names that scripts import from smdebug, and that what lies behind them answers as smdebug does."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
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
