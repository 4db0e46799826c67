"""Which names smdebug's modules have here, and where they come from."""

from __future__ import annotations

import importlib
from typing import Any

_CORE = "stepwatch.rules.smdebug.core"
_ACCESS, _LOCATIONS, _WRITING = f"{_CORE}.access", f"{_CORE}.locations", f"{_CORE}.writing"
_UTILS, _CONSTANTS, _FILES = f"{_CORE}.utils", f"{_CORE}.constants", f"{_CORE}.configuration"
_MANAGERS = f"{_CORE}.managers"
_LOGGER, _GUARDING, _JOB = f"{_CORE}.logger", f"{_CORE}.guarding", f"{_CORE}.job"
_SIMULATION = f"{_CORE}.simulation"
_PLACES = "stepwatch.probe.smdebug.places"
_PROFILER_CONFIG = "stepwatch.probe.smdebug.profiler_config"
_PYTHON, _TIMELINE = "stepwatch.probe.smdebug.python_profiler", "stepwatch.probe.smdebug.timeline"
_PROFILES, _FRAMES = "stepwatch.rules.smdebug.python_profiles", "stepwatch.rules.smdebug.frames"
_PROFILING = "stepwatch.rules.smdebug.profiling"
_READING = "stepwatch.rules.smdebug.profiler_trial"
_RULES = "stepwatch.rules.smdebug.rule"
_ACTIONS = "stepwatch.rules.smdebug.action"
_TRIALS = "stepwatch.rules.smdebug.trials"
_HELPERS = "stepwatch.rules.smdebug.helpers"
_EXCEPTIONS = "stepwatch.rules.smdebug.exceptions"
_SAVING = "stepwatch.probe.smdebug.configuration"
_COLLECTIONS = "stepwatch.probe.smdebug.collection"
_HOOK = "stepwatch.probe.smdebug.hook"
_CONFIGURATION = {
    "stepwatch.probe.mode_keys": "modes ModeKeys",
    _SAVING: "SaveConfig SaveConfigMode ReductionConfig",
    _COLLECTIONS: "Collection CollectionKeys",
}

MODULES: dict[str, dict[str, str]] = {
    "smdebug": _CONFIGURATION,
    "smdebug.modes": {"stepwatch.probe.mode_keys": "modes ModeKeys"},
    "smdebug.exceptions": {_EXCEPTIONS: "*", "stepwatch.probe.mode_keys": "modes ModeKeys"},
    "smdebug.trials.profiler_trial": {_READING: "ProfilerTrial"},
    "smdebug.trials": {_TRIALS: "create_trial LocalTrial S3Trial", "stepwatch.rules.trial": "Trial"},
    "smdebug.trials.local_trial": {_TRIALS: "LocalTrial"},
    "smdebug.trials.s3_trial": {_TRIALS: "S3Trial"},
    "smdebug.trials.trial": {
        "stepwatch.rules.trial": "Trial",
        _CONSTANTS: "INCOMPLETE_STEP_WAIT_WINDOW_DEFAULT INCOMPLETE_STEP_WAIT_WINDOW_KEY REDUCTIONS_PREFIX"
        " TRAINING_END_DELAY_REFRESH_DEFAULT TRAINING_END_DELAY_REFRESH_KEY",
    },
    "smdebug.trials.utils": {_TRIALS: "create_trial"},
    "smdebug.rules": {_RULES: "Rule invoke_rule RequiredTensors RequiredTensorsForTrial"},
    "smdebug.rules.rule": {_RULES: "Rule"},
    "smdebug.rules.rule_invoker": {_RULES: "invoke_rule"},
    "smdebug.rules.req_tensors": {_RULES: "RequiredTensors RequiredTensorsForTrial"},
    "smdebug.rules.action": {_ACTIONS: "Actions"},
    "smdebug.rules.action.action": {_ACTIONS: "Actions MessageAction StopTrainingAction ALLOWED_ACTIONS"},
    "smdebug.rules.action.message_action": {_ACTIONS: "MessageAction"},
    "smdebug.rules.action.stop_training_action": {_ACTIONS: "StopTrainingAction"},
    "smdebug.analysis": {},
    "smdebug.analysis.utils": {_HELPERS: "no_refresh refresh parse_bool parse_list_from_str"},
    "smdebug.core": {},
    "smdebug.core.access_layer": {
        _ACCESS: "TSAccessFile TSAccessS3 check_dir_exists has_training_ended training_has_ended"
        " is_rule_signalled_gracetime_passed",
        _CONSTANTS: "DEFAULT_GRACETIME_FOR_RULE_STOP_SEC ENV_RULE_STOP_SIGNAL_FILENAME",
    },
    "smdebug.core.access_layer.file": {
        _ACCESS: "TSAccessFile WRITE_MODES get_temp_path",
        _CONSTANTS: "SMDEBUG_TEMP_PATH_SUFFIX",
    },
    "smdebug.core.access_layer.s3": {_ACCESS: "TSAccessS3"},
    "smdebug.core.access_layer.s3handler": {
        _ACCESS: "S3Handler ListRequest ReadObjectRequest DeleteRequest",
        _UTILS: "is_s3",
    },
    "smdebug.core.access_layer.utils": {
        _ACCESS: "check_dir_exists delete_s3_prefixes file_exists has_training_ended training_has_ended"
        " is_rule_signalled_gracetime_passed",
        _CONSTANTS: "END_OF_JOB_FILENAME DEFAULT_GRACETIME_FOR_RULE_STOP_SEC ENV_RULE_STOP_SIGNAL_FILENAME",
    },
    "smdebug.core.config_constants": {_CONSTANTS: "*", _PLACES: "DEFAULT_RESOURCE_CONFIG_FILE"},
    "smdebug.core.hook_utils": {_FILES: "verify_and_get_out_dir get_tensorboard_dir"},
    "smdebug.core.json_config": {
        _FILES: "add_collections_to_manager collect_hook_config_params create_hook_from_json_config"
        " get_include_collections get_json_config_as_dict"
        " get_tensorboard_dir_from_json_config is_sagemaker_job parse_save_config_dict parse_save_config_modes_dict",
        _CONSTANTS: "CONFIG_COLLECTION_CONFIG_KEY CONFIG_COLLECTION_NAME_KEY CONFIG_COLLECTION_PARAMS_KEY"
        " CONFIG_FILE_PATH_ENV_STR CONFIG_HOOK_PARAMS_KEY CONFIG_INCLUDE_REGEX_KEY CONFIG_INCLUDE_WORKERS_KEY"
        " CONFIG_OUTDIR_KEY CONFIG_RDN_CFG_KEY CONFIG_REDUCTION_CONFIGS_KEY CONFIG_SAVE_ALL_KEY CONFIG_SAVE_CONFIGS_KEY"
        " DEFAULT_CONFIG_FILE_PATH DEFAULT_SAGEMAKER_OUTDIR"
        " DEFAULT_SAGEMAKER_TENSORBOARD_PATH DEFAULT_WORKER_NAME EXPORT_TENSORBOARD_KEY"
        " TENSORBOARD_CONFIG_FILE_PATH_ENV_STR TENSORBOARD_DIR_KEY",
        _HELPERS: "parse_bool",
        _PLACES: "DEFAULT_RESOURCE_CONFIG_FILE get_node_id_from_resource_config",
        _UTILS: "merge_two_dicts split",
    },
    "smdebug.core.locations": {
        _LOCATIONS: "EventFileLocation IndexFileLocationUtils TensorFileLocation TensorLocation TensorShape"
        " TensorboardFileLocation",
        _PLACES: "TraceFileLocation CONVERT_TO_MICROSECS DEFAULT_PREFIX MERGEDTIMELINE_SUFFIX PYTHONTIMELINE_SUFFIX"
        " TRACE_DIRECTORY_FORMAT get_node_id",
        _CONSTANTS: "STEP_NUMBER_FORMATTING_LENGTH",
    },
    "smdebug.core.modes": {
        "stepwatch.probe.mode_keys": "ModeKeys",
        _CONSTANTS: "ALLOWED_MODES ALLOWED_MODE_NAMES MODE_STEP_PLUGIN_NAME MODE_PLUGIN_NAME str_to_mode_keys",
    },
    "smdebug.core.reader": {_WRITING: "FileReader"},
    "smdebug.core.reductions": {
        f"{_CORE}.reductions": "get_numpy_reduction get_basic_numpy_reduction get_reduction_tensor_name"
        " reverse_reduction_tensor_name",
        _CONSTANTS: "ALLOWED_NORMS ALLOWED_REDUCTIONS REDUCTIONS_PREFIX",
    },
    "smdebug.core.s3_utils": {_ACCESS: "list_s3_objects S3Handler ListRequest"},
    "smdebug.core.sagemaker_utils": {_FILES: "is_sagemaker_job"},
    "smdebug.core.utils": {
        _UTILS: "*",
        _PLACES: "get_distributed_worker get_node_id get_node_id_from_resource_config",
        _GUARDING: "error_handling_agent",
        _JOB: "check_smdataparallel_env check_smmodelparallel_training is_framework_version_supported",
        _LOGGER: "get_logger",
        _SIMULATION: "SagemakerSimulator ScriptSimulator",
        _CONSTANTS: "CLAIM_FILENAME CONFIG_FILE_PATH_ENV_STR DEFAULT_SAGEMAKER_OUTDIR"
        " DEFAULT_SAGEMAKER_TENSORBOARD_PATH PAPERMILL_EXECUTION_ENV_VAR TENSORBOARD_CONFIG_FILE_PATH_ENV_STR",
    },
    "smdebug.core.error_handling_agent": {_GUARDING: "BASE_ERROR_MESSAGE ErrorHandlingAgent"},
    "smdebug.core.config_validator": {
        _JOB: "ConfigValidator get_config_validator reset_config_validator is_framework_version_supported",
        _UTILS: "FRAMEWORK",
    },
    "smdebug.core.index_reader": {
        f"{_CORE}.index_files": "ReadIndexFilesCache",
        _CONSTANTS: "MISSING_EVENT_FILE_RETRY_LIMIT MISSING_EVENT_FILE_RETRY_LIMIT_KEY",
    },
    "smdebug.core.state_store": {
        "stepwatch.probe.smdebug.state_store": "StateStore",
        _CONSTANTS: "CHECKPOINT_CONFIG_FILE_PATH_ENV_VAR CHECKPOINT_DIR_KEY DEFAULT_CHECKPOINT_CONFIG_FILE"
        " LATEST_GLOBAL_STEP_SAVED LATEST_GLOBAL_STEP_SEEN LATEST_MODE_STEP METADATA_FILENAME"
        " METADATA_FILENAME_S3_UPLOADED TRAINING_RUN",
    },
    "smdebug.core.writer": {_WRITING: "FileWriter"},
    "smdebug.core.collection": {
        _COLLECTIONS: "Collection CollectionKeys SCALAR_COLLECTIONS",
        _CONSTANTS: "SUMMARIES_COLLECTIONS SM_METRIC_COLLECTIONS NON_REDUCTION_COLLECTIONS"
        " NON_HISTOGRAM_COLLECTIONS DEFAULT_PYTORCH_COLLECTIONS DEFAULT_MXNET_COLLECTIONS DEFAULT_TF_COLLECTIONS"
        " DEFAULT_XGBOOST_COLLECTIONS",
        _SAVING: "ReductionConfig SaveConfig SaveConfigMode",
    },
    "smdebug.core.collection_manager": {_COLLECTIONS: "Collection", _MANAGERS: "CollectionManager"},
    "smdebug.core.save_config": {
        _SAVING: "SaveConfig SaveConfigMode",
        _CONSTANTS: "DEFAULT_SAVE_CONFIG_INTERVAL DEFAULT_SAVE_CONFIG_START_STEP DEFAULT_SAVE_CONFIG_END_STEP"
        " DEFAULT_SAVE_CONFIG_SAVE_STEPS",
    },
    "smdebug.core.reduction_config": {
        _SAVING: "ReductionConfig",
        _CONSTANTS: "ALLOWED_REDUCTIONS ALLOWED_NORMS REDUCTION_CONFIG_VERSION_NUM",
    },
    "smdebug.core.tensor": {"stepwatch.rules.trial": "StepState", "stepwatch.rules.tensor": "Tensor"},
    "smdebug.core.logger": {
        _LOGGER: "DuplicateLogFilter MaxLevelFilter get_logger",
        _CONSTANTS: "LOG_DUPLICATION_THRESHOLD",
    },
    "smdebug.profiler": {
        _PROFILING: "HorovodProfilerEvents ProfilerSystemEvents SMDataParallelProfilerEvents SMProfilerEvents"
        " SystemProfilerEventParser TraceEvent TraceEventParser",
        _READING: "LocalAlgorithmMetricsReader LocalSystemMetricsReader MetricsReaderBase S3AlgorithmMetricsReader"
        " S3SystemMetricsReader",
    },
    "smdebug.profiler.algorithm_metrics_reader": {
        _READING: "AlgorithmMetricsReader LocalAlgorithmMetricsReader S3AlgorithmMetricsReader",
    },
    "smdebug.profiler.hvd_trace_file_rotation": {
        "stepwatch.probe.smdebug.horovod": "HvdTraceFileRotation",
        _TIMELINE: "TimelineFileWriter",
        _PLACES: "CONVERT_TO_MICROSECS HOROVODTIMELINE_SUFFIX",
    },
    "smdebug.profiler.metrics_reader_base": {_READING: "MetricsReaderBase"},
    "smdebug.profiler.system_metrics_reader": {
        _READING: "LocalSystemMetricsReader S3SystemMetricsReader SystemMetricsReader",
    },
    "smdebug.profiler.system_profiler_file_parser": {
        _PROFILING: "ProfilerSystemEvent ProfilerSystemEvents SystemProfilerEventParser",
    },
    "smdebug.profiler.tf_profiler_parser": {
        _PROFILING: "HorovodProfilerEvents SMDataParallelProfilerEvents SMProfilerEvents",
    },
    "smdebug.profiler.trace_event_file_parser": {_PROFILING: "TraceEvent TraceEventParser"},
    "smdebug.profiler.utils": {
        _PROFILING: "TimeUnits convert_utc_timestamp_to_microseconds convert_utc_timestamp_to_nanoseconds"
        " convert_utc_timestamp_to_seconds convert_utc_datetime_to_microseconds convert_utc_datetime_to_nanoseconds"
        " str2bool is_valid_tfprof_tracefilename read_tf_profiler_metadata_file is_valid_tracefilename"
        " get_node_id_from_tracefilename"
        " get_timestamp_from_tracefilename validate_system_profiler_file get_node_id_from_system_profiler_filename"
        " get_utctimestamp_us_since_epoch_from_system_profiler_file",
        _PLACES: "CONVERT_TO_MICROSECS HOROVODTIMELINE_SUFFIX SMDATAPARALLELTIMELINE_SUFFIX",
        _FRAMES: "ns_since_epoch_to_human_readable_time us_since_epoch_to_human_readable_time",
    },
    "smdebug.core.tfevent": {},
    "smdebug.core.tfevent.timeline_file_writer": {
        _TIMELINE: "TimelineFileWriter TimelineRecord",
        _PLACES: "CONVERT_TO_MICROSECS PYTHONTIMELINE_SUFFIX TraceFileLocation",
    },
    "smdebug.profiler.profiler_config": {
        _PROFILER_CONFIG: "CPROFILE_NAME PYINSTRUMENT_NAME PROFILING_NUM_STEPS_DEFAULT DataloaderProfilingConfig"
        " DetailedProfilingConfig ProfileRange ProfilerConfig PythonProfilingConfig RotationPolicy"
        " SMDataParallelProfilingConfig TraceFile",
        _PYTHON: "cProfileTimer",
    },
    "smdebug.profiler.profiler_config_parser": {
        _PROFILER_CONFIG: "BASE_FOLDER_DEFAULT CLOSE_FILE_INTERVAL_DEFAULT CONFIG_PATH_DEFAULT MAX_FILE_SIZE_DEFAULT"
        " FILE_OPEN_FAIL_THRESHOLD_DEFAULT MetricsCategory ProfilerConfig ProfilerConfigParser"
        " get_profiler_config_parser reset_profiler_config_parser",
        _UTILS: "FRAMEWORK",
        _PYTHON: "StepPhase",
    },
    "smdebug.profiler.profiler_constants": {
        _PROFILER_CONFIG: "BASE_FOLDER_DEFAULT CLOSE_FILE_INTERVAL_DEFAULT CONFIG_PATH_DEFAULT MAX_FILE_SIZE_DEFAULT"
        " FILE_OPEN_FAIL_THRESHOLD_DEFAULT PROFILING_NUM_STEPS_DEFAULT PROFILER_DURATION_DEFAULT CPROFILE_NAME"
        " PYINSTRUMENT_NAME",
        _PLACES: "CONVERT_TO_MICROSECS CONVERT_MICRO_TO_NS DEFAULT_PREFIX DEFAULT_SYSTEM_PROFILER_PREFIX"
        " TRACE_DIRECTORY_FORMAT PT_DATALOADER_INITIALIZE PT_DATALOADER_ITER PT_DATALOADER_WORKER TF_DATALOADER_ITER"
        " TF_METRICS_PREFIX"
        " PYTHONTIMELINE_SUFFIX MODELTIMELINE_SUFFIX TENSORBOARDTIMELINE_SUFFIX HOROVODTIMELINE_SUFFIX"
        " SMDATAPARALLELTIMELINE_SUFFIX MERGEDTIMELINE_SUFFIX",
        _PYTHON: "CPROFILE_STATS_FILENAME PYINSTRUMENT_HTML_FILENAME PYINSTRUMENT_JSON_FILENAME"
        " PYTHON_PROFILING_START_STEP_DEFAULT",
    },
    "smdebug.profiler.python_profile_utils": {
        _PYTHON: "PythonProfileModes PythonProfilerName StepPhase cProfileTimer cpu_time off_cpu_time total_time"
        " mode_keys_to_python_profile_mode python_profile_mode_to_str str_to_python_profile_mode",
    },
    "smdebug.profiler.python_profiler": {
        _PYTHON: "PyinstrumentPythonProfiler PythonProfiler PythonProfileModes StepPhase cProfileTimer"
        " cProfileDefaultPythonProfiler cProfilePythonProfiler",
    },
    "smdebug.profiler.analysis": {},
    "smdebug.profiler.analysis.utils": {},
    "smdebug.profiler.analysis.python_profile_analysis": {
        _PROFILES: "PyinstrumentAnalysis PythonProfileAnalysis StepPythonProfileStats cProfileAnalysis cProfileStats",
        _PYTHON: "PythonProfileModes StepPhase",
    },
    "smdebug.profiler.analysis.python_stats_reader": {_PROFILES: "LocalPythonStatsReader S3PythonStatsReader"},
    "smdebug.profiler.analysis.utils.python_profile_analysis_utils": {
        _PROFILES: "Metrics PyinstrumentStepStats StepPythonProfileStats cProfileFunctionStats cProfileStats",
        _PYTHON: "PythonProfileModes StepPhase",
    },
    "smdebug.profiler.analysis.utils.profiler_data_to_pandas": {_FRAMES: "PandasFrame"},
    "smdebug.profiler.analysis.utils.pandas_data_analysis": {
        "stepwatch.rules.smdebug.frame_analysis": "JobStats PandasFrameAnalysis Resource StatsBy",
    },
    "smdebug.profiler.analysis.utils.pytorch_dataloader_analysis": {
        "stepwatch.rules.smdebug.loader_analysis": "PT_dataloader_analysis",
    },
    "smdebug.profiler.analysis.utils.merge_timelines": {
        "stepwatch.rules.smdebug.merged_timeline": "MergedTimeline MergeUnit",
    },
    "smdebug.pytorch": {**_CONFIGURATION, _TRIALS: "create_trial"},
    "smdebug.pytorch.hook": {
        _COLLECTIONS: "CollectionKeys CollectionManager",
        _CONSTANTS: "DEFAULT_PYTORCH_COLLECTIONS DEFAULT_WORKER_NAME",
        _UTILS: "FRAMEWORK make_numpy_array",
        _EXCEPTIONS: "SMDebugError",
    },
    "smdebug.pytorch.singleton_utils": {},
    "smdebug.pytorch.collection": {
        _COLLECTIONS: "Collection CollectionKeys CollectionManager",
        _CONSTANTS: "DEFAULT_PYTORCH_COLLECTIONS",
    },
    "smdebug.pytorch.utils": {
        _CONSTANTS: "ALLOWED_NORMS ALLOWED_REDUCTIONS",
        _JOB: "is_current_version_supported is_pt_1_5 is_pt_1_6 is_pt_1_7 is_pt_1_8 is_pt_1_9",
        f"{_CORE}.reductions": "get_numpy_reduction",
    },
    "smdebug.core.hook": {_CONSTANTS: "DEFAULT_SAVED_COLLECTIONS DEFAULT_WORKER_NAME"},
    "smdebug.core.singleton_utils": {},
}
"""Module of smdebug -> module of ours -> the names taken from there; ``*``: its public ones."""


LATER: dict[str, dict[str, str]] = {
    "smdebug.pytorch": {_HOOK: "Hook get_hook set_hook del_hook"},
    "smdebug.pytorch.hook": {_HOOK: "Hook set_hook"},
    "smdebug.pytorch.singleton_utils": {_HOOK: "get_hook set_hook del_hook"},
    "smdebug.pytorch.utils": {_HOOK: "get_reduction_of_data"},
    "smdebug.core.hook": {_HOOK: "BaseHook CallbackHook"},
    "smdebug.core.singleton_utils": {_HOOK: "set_hook del_hook"},
}
"""The same for names that are taken when they are first asked for, because they need torch."""


def attributes(module: str) -> dict[str, Any]:
    """The names of one of smdebug's modules."""
    found: dict[str, Any] = {"__version__": "1.0.34"} if module == "smdebug" else {}
    for source, names in MODULES[module].items():
        ours = importlib.import_module(source)
        public = [name for name in vars(ours) if not name.startswith("_")] if names == "*" else names.split()
        found.update({name: getattr(ours, name) for name in public})
    later = [name for names in LATER.get(module, {}).values() for name in names.split()]
    return {**found, "__all__": [*found, *later]}


def later_attribute(module: str, name: str) -> Any:
    """A name of one of smdebug's modules that is taken when it is first asked for.

    Raises:
        AttributeError: the module has no such name.
    """
    for source, names in LATER.get(module, {}).items():
        if name in names.split():
            return getattr(importlib.import_module(source), name)
    raise AttributeError(f"Stepwatch provides no {name} in {module}")
