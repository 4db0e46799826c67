"""smdebug's SaveConfig and ReductionConfig: its defaults, its JSON, its merging."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stepwatch.probe import reductions, schedule
from stepwatch.probe.mode_keys import ModeKeys
from stepwatch.probe.smdebug.errors import SMDebugTypeError, SMDebugValueError

DEFAULT_INTERVAL = 500

Number = int | str


class SaveConfigMode(schedule.SaveConfigMode):
    """Schedule of one mode: every 500th step where nothing else is said; ``save_steps`` are saved besides.

    Raises:
        SMDebugValueError: ``save_steps`` is no list of integers, or another value is no number in its range.
    """

    def __init__(
        self,
        save_interval: Number | None = None,
        start_step: Number | None = None,
        end_step: Number | None = None,
        save_steps: Iterable[int] | None = None,
    ) -> None:
        steps = [] if save_steps is None else save_steps
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, int) for step in steps):
            raise SMDebugValueError(f"save_steps is {save_steps!r}; expected a list of integers")
        try:
            super().__init__(
                DEFAULT_INTERVAL if save_interval is None else int(save_interval),
                0 if start_step is None else int(start_step),
                None if end_step is None else int(end_step),
                steps,
            )
        except ValueError as error:
            raise SMDebugValueError(str(error)) from None

    @classmethod
    def from_dict(cls, params: Mapping[str, Any], default_values: Mapping[str, Any] | None = None) -> SaveConfigMode:
        """From its JSON object, above what is given by default; other keys are ignored."""
        known = ("save_interval", "start_step", "end_step", "save_steps")
        given = {**(default_values or {}), **params}
        return cls(**{key: given[key] for key in known if key in given})

    def to_json_dict(self) -> dict[str, Any]:
        """Its JSON object."""
        return {
            "save_interval": self.save_interval,
            "save_steps": list(self.save_steps),
            "start_step": self.start_step,
            "end_step": self.end_step,
        }


class SaveConfig(schedule.SaveConfig):
    """Schedules by mode: one for all of them, or a mapping for some.

    Modes that a mapping leaves out are those of the hook's configuration, or every 500th step.

    Args:
        mode_save_configs: :class:`SaveConfigMode`, its JSON object, or None by mode or its name.
        save_interval, start_step, end_step, save_steps: for all modes, instead.

    Raises:
        SMDebugValueError: a mapping of something else.
    """

    def __init__(
        self,
        mode_save_configs: Mapping[Any, Any] | None = None,
        save_interval: Number | None = None,
        start_step: Number | None = None,
        end_step: Number | None = None,
        save_steps: Iterable[int] | None = None,
    ) -> None:
        if mode_save_configs is None:
            one = SaveConfigMode(save_interval, start_step, end_step, save_steps)
            super().__init__({mode: one for mode in ModeKeys})
            return
        if not isinstance(mode_save_configs, Mapping):
            raise SMDebugValueError(f"mode_save_configs is {mode_save_configs!r}; expected configurations by mode")
        by_mode = {_mode(mode): _of_mode(config) for mode, config in mode_save_configs.items()}
        super().__init__({mode: config for mode, config in by_mode.items() if config is not None})

    @classmethod
    def parse(cls, obj: Any) -> SaveConfig:
        """Whatever a hook or a collection takes as its save_config.

        Raises:
            SMDebugTypeError: something else.
            SMDebugValueError: a mapping of something else.
        """
        if obj is None:
            return cls()
        if isinstance(obj, SaveConfig):
            return obj
        if isinstance(obj, schedule.SaveConfigMode):
            return cls.from_save_config_mode(obj)
        if not isinstance(obj, Mapping):
            raise SMDebugTypeError(f"save_config is {obj!r}; expected a SaveConfig, a SaveConfigMode or a mapping")
        return cls(obj)

    @classmethod
    def from_save_config_mode(cls, save_config_mode: schedule.SaveConfigMode) -> SaveConfig:
        """The same schedule for all modes."""
        return cls({mode: save_config_mode for mode in ModeKeys})

    def set_save_config(self, mode: ModeKeys, save_config_mode: schedule.SaveConfigMode) -> None:
        """Give one mode another schedule."""
        self._by_mode[mode] = save_config_mode

    def merge_default_save_config(self, default_save_config: SaveConfig) -> None:
        """Take the schedules of modes that have none from another configuration."""
        for mode in ModeKeys:
            self._by_mode.setdefault(mode, default_save_config.get_save_config(mode) or SaveConfigMode())

    @classmethod
    def from_dict(cls, params: Mapping[str, Any], default_values: Any = None) -> SaveConfig:
        """From its JSON object; modes that it leaves out stay open, keys that a mode leaves out are the default's."""
        by_mode = params.items()
        return cls(
            {mode: SaveConfigMode.from_dict(c, default_values) if isinstance(c, Mapping) else c for mode, c in by_mode}
        )

    @classmethod
    def from_json(cls, json_str: str) -> SaveConfig:
        """From its JSON."""
        return cls(json.loads(json_str))

    def to_json_dict(self) -> dict[str, Any]:
        """Its JSON object: schedules by name of the mode, null where a mode has none."""
        return {mode.name: _to_json(self.get_save_config(mode)) for mode in ModeKeys}

    def to_json(self) -> str:
        """Its JSON."""
        return json.dumps(self.to_json_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SaveConfig) and self._by_mode == other._by_mode

    __hash__ = None  # type: ignore[assignment]


class ReductionConfig(reductions.ReductionConfig):
    """What of a tensor is saved, with smdebug's JSON.

    Raises:
        SMDebugValueError: an unknown reduction or norm, or a flag that is none.
    """

    def __init__(
        self,
        reductions: Iterable[str] | None = None,
        abs_reductions: Iterable[str] | None = None,
        norms: Iterable[str] | None = None,
        abs_norms: Iterable[str] | None = None,
        save_raw_tensor: bool = False,
        save_shape: bool = False,
    ) -> None:
        for name, flag in (("save_raw_tensor", save_raw_tensor), ("save_shape", save_shape)):
            if not isinstance(flag, bool):
                raise SMDebugValueError(f"{name} is {flag!r}; expected True or False")
        try:
            super().__init__(
                list(reductions or ()),
                list(abs_reductions or ()),
                list(norms or ()),
                list(abs_norms or ()),
                save_raw_tensor,
                save_shape,
            )
        except ValueError as error:
            raise SMDebugValueError(str(error)) from None

    def names(self) -> list[str]:
        """The reductions as their saved tensors are called: ``mean``, ``l1``, ``abs_mean``, ``abs_l2``."""
        magnitudes = [f"abs_{name}" for name in (*self.abs_reductions, *self.abs_norms)]
        return [*self.reductions, *self.norms, *magnitudes]

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> ReductionConfig:
        """From its JSON object, in which reductions are one text: ``mean,l2_norm,abs_max,abs_l1_norm``."""
        listed: dict[str, list[str]] = {"reductions": [], "abs_reductions": [], "norms": [], "abs_norms": []}
        for word in str(params.get("reductions") or "").split(","):
            name = word.strip()
            if name:
                kind = "norms" if name.removesuffix("_norm").removeprefix("abs_") in ("l1", "l2") else "reductions"
                plain = name.removeprefix("abs_").removesuffix("_norm")
                listed[f"abs_{kind}" if name.startswith("abs_") else kind].append(plain)
        raw, shape = (bool(params.get(name)) for name in ("save_raw_tensor", "save_shape"))
        return cls(**listed, save_raw_tensor=raw, save_shape=shape)

    @classmethod
    def from_json(cls, json_str: str) -> ReductionConfig:
        """From its JSON."""
        return cls.from_dict(json.loads(json_str))

    def to_json_dict(self) -> dict[str, Any]:
        """Its JSON object."""
        words = [
            *self.reductions,
            *(f"{name}_norm" for name in self.norms),
            *(f"abs_{name}" for name in self.abs_reductions),
            *(f"abs_{name}_norm" for name in self.abs_norms),
        ]
        return {
            "save_raw_tensor": self.save_raw_tensor,
            "reductions": ",".join(words),
            "save_shape": self.save_shape,
        }

    def to_json(self) -> str:
        """Its JSON."""
        return json.dumps(self.to_json_dict())


def _mode(key: Any) -> ModeKeys:
    try:
        return key if isinstance(key, ModeKeys) else ModeKeys[str(key)]
    except KeyError:
        raise SMDebugValueError(f"mode is {key!r}; expected one of TRAIN, EVAL, PREDICT, GLOBAL") from None


def _of_mode(config: Any) -> schedule.SaveConfigMode | None:
    if config is None or isinstance(config, schedule.SaveConfigMode):
        return config
    if isinstance(config, Mapping):
        return SaveConfigMode.from_dict(config)
    raise SMDebugValueError(f"the configuration of a mode is {config!r}; expected a SaveConfigMode or its JSON object")


def _to_json(config: schedule.SaveConfigMode | None) -> dict[str, Any] | None:
    if config is None:
        return None
    return SaveConfigMode(
        config.save_interval, config.start_step, config.end_step, list(config.save_steps)
    ).to_json_dict()
