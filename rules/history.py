"""The history of a number in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

N = TypeVar("N", int, float)

_FIRST = 256


class History(Sequence[N]):
    """A series of numbers that is appended to and looks complete, however long it is.

    The first 256 and the latest numbers are kept as they are, at least ``keep`` and at most twice as many; until then
    that is all of them. Of those between, every second, fourth, eighth ... is kept, at most ``keep`` in all, and
    stands for the ones behind it. Positions are those in the whole series; a slice is an ``array`` of its numbers.

    Neighbours are kept or left ``together``: with many, what is between keeps the noise of the series, as its second
    differences show it; with one, what rises and falls only slowly still does.

    Attributes:
        stride: how many numbers one stands for between, where the series is thinned most; 1 while all are kept.

    Args:
        kind: "d" for floats, "q" for integers of 64 bits.
        keep: a power of two, at least 256.
        together: a power of two, at most ``keep``.
    """

    def __init__(self, kind: Literal["d", "q"], keep: int, together: int = 1) -> None:
        if keep < _FIRST or keep & (keep - 1):
            raise ValueError(f"keep is {keep}; expected a power of two, at least {_FIRST}")
        if not 1 <= together <= keep or together & (together - 1):
            raise ValueError(f"together is {together}; expected a power of two, at most {keep}")
        self._keep = keep
        self._together = together
        self._recent: array[N] = array(kind)
        self._first: array[N] = array(kind)
        self._thinned: array[N] = array(kind)  # of all before the recent ones
        self.stride = 1
        self._folded = 0  # how many are before the recent ones

    def append(self, number: N) -> None:
        """Add a number at the end."""
        self._recent.append(number)
        if len(self._recent) == 2 * self._keep:
            self._fold()

    def head(self, count: int) -> History[N]:
        """The first numbers as a history of their own."""
        kind: Any = self._recent.typecode
        history: History[N] = History(kind, self._keep, self._together)
        for number in self[:count]:
            history.append(number)
        return history

    def __len__(self) -> int:
        return self._folded + len(self._recent)

    @overload
    def __getitem__(self, at: int) -> N: ...
    @overload
    def __getitem__(self, at: slice) -> array[N]: ...
    def __getitem__(self, at: int | slice) -> N | array[N]:
        if isinstance(at, slice):
            return self._slice(at)
        place = at if at >= 0 else at + len(self)
        if place >= self._folded:
            return self._recent[place - self._folded]
        if place < 0:
            raise IndexError(f"number {at} of {len(self)}")
        if place < len(self._first):
            return self._first[place]
        neighbours, offset = divmod(place, self._together)
        return self._thinned[neighbours // self.stride * self._together + offset]

    def __iter__(self) -> Iterator[N]:
        return iter(self[:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        numbers = self._whole()
        return numbers if dtype is None else numbers.astype(dtype, copy=False)

    def _slice(self, at: slice) -> array[N]:
        start, stop, step = at.indices(len(self))
        if start >= self._folded and step > 0:
            return self._recent[start - self._folded : max(stop - self._folded, 0) : step]
        return array(self._recent.typecode, self._whole()[at].tobytes())

    def _whole(self) -> NDArray[Any]:
        recent = np.array(self._recent)
        if not self._folded:
            return recent
        numbers = np.empty(len(self), dtype=recent.dtype)
        spread = np.repeat(np.reshape(self._thinned, (-1, self._together)), self.stride, axis=0)
        numbers[: self._folded] = spread.ravel()[: self._folded]
        numbers[: len(self._first)] = self._first
        numbers[self._folded :] = recent
        return numbers

    def _fold(self) -> None:
        """Thin the older half of the recent numbers out."""
        old = self._recent[: self._keep]
        del self._recent[: self._keep]
        self._first = self._first or old[:_FIRST]
        begun = -(self._folded // self._together) % self.stride
        self._extend(np.reshape(old, (-1, self._together))[begun :: self.stride])
        self._folded += self._keep
        while len(self._thinned) > self._keep:
            kept = np.reshape(self._thinned, (-1, self._together))[::2]
            self._thinned = array(old.typecode)
            self._extend(kept)
            self.stride *= 2

    def _extend(self, numbers: NDArray[Any]) -> None:
        self._thinned.frombytes(numbers.tobytes())


class SeenSteps:
    """Which steps a rule has looked at: how many, the first, and the latest ones.

    ``steps[0]`` is the first, ``steps[-1]`` the latest one, ``steps[-keep]`` the earliest of the latest that is known.

    Args:
        keep: how many of the latest are kept, above 0.
    """

    __slots__ = ("_count", "_first", "_keep", "_latest")

    def __init__(self, keep: int = 1) -> None:
        self._keep = keep
        self._count = 0
        self._first = 0
        self._latest: array[int] = array("q")

    def append(self, step: int) -> None:
        """One more was looked at."""
        if not self._count:
            self._first = step
        self._count += 1
        self._latest.append(step)
        if len(self._latest) == 2 * self._keep + 1:
            del self._latest[: self._keep + 1]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> int:
        if at == 0 and self._count:
            return self._first
        if at >= 0 or -at > min(self._count, self._keep):
            raise IndexError(f"step {at} of {self._count}; the first and the latest {self._keep} are known")
        return self._latest[at]
