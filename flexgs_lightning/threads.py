"""Compiled CPU kernels on a plain thread pool.

Kernels release the GIL and share numbered items of work, instead of using numba's own threads, whose
layers abort in a forked child (OpenMP) or when two threads call at once (workqueue).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def run(function: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run ``function(counter, count, *arguments)`` on several threads until ``count`` items are taken.

    The number of threads is ``torch.get_num_threads()``. The calling thread works too; helpers that have
    not started when it is done are not waited for. Results do not depend on the number of threads as long
    as each item writes to places of its own.
    """
    counter = np.zeros(1, dtype=np.int64)
    helpers = min(torch.get_num_threads(), count) - 1
    futures = [_get_pool().submit(function, counter, count, *arguments) for _ in range(helpers)]
    function(counter, count, *arguments)
    for future in futures:
        if not future.cancel():
            future.result()


def _fetch_and_add(typing_context: Any, counter: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


next_item: Any = intrinsic(_fetch_and_add)
"""In a kernel: take the next item's number from ``counter`` (int64 [1]), atomically."""


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="flexgs-cpu")
        return _pool


def _forget_pool() -> None:
    """Threads do not survive a fork: the child starts a pool of its own when it needs one."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
