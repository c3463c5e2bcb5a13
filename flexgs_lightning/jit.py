"""How the CPU kernels are compiled and shared out over threads.

Kernels release the GIL and run on a plain thread pool instead of numba's ``prange``. Numba's threading
layers each have a trap that a training process meets: OpenMP's aborts in a forked child, workqueue's
aborts when two threads call at once (a viewer beside the trainer), TBB is one more package. Here any
number of threads may call, a forked child gets a fresh pool, and compilation is several times shorter.

Work is cut into numbered items that do not depend on the number of threads. Each thread takes the next
number from a shared counter, so uneven tiles balance themselves, and since every item writes to its own
place the results are bit-identical for any number of threads.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

_logger = logging.getLogger(__name__)

# Reordering and fused multiply-add let loops vectorise. NaN and infinity keep their meaning (no nnan,
# no ninf): comparisons must stay false for NaN, so that a broken Gaussian is culled.
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


def compiler(fastmath: set[str] = FASTMATH, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's decorator with the kernels' settings.

    Machine code is kept beside the sources, or in the user's cache folder if that is read-only; where
    neither can be written, each process compiles anew.
    """
    options |= {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        try:
            dispatcher._cache = _Cache(function)
        except (RuntimeError, OSError) as error:  # no place for it
            _logger.debug("%s", error)
        return dispatcher

    return decorate


@cache
def _sources(folder: Path) -> str:
    """Digest of the code that a kernel of this folder may be made of.

    Numba compiles a kernel anew if its own file has changed, but knows nothing of the files of the functions
    that are inlined into it: they lie in the same folder or here.
    """
    files = sorted({*folder.glob("*.py"), Path(__file__)})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class _Cache(FunctionCache):
    """Machine code on disk. What cannot be kept (a full disk) or read (a damaged file) is compiled anew."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        with contextlib.suppress(AttributeError):  # another numba: it goes by the function's own file
            self._cache_file._source_stamp = _sources(Path(function.__code__.co_filename).parent)

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            _logger.debug("%s", error)
            return None


kernel = compiler()
"""Decorator of functions that Python calls."""

inlined = compiler(forceinline=True)
"""Decorator of functions that kernels call; always inlined, so unused results cost nothing.

No kernel may call a function that is not. Such a function is compiled by itself and once more with its
caller, optimised differently; the process that compiles takes one copy, those that load the cache the other,
and a training's first run would differ in the last bits from all later ones.
"""

_MAX_THREADS: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


class Work(NamedTuple):
    """Items of a kernel: ``function(counter, items, *arguments)`` takes them until none is left."""

    function: Callable[..., None]
    items: int
    arguments: tuple[Any, ...]


def run(function: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run ``function(counter, count, *arguments)`` on several threads until ``count`` items are taken.

    The number of threads is ``torch.get_num_threads()``, at most ``NUMBA_NUM_THREADS``. The calling
    thread works too; helpers that have not started when it is done are not waited for.
    """
    run_all([Work(function, count, arguments)])


def run_all(works: Sequence[Work]) -> None:
    """As ``run``, for work that does not depend on one another: no thread waits between one and the next."""
    begun = [(work, np.zeros(1, dtype=np.int64)) for work in works]
    helpers = min(torch.get_num_threads(), _MAX_THREADS, sum(work.items for work in works)) - 1
    futures = [_get_pool().submit(_take_part, begun) for _ in range(helpers)]
    _take_part(begun)
    for future in futures:
        if not future.cancel():
            future.result()


def _take_part(begun: Sequence[tuple[Work, np.ndarray]]) -> None:
    for (function, count, arguments), counter in begun:
        function(counter, count, *arguments)


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            workers = max(1, _MAX_THREADS)
            _pool = ThreadPoolExecutor(workers, thread_name_prefix="flexgs-cpu")
        return _pool


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next iteration.

    By default it hands blocks beyond 32 MB back to the system at once. Gradients of large scenes are such
    blocks, and fresh pages for them cost 10 to 20 % of a training step at 300,000 Gaussians.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_keep_freed_memory()


def _forget_pool() -> None:
    """Threads do not survive a fork: the child starts its own pool when it needs one."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _next_item(typing_context: Any, counter: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", array.data, one, "monotonic")

    return types.int64(counter), generate


next_item: Any = intrinsic(_next_item)
"""next_item(counter): take the next item's number from an int64 [1] array; an atomic fetch-and-add."""


def _prefetch(typing_context: Any, array: Any, *place: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(view.data, byte)
        for dimension, index in enumerate(arguments[1:]):
            stride = builder.extract_value(view.strides, dimension)
            address = builder.gep(address, [builder.mul(index, stride)])
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(fetch, [address, flag(0), flag(3), flag(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(array, *[types.int64] * len(place)), generate


def _prefetch_row(typing_context: Any, array: Any, row: Any) -> Any:
    return _prefetch(typing_context, array, row)


prefetch: Any = intrinsic(_prefetch_row)
"""prefetch(array, row): have a row's beginning brought near while other work is done.

Rows in no order come from far away, and the processor by itself looks ahead by a few hundred instructions
only. Changes no result; a row that does not exist does no harm.
"""


def _prefetch_image(typing_context: Any, array: Any, image: Any, y: Any, x: Any) -> Any:
    return _prefetch(typing_context, array, image, y, x)


prefetch_pixel: Any = intrinsic(_prefetch_image)
"""prefetch_pixel(images, image, y, x): the same of a pixel."""


def _float_from_bits(typing_context: Any, bits: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_as_float: Any = intrinsic(_float_from_bits)
"""Reinterpret an int32 as a float32."""


_LOG2_E = np.float32(1.4426950408889634)
_LARGEST_EXPONENT = np.float32(126.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
# Taylor coefficients of 2^f for |f| <= 1/2: ln(2)^n / n!, whose first omitted term is below 2e-7 * 2^-1.
_P1, _P2, _P3, _P4, _P5, _P6 = (
    np.float32(value)
    for value in (
        0.6931471805599453,
        0.2402265069591007,
        0.05550410866482158,
        0.009618129107628477,
        0.0013333558146428443,
        0.0001540353039338161,
    )
)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


@inlined
def exp_negative(x):
    """exp(-x) for float32 x >= 0 to about 1e-7, in operations that vectorise (libm's does not)."""
    y = min(x * _LOG2_E, _LARGEST_EXPONENT)
    n = np.int32(y + _HALF)
    f = np.float32(n) - y
    power = _ONE + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
    return power * _as_float((_BIAS - n) << _MANTISSA_BITS)
