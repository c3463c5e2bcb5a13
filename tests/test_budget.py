"""Budgets, and ratios on an axis."""

from __future__ import annotations

import itertools
import logging
import math
import re
from fractions import Fraction
from typing import Any

import pytest

from flexgs_lightning.errors import InputError
from flexgs_lightning.model.budget import count_at, ratio_for
from flexgs_lightning.model.normalization import ratio_to_axis


def test_count_is_the_floor_of_the_decimal_as_written() -> None:
    """0.29 of 100 is 29, though 0.29 * 100 is 28.999999999999996."""
    for thousandths in range(1, 1001):
        ratio = thousandths / 1000
        for total in (100, 997, 1000, 63_000, 5_300_000):
            exact = math.floor(Fraction(thousandths, 1000) * total)
            if exact >= 1:
                assert count_at(ratio, total) == exact, (ratio, total)


@pytest.mark.parametrize("total", [1, 3, 7, 49, 10_007])
def test_a_count_survives_the_way_through_its_ratio(total: int) -> None:
    for count in range(1, total + 1):
        assert count_at(count / total, total) == count
        assert count_at(ratio_for(total, max_gaussians=count), total) == count


def test_count_never_rounds_up() -> None:
    assert count_at(0.999999, 1000) == 999
    assert count_at(0.0199999, 100) == 1
    assert count_at(1.0, 12345) == 12345


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0000001, 5.0, math.nan, math.inf])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(InputError, match=r"ratio: expected a number in \(0, 1\]"):
        count_at(ratio, 100)
    with pytest.raises(InputError, match=r"ratio: expected a number in \(0, 1\]"):
        ratio_to_axis(ratio, 0.01)
    with pytest.raises(InputError, match=r"ratio: expected a number in \(0, 1\]"):
        ratio_for(100, ratio=ratio)


@pytest.mark.parametrize(("ratio", "total"), [(0.009, 100), (1.0, 0)])
def test_ratio_of_less_than_one_gaussian(ratio: float, total: int) -> None:
    with pytest.raises(InputError, match=f"{ratio} of {total} Gaussians is less than one"):
        count_at(ratio, total)


def test_megabytes_are_met_and_used_up() -> None:
    total, size, header = 100_000, 248, 1500
    for megabytes in (0.1, 1.0, 3.7, 20.0):
        count = count_at(
            ratio_for(total, max_megabytes=megabytes, bytes_per_gaussian=size, overhead_bytes=header), total
        )
        assert header + count * size <= megabytes * 1e6 < header + (count + 1) * size


def test_a_budget_that_is_an_exact_number_of_gaussians() -> None:
    for count in (1, 7, 4035):  # count * 248 / 1e6 is not exact in floating point
        ratio = ratio_for(10_000, max_megabytes=count * 248 / 1e6, bytes_per_gaussian=248)
        assert count_at(ratio, 10_000) == count


@pytest.mark.parametrize(
    "budget", [{"max_gaussians": 1001}, {"max_megabytes": 1.0, "bytes_per_gaussian": 248}]
)
def test_budget_above_the_model_gives_the_full_model(
    budget: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert ratio_for(1000, **budget) == 1.0
    assert "the full model fits" in caplog.text


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "expected exactly one of ratio, max_gaussians, max_megabytes, max_milliseconds, found none"),
        ({"ratio": 0.5, "max_gaussians": 3}, "found ratio and max_gaussians"),
        ({"max_gaussians": 0}, "max_gaussians: 0 holds no Gaussian"),
        ({"max_gaussians": -5}, "max_gaussians: -5 holds no Gaussian"),
        ({"max_megabytes": 0.0, "bytes_per_gaussian": 248}, "max_megabytes: expected a positive number"),
        ({"max_megabytes": math.nan, "bytes_per_gaussian": 248}, "max_megabytes: expected a positive number"),
        (
            {"max_megabytes": 0.001, "bytes_per_gaussian": 248, "overhead_bytes": 900},
            r"max_megabytes: 0.001 \(one Gaussian takes 0.001148 MB\) holds no Gaussian",
        ),
    ],
)
def test_bad_budgets(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ratio_for(1000, **budget)


def test_budget_of_an_empty_model() -> None:
    with pytest.raises(InputError, match="the model holds no Gaussians"):
        ratio_for(0, max_gaussians=10)


@pytest.mark.parametrize("size", [None, 0, -1.0])
def test_megabytes_need_the_size_of_a_gaussian(size: float | None) -> None:
    with pytest.raises(ValueError, match="positive bytes_per_gaussian"):
        ratio_for(10, max_megabytes=1.0, bytes_per_gaussian=size)


def test_log_axis() -> None:
    assert ratio_to_axis(1.0, 0.01) == 1.0
    assert ratio_to_axis(0.01, 0.01) == pytest.approx(-1.0, abs=1e-15)
    assert ratio_to_axis(0.1, 0.01) == pytest.approx(0.0, abs=1e-15)
    assert ratio_to_axis(0.001, 0.01) == -1.0
    steps = [ratio_to_axis(0.02 * 2**k, 0.01) for k in range(5)]
    assert [b - a for a, b in itertools.pairwise(steps)] == pytest.approx(
        [2 * math.log(2) / math.log(100)] * 4
    )


def test_linear_axis() -> None:
    assert ratio_to_axis(1.0, 0.2, "linear") == 1.0
    assert ratio_to_axis(0.2, 0.2, "linear") == -1.0
    assert ratio_to_axis(0.6, 0.2, "linear") == pytest.approx(0.0)
    assert ratio_to_axis(0.1, 0.2, "linear") == -1.0


def test_bad_axes() -> None:
    for lowest in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InputError, match=r"lowest_ratio: expected a number in \(0, 1\)"):
            ratio_to_axis(0.5, lowest)
    with pytest.raises(InputError, match=re.escape("ratio_axis: expected 'log' or 'linear', found 'cubic'")):
        ratio_to_axis(0.5, 0.01, "cubic")  # type: ignore[arg-type]
