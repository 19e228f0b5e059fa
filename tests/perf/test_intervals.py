import numpy as np
import pytest

from perf.intervals import Interval, enough, median, per, percentiles, proportion, rate, ratio


def test_the_interval_holds_the_true_rate_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        finished = np.sort(rng.uniform(0, 30, rng.poisson(50 * 30)))
        interval = rate(finished, 30.0)
        held += interval.low <= 50 <= interval.high
    assert 0.85 <= held / 60 <= 1


def test_the_interval_holds_the_true_percentile_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(2), 0
    for _ in range(60):
        finished, values = np.sort(rng.uniform(0, 30, 1500)), rng.exponential(10, 1500)
        (interval,) = percentiles(finished, 30.0, values, (95,))
        held += interval.low <= 10 * np.log(20) <= interval.high
    assert 0.85 <= held / 60 <= 1


def test_the_interval_of_a_p99_of_few_answers_holds_it_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(5), 0
    assert not enough(99, 380)
    assert enough(99, 381)
    for _ in range(60):
        finished, values = np.sort(rng.uniform(0, 30, 381)), rng.exponential(10, 381)
        (interval,) = percentiles(finished, 30.0, values, (99,))
        held += interval.low <= 10 * np.log(100) <= interval.high
    assert 0.9 <= held / 60 <= 1


def test_the_interval_holds_the_true_cost_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(4), 0
    for _ in range(60):
        done = rng.poisson(50, 30)
        spent = done * rng.normal(10, 1, 30)
        interval = per(spent, done, spent.sum() / done.sum())
        held += interval.low <= 10 <= interval.high
    assert 0.85 <= held / 60 <= 1


def test_the_median_of_readings_lies_within_them() -> None:
    assert median(np.array([3.0, 1.0, 2.0])) == Interval(2, 1, 3)
    assert median(np.array([5.0])) == Interval(5, 5, 5)


def test_neighbours_that_wait_together_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    finished = np.linspace(0, 29.9, 1500)
    stalls = np.repeat(rng.exponential(10, 30), 50)  # all requests of a second take as long
    (together,) = percentiles(finished, 30.0, stalls, (50,))
    (alone,) = percentiles(finished, 30.0, rng.permutation(stalls), (50,))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_the_same_samples_give_the_same_interval() -> None:
    finished = np.linspace(0, 9.9, 500)
    assert rate(finished, 10.0) == rate(finished, 10.0)


def test_a_ratio_of_two_runs_holds_both_intervals() -> None:
    found = ratio(Interval(100, 90, 110), Interval(200, 190, 210))
    assert found.value == pytest.approx(2)
    assert found.low == pytest.approx(1.789, abs=0.01)
    assert found.high == pytest.approx(2.249, abs=0.01)


def test_wilsons_interval_of_a_proportion() -> None:
    found = proportion(0.5, 100)  # Brown, Cai, DasGupta 2001: 0.404 to 0.596
    assert (found.low, found.high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
