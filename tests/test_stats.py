"""Intervals and paired tests against published values, closed forms and scipy."""

import pytest
from scipy import stats

from spikeguard.stats import mcnemar, share_above, wilson


@pytest.mark.parametrize(
    ("right", "total", "interval"),
    [  # the score method without continuity correction: Newcombe, Statistics in Medicine 17, 1998, table I
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_published_intervals(right: int, total: int, interval: tuple[float, float]) -> None:
    assert wilson(right, total) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("right", "total"), [(0, 1), (3, 7), (50, 100), (999, 1000), (70_000, 1_000_000)])
def test_wilson_is_a_95_percent_interval_to_six_digits(right: int, total: int) -> None:
    expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)


def test_wilson_of_no_sample_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (0, 6), (9, 2), (40, 21)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "total"), [(1, 3), (2, 60), (30, 60), (60, 60)])
def test_share_above_is_the_bound_of_clopper_and_pearson(count: int, total: int) -> None:
    assert share_above(count, total) == pytest.approx(
        stats.beta.ppf(0.05, count, total - count + 1), abs=1e-9
    )


def test_share_above_of_nothing_is_zero() -> None:
    assert share_above(0, 60) == 0.0
