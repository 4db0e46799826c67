"""Tables of a trace: their columns, types and Parquet encodings.

One table is one folder of plain Parquet files below the run's directory (see :mod:`.layout`). Every row
of a table that the training job writes carries ``attempt``: the number of the start of the job that wrote
it, 0 for the first. A job resumed from a checkpoint repeats steps; readers drop the rows it replaced.
"""

from __future__ import annotations

from enum import IntEnum

import pyarrow as pa

FORMAT_VERSION = 1

STAT_COLUMNS: tuple[str, ...] = (
    "numel",
    "n_nan",
    "n_inf",
    "n_zero",
    "min",
    "max",
    "mean",
    "std",
    "l1",
    "l2",
    "abs_max",
)
"""Columns of a statistics row, in the order of the matrix that the hook hands to the writer.

Counts are of entries; all others are over the finite entries: ``std`` is the population standard
deviation, ``l1`` the sum of magnitudes, ``l2`` the Euclidean norm of the flattened tensor. Where no entry
is finite, ``min``, ``max``, ``mean``, ``std`` and ``abs_max`` are NaN, and ``l1`` and ``l2`` are 0.
"""

COUNT_COLUMNS = STAT_COLUMNS[:4]

_STEP_KEY = [
    ("attempt", pa.int32()),
    ("step", pa.int64()),
    ("mode", pa.string()),
    ("mode_step", pa.int64()),
    ("time_ns", pa.int64()),
]

TABLES: dict[str, pa.Schema] = {
    # one row per tensor per saved step
    "stats": pa.schema(
        [
            *_STEP_KEY,
            ("name", pa.string()),
            *((column, pa.int64() if column in COUNT_COLUMNS else pa.float64()) for column in STAT_COLUMNS),
        ]
    ),
    # quantities that rules asked for: (tensor, quantity) -> a short vector
    "derived": pa.schema(
        [*_STEP_KEY, ("name", pa.string()), ("quantity", pa.string()), ("value", pa.list_(pa.float64()))]
    ),
    # whole tensors: little-endian bytes in C order, dtype as NumPy spells it
    "values": pa.schema(
        [
            *_STEP_KEY,
            ("name", pa.string()),
            ("dtype", pa.string()),
            ("shape", pa.list_(pa.int64())),
            ("data", pa.binary()),
        ]
    ),
    "scalars": pa.schema([*_STEP_KEY, ("name", pa.string()), ("value", pa.float64())]),
    # one row per step or evaluation pass: it commits the rows of the other tables that have its key
    "steps": pa.schema(
        [
            *_STEP_KEY,
            ("saved", pa.bool_()),
            ("duration_ns", pa.int64()),
            ("data_ns", pa.int64()),
            ("loader_ns", pa.int64()),
            ("checkpoint_ns", pa.int64()),
            ("forward_ns", pa.int64()),
            ("backward_ns", pa.int64()),
            ("optimizer_ns", pa.int64()),
            ("hook_ns", pa.int64()),
            ("samples", pa.int64()),
            ("loader_workers", pa.int64()),
            ("collective_ns", pa.int64()),
            ("allocated_bytes", pa.int64()),
            ("peak_bytes", pa.int64()),
            ("reserved_bytes", pa.int64()),
            ("fragmented_bytes", pa.int64()),
            ("allocation_retries", pa.int64()),
            ("device_bytes", pa.int64()),
            *((f"device_{phase}_ns", pa.int64()) for phase in ("forward", "backward", "optimizer", "collective")),
            ("copy_ns", pa.int64()),
            ("device_copy_ns", pa.int64()),
            ("batch_entries", pa.int64()),
        ]
    ),
    # long form: device is "node", "process" or a device's UUID
    "system": pa.schema(
        [("time_ns", pa.int64()), ("device", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
    ),
    # event "found": a finding; event "action": what was done about the finding of that id
    "findings": pa.schema(
        [
            ("finding_id", pa.string()),
            ("event", pa.string()),
            ("time_ns", pa.int64()),
            ("judged_by", pa.string()),
            ("attempt", pa.int32()),
            ("rank", pa.int32()),
            ("rule", pa.string()),
            ("severity", pa.string()),
            ("first_step", pa.int64()),
            ("last_step", pa.int64()),
            ("tensors", pa.list_(pa.string())),
            ("value", pa.float64()),
            ("threshold", pa.float64()),
            ("message", pa.string()),
            ("suggestion", pa.string()),
            ("evidence", pa.string()),
            ("action", pa.string()),
            ("outcome", pa.string()),
            ("detail", pa.string()),
        ]
    ),
}

INTERVAL_SCALAR = "stepwatch/save_interval"
"""Scalar recorded by the hook at the step from which on it saves at another interval of its own choice."""

KEPT_GRADIENTS_SCALAR = "stepwatch/updates_without_reset"
"""Scalar recorded by the hook: updates in a row before which gradients were not reset."""

EVAL_MODE_SCALAR = "stepwatch/updates_in_eval_mode"
"""Scalar recorded by the hook: updates in a row with all dropout and batch norm layers in eval mode."""

PART_IN_EVAL_SCALAR = "stepwatch/updates_with_a_part_in_eval_mode"
"""Scalar recorded by the hook: updates in a row with a part of a model left in eval mode that should not be."""

LEFT_IN_EVAL_QUANTITY = "left_in_eval"
"""Derived quantity of such a part, by its path: dropout and batch norm layers in eval mode, all of the model."""

SKIPPED_SCALAR = "grad_scaler/skipped"
"""Scalar recorded by the hook: updates in a row that a GradScaler has left out."""

PARAMETERS_SCALAR = "stepwatch/parameters"
"""Scalar recorded by the hook once: of how many parameters it tells the role."""

ROLE_QUANTITY = "role"
"""Derived quantity of a parameter, where it does not take part in training and when that changes: [requires a gradient,
is held by an optimizer, has had a gradient, belongs to a module that ran in the first forward pass], each 0 or 1."""

EQUAL_UNITS_QUANTITY = "equal_units"
"""Derived quantity of a weight: [units that were compared, those of them that are equal to another and not zero, norm
of what was compared]."""

AGREEMENT_QUANTITY = "agreement"
"""Derived quantity of a weight: [cosine of the gradients of two updates in a row, of a sample of some weights]."""

UPDATE_QUANTITY = "update"
"""Derived quantity of some weights, over a sample of their entries: [norm of the change by the update of the step, norm
before it, entries whose gradient is not zero, those of them that the update left exactly as they were]."""

SCALE_SCALAR = "grad_scaler/scale"
"""Scalar recorded by the hook at saved steps: the scale that a GradScaler goes on with."""

CLIP_NORM_SCALAR = "grad_clip/norm"
"""Scalar recorded by the hook at saved steps: the norm of the gradients before clip_grad_norm_ shortened them.
Further calls in one step have ``/1``, ``/2``, ... at the end, here and in the next two."""

CLIP_LIMIT_SCALAR = "grad_clip/max_norm"
"""Scalar recorded by the hook at saved steps: the norm that clip_grad_norm_ allowed."""

CLIP_VALUE_SCALAR = "grad_clip/max_value"
"""Scalar recorded by the hook at saved steps: the magnitude that clip_grad_value_ allowed."""

FLOPS_SCALAR = "stepwatch/flops"
"""Scalar recorded by the hook at one step after the warm-up: floating-point operations of its passes, on this rank."""

PEAK_SECONDS_SCALAR = "stepwatch/seconds_at_peak"
"""Scalar beside it: the time that they take at the peak of the device, where that is known."""

TOKENS_SCALAR = "stepwatch/tokens"
"""Scalar beside it: tokens that the model was given in this step, on this rank."""

STEP_TABLES: tuple[str, ...] = ("stats", "derived", "values", "scalars", "steps")
"""Tables that are partitioned by rank and keyed by (attempt, step, mode, mode_step)."""

TIMING_COLUMNS: tuple[str, ...] = tuple(name for name in TABLES["steps"].names[len(_STEP_KEY) :] if name != "saved")
"""Columns of ``steps`` that a step's timing fills: nanoseconds, and beside them what the loader delivered and what the
allocator of device memory held."""

REDUCTION_QUANTITY = "reduction/"
"""Prefix of derived quantities that are reductions as smdebug saved them (``reduction/abs_mean``): one number each."""

SHAPE_QUANTITY = "shape"
"""Derived quantity: the shape of a tensor of which smdebug saved nothing else, or reductions."""

SMDEBUG_CONFIG = "smdebug"
"""Key of ``config`` in run.json for a run that smdebug recorded: its ``workers`` by rank, its ``collections``."""

INPUT_QUANTITY = "input"
"""Derived quantity of what a model is given: the columns of ``stats``, samples, whether all samples are the same."""

FIRST_LAYER_QUANTITY = "first_layer"
"""The same of what enters its first layer with weights."""

BATCH_QUANTITY = "batch"
"""Derived quantity: a checksum of the batch, its number among all of its DataLoader, batches of an epoch."""

OUTPUT_QUANTITY = "output_variance"
"""Derived quantity of what a model answers: samples, variance between them, variance of all entries."""

PADDING_QUANTITY = "padding"
"""Derived quantity: entries of a batch that are padding, and all entries."""

LOSS_INPUT_QUANTITY = "loss_input"
"""Derived quantity of ``loss``, in the first saved training steps: [a :class:`LossInput`, rows that were broadcast or
the share of targets out of reach]."""


class LossInput(IntEnum):
    """What a loss function is given, where the graph of autograd tells."""

    SOUND = 0
    SOFTMAX_TO_CROSS_ENTROPY = 1
    SIGMOID_TO_CROSS_ENTROPY = 2
    RELU_TO_CROSS_ENTROPY = 3
    SIGMOID_TO_LOGITS = 4
    SOFTMAX_TO_LOGITS = 5
    RELU_TO_LOGITS = 6
    LOGITS_TO_LIKELIHOOD = 7
    PROBABILITIES_TO_LIKELIHOOD = 8
    BROADCAST = 9
    RELU_OUT_OF_REACH = 10
    SIGMOID_OUT_OF_REACH = 11
    TANH_OUT_OF_REACH = 12
