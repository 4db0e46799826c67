"""What smdebug's smaller modules answer: run by smdebug's own Python, and by ours, which must say the same.

Prints a JSON object: expression -> what it is, or which exception it raises.
"""

from __future__ import annotations

import json
import sys

IMPORTS = """
import os, tempfile
import numpy as np
from smdebug.analysis.utils import parse_bool, parse_list_from_str
from smdebug.core.access_layer import TSAccessFile, check_dir_exists, has_training_ended, training_has_ended
from smdebug.core.access_layer.file import get_temp_path
from smdebug.core.access_layer.utils import file_exists, is_rule_signalled_gracetime_passed
from smdebug.core.collection import *
from smdebug.core.collection_manager import CollectionManager
from smdebug.core.config_constants import *
from smdebug.core.hook_utils import get_tensorboard_dir, verify_and_get_out_dir
from smdebug.core.json_config import *
from smdebug.core.locations import *
from smdebug.core.logger import LOG_DUPLICATION_THRESHOLD
from smdebug.core.modes import ALLOWED_MODE_NAMES, ALLOWED_MODES, ModeKeys, str_to_mode_keys
from smdebug.core.reader import FileReader
from smdebug.core.reduction_config import ReductionConfig
from smdebug.core.reductions import *
from smdebug.core.sagemaker_utils import is_sagemaker_job
from smdebug.core.save_config import SaveConfig, SaveConfigMode
from smdebug.core.utils import *
from smdebug.core.tfevent.timeline_file_writer import TimelineFileWriter
from smdebug.core.writer import FileWriter
from smdebug.profiler import *
from smdebug.profiler.analysis.utils.merge_timelines import MergedTimeline, MergeUnit
from smdebug.profiler.analysis.utils.pandas_data_analysis import PandasFrameAnalysis, Resource, StatsBy
from smdebug.profiler.analysis.utils.profiler_data_to_pandas import PandasFrame
from smdebug.profiler.system_profiler_file_parser import ProfilerSystemEvent
from smdebug.profiler.profiler_config_parser import MetricsCategory, ProfilerConfigParser
from smdebug.profiler.utils import *
from smdebug.trials import create_trial

D = tempfile.mkdtemp()
A = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)

def write():
    with FileWriter(trial_dir=D + "/job", step=3, worker="worker_0") as writer:
        writer.write_tensor(tdata=A, tname="a", mode=ModeKeys.TRAIN, mode_step=2)
        writer.write_tensor(tdata=5.0, tname="b", mode=ModeKeys.TRAIN, mode_step=2)
        writer.write_tensor(tdata=["x", "y"], tname="c", mode=ModeKeys.TRAIN, mode_step=2)
        writer.write_shape("d", (2, 3), mode=ModeKeys.TRAIN, mode_step=2)
        return writer.name().replace(D, "")

def read():
    path = D + "/job/events/000000000003/000000000003_worker_0.tfevents"
    return [(n, s, v.tolist(), m.name, k) for n, s, v, m, k in FileReader(path).read_tensors()]

def text_of(path):
    with open(D + path) as file:
        return file.read()

def load(text):
    return CollectionManager.load_from_string(text)

def configured():
    parameters = {"CollectionName": "weights", "CollectionParameters": {"reductions": "min", "save_interval": "3"}}
    content = {"LocalPath": "/x", "HookParameters": {"save_all": "true", "save_steps": "1,2", "include_regex": "a, b"}}
    content["CollectionConfigurations"] = [parameters, {"CollectionName": "mine", "CollectionParameters": None}]
    found, manager = collect_hook_config_params(content), CollectionManager()
    add_collections_to_manager(manager, content, found)
    modes = {mode.name: config for mode, config in found.pop("save_config_modes").items()}
    return sorted(map(str, found.items())), modes, manager.to_json_dict(), get_include_collections({})

def incomplete(end):
    folder = tempfile.mkdtemp()
    for worker in ("worker_0", "worker_1", "worker_2"):
        manager = CollectionManager()
        manager.get("default").include("x")
        manager.set_num_workers(3)
        manager.export(folder, worker + "_collections.json")
        for step in (0, 1, 3) if worker == "worker_1" else (0, 1, 3, 5, 6):
            with FileWriter(trial_dir=folder, step=step, worker=worker) as writer:
                writer.write_tensor(tdata=1.0, tname="x")
    if end:
        training_has_ended(folder)
    trial = create_trial(folder)
    trial.steps()
    states = [trial.has_passed_step(step).name for step in (1, 2, 3, 4, 5, 9)]
    steps = trial.steps(), trial.steps(show_incomplete_steps=True), trial.last_complete_step, trial.loaded_all_steps
    return states, steps, trial.workers(), trial.num_workers, trial.last_index_token.replace(folder, "")

def profiled(part="Detailed", **config):
    path, category = D + "/profiler.json", MetricsCategory.__members__[part.upper() + "_PROFILING"]
    with open(path, "w") as file:
        json.dump({"ProfilingParameters": {"LocalPath": D + "/out", part + "ProfilingConfig": str(config)}}, file)
    os.environ["SMPROFILER_CONFIG_PATH"] = path
    parser = ProfilerConfigParser(FRAMEWORK.PYTORCH)
    found = getattr(parser.config, part.lower() + "_profiling_config")
    saved = [step for step in range(8) if parser.should_save_metrics(category, step, "name", current_time=105)]
    known = {key: value for key, value in vars(found).items() if key not in ("name", "error_message")}
    return saved, found.is_enabled(), sorted((key, str(value)) for key, value in known.items() if value is not None)

def timeline():
    profiled()
    writer = TimelineFileWriter(ProfilerConfigParser(FRAMEWORK.PYTORCH))
    writer.write_trace_events(1.7e9, "Step", "one", duration=0.5, step_num=3)
    writer.write_trace_events(1.7e9 + 1, "Step", "two", "B")
    writer.write_trace_events(1.7e9 + 2, "Step", "two", "E")
    writer.write_trace_events(1.7e9 + 3, "Other", "three", "i", s="g")
    writer.flush()
    writer.close()
    reader = LocalAlgorithmMetricsReader(D + "/out")
    reader.refresh_event_file_list()
    events = reader.get_events(0, 1 << 60)
    return sorted((e.event_name, e.event_phase, e.start_time, e.duration, str(e.event_args)) for e in events)

def frames(path):
    frame = PandasFrame(path)
    return frame, frame.get_all_system_metrics(), frame.get_all_framework_metrics()

def plain(table):
    table = table.drop(columns="tid", errors="ignore")  # there a hash of the host's name
    rows = [table.columns, *table.itertuples(index=False)]
    return [tuple(str(getattr(v, "item", lambda: v)()) for v in row) for row in rows]

def asked(path, method, *args, **options):
    return plain(getattr(PandasFrameAnalysis(*frames(path)[1:]), method)(*args, **options))

def moments(path, *which):
    return frames(path)[2]["start_time"].iloc[list(which)].tolist()

def merged(path, *limits, **options):
    file = MergedTimeline(path, output_directory=D).merge_timeline(*limits, **options)
    with open(file) as stream:
        entries = json.load(stream)
    tracks = {e["pid"]: e["args"]["name"] for e in entries if e["name"] == "process_name"}
    return os.path.basename(file).split("_")[0], sorted(tracks.values())[:3], [
        (e["name"], tracks[e["pid"]], e["ph"], e["ts"], e.get("dur"), e.get("args")) for e in entries if e["ph"] == "X"
    ]

def access():
    file = TSAccessFile(D + "/f/one.txt", "w")
    before = os.path.exists(D + "/f/one.txt")
    file.write("abc")
    file.close()
    return before, text_of("/f/one.txt"), os.listdir(D + "/f")
"""

EXPRESSIONS = """
write()
read()
json.loads(text_of("/job/index/000000000/000000000003_worker_0.json"))
access()
is_s3("s3://b/p/q"), is_s3("/a/b"), is_s3("s3://b"), is_s3("")
match_inc("abc", ["b", "z"]), match_inc("abc", ["z"]), match_inc("abc", [])
flatten([1, [2, [3, (4, 5)]]]), flatten([])
split("a, b,c ,")
merge_two_dicts({"a": 1}, {"a": 2, "b": 3})
index([1, 3, 5], 3)
index([1, 3, 5], 4)
step_in_range((1, 4), 1), step_in_range((1, 4), 4), step_in_range((None, 4), -5), step_in_range((2, None), 1)
get_path_to_collections("x/y")
get_relative_event_file_path("/x/y/events/000000000001/000000000001_worker_0.tfevents")
get_worker_name_from_collection_file("/a/collections/000000000/worker_0_collections.json")
get_worker_name_from_collection_file("/a/collections/000000000/__job-worker_device-GPU-0_collections.json")
parse_worker_name_from_file("/x/events/000000000001/000000000001_worker_12.tfevents")
parse_worker_name_from_file("/x/index/000000000/000000000001_algo-1.json")
serialize_tf_device("/job:worker/replica:0/device:GPU:0"), deserialize_tf_device("_job-worker_replica-0_device-GPU-0")
size_and_shape(A)
[make_numpy_array(v).tolist() for v in (3, [1, 2.5], (1, 2), "abc")], make_numpy_array(3).shape
ensure_dir(D + "/q/r.txt"), os.path.isdir(D + "/q"), os.path.exists(D + "/q/r.txt")
get_immediate_subdirectories(D + "/q")
load_json_as_dict('{"a": 1}'), load_json_as_dict(None)
load_json_as_dict("")
is_first_process(D + "/claim"), is_first_process(D + "/claim"), remove_claim_file(D + "/claim")
[each.value for each in FRAMEWORK]
TensorLocation("t", ModeKeys.TRAIN, 3, "e.tf", 5, 7, "worker_0").to_dict()
TensorShape("t", ModeKeys.TRAIN, 3, (2, 3)).to_dict(), TensorShape("t", ModeKeys.TRAIN, 3, (2, 3), "o").to_dict()
TensorFileLocation(3, "worker_1").get_file_location("/tr"), TensorFileLocation(3, "worker_1").get_filename()
TensorFileLocation.get_dir("/tr"), TensorFileLocation.get_step_dir_path("/tr", 12)
TensorFileLocation.get_step_dirs(D + "/job")
TensorboardFileLocation(3, "worker_1", ModeKeys.TRAIN).get_file_location("/tb")
IndexFileLocationUtils.get_index_prefix_for_step(12345), IndexFileLocationUtils.next_index_prefix_for_step(12345)
IndexFileLocationUtils.get_index_key_for_step("/tr", 12345, "worker_0"), IndexFileLocationUtils.get_index_path("/tr")
IndexFileLocationUtils.parse_step_from_index_file_name("index/000000012/000000012345_worker_0.json")
IndexFileLocationUtils.get_prefix_from_index_file("/tr/index/000000012/000000012345_worker_0.json")
[float(get_numpy_reduction(name, A, abs=True)) for name in (*ALLOWED_REDUCTIONS, *ALLOWED_NORMS)]
[float(get_numpy_reduction(name, A)) for name in (*ALLOWED_REDUCTIONS, *ALLOWED_NORMS)]
get_numpy_reduction("median", A)
get_basic_numpy_reduction("foo", A)
get_reduction_tensor_name("a:0", "mean", True), get_reduction_tensor_name("a:0", "l2", False, remove_colon_index=False)
reverse_reduction_tensor_name("smdebug/reductions/abs_mean/a/b")
ALLOWED_MODE_NAMES, [mode.name for mode in ALLOWED_MODES]
check_dir_exists(D + "/none"), check_dir_exists(D + "/job"), has_training_ended(D + "/job")
training_has_ended(D + "/job"), has_training_ended(D + "/job"), check_dir_exists(D + "/job")
file_exists(D + "/job/training_job_end.ts"), is_rule_signalled_gracetime_passed(D + "/job")
get_temp_path("/a/b.txt")
is_sagemaker_job()
parse_list_from_str("a, b,c"), parse_list_from_str(None), parse_list_from_str(["a"]), parse_list_from_str("a;b", ";")
parse_bool("True", False), parse_bool("false", True), parse_bool(None, True)
parse_bool("yes", False)
Collection("c", ["a", "b"], ["z", "y"]).to_json_dict()
Collection("c", tensor_names="abc")
Collection("c").include(3)
Collection("c") == Collection("c", "a"), Collection("c") == Collection("c")
Collection.from_json(Collection("c", save_config=SaveConfig(save_interval=3)).to_json()).to_json_dict()
Collection.from_dict({"name": "c", "foo": 1}).name
sorted(SCALAR_COLLECTIONS), sorted(SM_METRIC_COLLECTIONS), sorted(NON_REDUCTION_COLLECTIONS)
sorted(DEFAULT_PYTORCH_COLLECTIONS)
CollectionManager().get_collections(), CollectionManager().get_num_workers(), CollectionManager().get("x").name
CollectionManager().get("x", create=False)
CollectionManager().export(D, "w_collections.json"), json.loads(text_of("/collections/000000000/w_collections.json"))
CollectionManager.load(D + "/collections/000000000/w_collections.json").to_json_dict()
load('{"collections": {"a": {"name": "a", "include_regex": ["x"]}}, "_meta": {"num_workers": 3}}').to_json_dict()
CollectionManager.load_from_string('{"foo": 1}')
SaveConfigMode(save_interval="2", start_step="1", end_step="9").to_json_dict()
[step for step in range(12) if SaveConfigMode(save_interval=5, start_step=2, save_steps=[3, 11]).should_save_step(step)]
SaveConfigMode(save_steps="1")
SaveConfigMode(save_steps=["1"])
SaveConfig.from_save_config_mode(SaveConfigMode(save_interval=7)).to_json_dict()
SaveConfig({ModeKeys.TRAIN: SaveConfigMode(save_interval=7)}).to_json_dict()
SaveConfig({ModeKeys.TRAIN: 3})
SaveConfig.parse(3)
sorted(map(str, SaveConfig.parse({ModeKeys.EVAL: SaveConfigMode(save_interval=2)}).to_json_dict().items()))
SaveConfig.from_dict({"TRAIN": {"save_interval": 3}}).to_json_dict()
SaveConfig(save_interval=3) == SaveConfig(save_interval=3), SaveConfig(save_interval=3) != SaveConfig(save_interval=4)
ReductionConfig(["min"], ["max"], ["l1"], ["l2"], True, True).to_json_dict()
ReductionConfig.from_dict({"reductions": "min,abs_max,l1_norm,abs_l2_norm"}).to_json_dict()
ReductionConfig.from_dict({"reductions": "foo"})
ReductionConfig(norms=["l3"])
ReductionConfig(save_raw_tensor=1)
verify_and_get_out_dir(None)
verify_and_get_out_dir("~/abc") == os.path.expanduser("~/abc")
verify_and_get_out_dir(D + "/job")
get_tensorboard_dir(False, None, "/o"), get_tensorboard_dir(True, None, "/o"), get_tensorboard_dir(True, "/t", "/o")
get_include_collections({"CollectionConfigurations": [{"CollectionName": "a"}, {"CollectionName": "b"}]})
parse_save_config_dict({"save_interval": "2", "train.save_steps": "1,2"})
parse_save_config_dict({"save_interval": "2", "train.save_steps": "1,2"}, mode=ModeKeys.TRAIN)
{m.name: c for m, c in parse_save_config_modes_dict({"save_interval": "2", "train.save_interval": "3"}).items()}
get_json_config_as_dict("/nope")
configured()
str_to_mode_keys("eval").name, parse_bool(arg="true", default=False), match_inc(tname="ab", include=["b"])
validate_custom_tensor_value(3, make_numpy_array), validate_custom_tensor_value({1}, make_numpy_array)
make_numpy_array({1})
load_json_as_dict(3)
is_framework_version_supported(FRAMEWORK.PYTORCH), check_smmodelparallel_training(), check_smdataparallel_env()
get_aws_region_from_processing_job_arn("arn:aws:sagemaker:us-east-1:1:processing-job/x"), LOG_DUPLICATION_THRESHOLD
incomplete(end=False)
incomplete(end=True)
SaveConfig.from_dict({"TRAIN": {"start_step": 3}}, {"save_interval": 7}).to_json_dict()["TRAIN"]
profiled(StartStep=3, NumSteps=2), profiled(NumSteps=1), profiled(StartTimeInSecSinceEpoch=100, DurationInSeconds=9)
profiled(StartStep=3, DurationInSeconds=2), profiled(StartStep="x"), profiled(), profiled(StartTimeInSecSinceEpoch=100)
profiled("Python", StartStep=3, ProfilerName="pyinstrument"), profiled("Python", StartStep=3, cProfileTimer="no")
profiled("Python", StartStep=3, cProfileTimer="cpu_time"), profiled("Dataloader", StartStep=3, MetricsRegex="No")
profiled(StartStep=0), profiled(StartStep="0", NumSteps=2), profiled(StartStep=0, DurationInSeconds=9)
profiled("Dataloader", StartStep=3, MetricsRegex="*"), profiled("SMDataparallel", NumSteps=3)
timeline()
str2bool("yes"), str2bool(False), us_since_epoch_to_human_readable_time(1590461127873222)
sorted(DEFAULT_TF_COLLECTIONS), sorted(DEFAULT_MXNET_COLLECTIONS), sorted(DEFAULT_XGBOOST_COLLECTIONS)
CLAIM_FILENAME, DEFAULT_WORKER_NAME, DEFAULT_COLLECTIONS_FILE_NAME, DEFAULT_SAGEMAKER_OUTDIR, CONFIG_FILE_PATH_ENV_STR
[(unit.name, unit.value) for unit in TimeUnits]
convert_utc_timestamp_to_nanoseconds(5), convert_utc_timestamp_to_microseconds(5, TimeUnits.SECONDS)
is_valid_tracefilename("/a/framework/pevents/2020111111/1590461127873222_0001-algo-1_model_timeline.json")
is_valid_tracefilename("1590461127873222_x.json")
validate_system_profiler_file("/a/system/incremental/1591160699.algo-1.json")
get_node_id_from_system_profiler_filename("/a/system/incremental/2020111111/1591160699.algo-1.json")
get_utctimestamp_us_since_epoch_from_system_profiler_file("/a/system/incremental/1591160699.algo-1.json")
vars(ProfilerSystemEvent("cpu", "cpu0", "CPUUtilization", 5.0, "algo-1", 1.5))
sorted(map(str, vars(TraceEvent(5, "n", 3, 1, 2, {"step_num": "1"}, "algo-1", "X", "f")).items()))
json.loads(TraceEvent(5, "n", 3, 1, 2, {"step_num": "1"}, "algo-1", "X", "f").to_json())
"""

PROFILER = """
[vars(event) for event in system.get_events(first, last)[:3]]
len(system.get_events(first, last)), len(system.get_events(first, last, event_type="gpu"))
len(system.get_events(first // 10**6, first // 10**6 + 60, unit=TimeUnits.SECONDS))
system.get_timestamp_of_first_available_file(), system.get_timestamp_of_latest_available_file()
sorted((e.event_name, e.start_time, e.end_time) for e in timeline.get_events(first + 10**6, first + 2 * 10**6))
sorted((e.node_id, e.event_phase, e.phase, e.duration, e.file_type) for e in timeline.get_events(first, first + 10**6))
len(timeline.get_events_by_step(3, 5)), len(timeline.get_events(first, last))
timeline.get_timestamp_of_first_available_file(), timeline.get_timestamp_of_latest_available_file()
merged(folder, first, first + 3 * 10**6)
merged(folder, 4, 7, unit=MergeUnit.STEP)
merged(folder, 4, 7, unit="step")
[e.start_time for e in timeline.get_events_by_step(30, 90)]
[plain(table) for table in frames(folder)[1:]]
[plain(table) for table in frames(folder)[0].get_profiler_data_by_step(3, 5)]
plain(frames(folder)[0].get_all_dataloader_metrics(["Step", "ne.t"]))
frames(folder)[0].get_framework_metrics_by_timesteps(moments(folder, 5, 12, 31))
frames(folder)[0].get_framework_metrics_by_begin_and_end_timesteps(moments(folder, 1, 9), moments(folder, 6, 17))
asked(folder, "get_step_statistics"), asked(folder, "get_step_statistics", by=StatsBy.PROCESS)
asked(folder, "get_step_statistics", StatsBy.FRAMEWORK_METRICS)
PandasFrameAnalysis(*frames(folder)[1:]).get_step_statistics(by="training_phase")
asked(folder, "get_utilization_stats"), asked(folder, "get_utilization_stats", resource=Resource.GPU)
asked(folder, "get_utilization_stats", by=StatsBy.TRAINING_PHASE, phase="Step:ModeKeys.TRAIN")
asked(folder, "get_training_phase_intervals"), asked(folder, "get_training_phase_intervals", ["Step:ModeKeys.TRAIN"])
asked(folder, "get_device_usage_stats"), asked(folder, "get_device_usage_stats", Resource.CPU, [(0, 95), (95, 100)])
plain(PandasFrameAnalysis(*frames(folder)[1:]).get_device_usage_stats(utilization_ranges=[]))
PandasFrameAnalysis(*frames(folder)[1:]).get_job_statistics()["initialization"]
"""


def main() -> None:
    names: dict = {"json": json}
    exec(IMPORTS, names)
    expressions = EXPRESSIONS
    if len(sys.argv) > 1:
        names.update(
            system=names["LocalSystemMetricsReader"](sys.argv[1]),
            timeline=names["LocalAlgorithmMetricsReader"](sys.argv[1]),
            folder=sys.argv[1],
            first=int(sys.argv[2]),
            last=int(sys.argv[3]),
        )
        for reader in ("system", "timeline"):
            names[reader].refresh_event_file_list()
        expressions = PROFILER
    answers = {}
    for expression in expressions.strip().splitlines():
        try:
            answers[expression] = repr(eval(expression, names)).replace(names["D"], "D")
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answers[expression] = next(kind for kind in kinds if kind in ("ValueError", "TypeError", *kinds[-3:]))
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    if "smdebug" not in sys.modules and "--ours" in sys.argv:
        sys.argv.remove("--ours")
        from stepwatch.rules.smdebug import install

        install()
    main()
