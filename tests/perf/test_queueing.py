"""The simulation against the closed forms of queueing theory."""

import numpy as np
import pytest

from perf.queueing import Pool, Replicas, closed_loop, open_loop, poisson, smallest

N = 100_000


def test_one_server_with_constant_service_waits_as_pollaczek_and_khinchine_say() -> None:
    rng = np.random.default_rng(1)
    made = open_loop(poisson(70, N, rng), np.full(N, 0.01), 0.0, Replicas(1, 1, 1.0))
    assert made.latency_s.mean() == pytest.approx(0.01 + 0.7 * 0.01 / (2 * 0.3), rel=0.05)
    assert made.utilisation == pytest.approx(0.7, rel=0.02)


def test_two_slots_wait_as_erlang_says() -> None:
    rng = np.random.default_rng(2)
    made = open_loop(poisson(140, N, rng), rng.exponential(0.01, N), 0.0, Replicas(1, 2, 1.0))
    assert made.latency_s.mean() == pytest.approx(0.01 / (1 - 0.7**2), rel=0.05)


def test_a_slower_slot_takes_longer() -> None:
    made = open_loop(np.arange(10.0), np.full(10, 0.01), 0.002, Replicas(1, 1, 0.5))
    assert made.latency_s == pytest.approx(np.full(10, 0.022))


def test_a_limit_under_a_core_pauses_when_the_periods_quota_is_used_up() -> None:
    half = Replicas(1, 1, quota=0.5)
    made = open_loop(np.array([0.0, 1.0]), np.array([0.120, 0.040]), 0.0, half)
    # 50 ms, pause until 100, 50 ms, pause until 200, 20 ms; a short request is over before its quota
    assert made.latency_s == pytest.approx([0.220, 0.040])
    assert closed_loop(4, np.full(2000, 0.01), 0.0, half).rate == pytest.approx(50, rel=0.02)


def test_work_that_ends_with_a_quota_ends_in_its_period() -> None:
    made = open_loop(np.array([0.0]), np.array([0.100]), 0.0, Replicas(1, 1, quota=0.5))
    assert made.latency_s == pytest.approx([0.150])


@pytest.mark.parametrize("now", [1e7, 1e16, 1e300])
def test_a_limit_pauses_however_late_it_is(now: float) -> None:
    made = open_loop(np.array([0.0, now]), np.array([0.120, 0.120]), 0.0, Replicas(1, 1, quota=0.5))
    assert made.latency_s[0] == pytest.approx(0.220)
    assert 0 <= made.latency_s[1] <= max(0.221, now * 1e-15)


def test_a_closed_loop_keeps_every_slot_busy_and_shares_the_wait() -> None:
    made = closed_loop(10, np.full(5000, 0.01), 0.0, Replicas(2, 1, 1.0))
    assert made.rate == pytest.approx(200, rel=0.01)
    assert made.latency_s[20:].mean() == pytest.approx(10 / 200, rel=0.01)


def test_the_balancer_gives_to_the_replica_with_the_fewest() -> None:
    one_long = np.array([1.0, *[0.001] * 20])
    made = open_loop(np.arange(21) * 0.01, one_long, 0.0, Replicas(2, 1, 1.0))
    assert made.latency_s[1:].max() == pytest.approx(0.001)  # nobody waits behind the long one


def test_replicas_that_are_all_idle_take_turns() -> None:
    pool = Pool(Replicas(3, 1))
    for second in range(9):
        pool.serve(float(second), 0.5)
    assert sorted(slot for (slot,) in pool.free) == [6.5, 7.5, 8.5]


@pytest.mark.parametrize("answer", [1, 2, 7, 100])
def test_the_smallest_that_is_enough(answer: int) -> None:
    assert smallest(lambda n: n >= answer, 1, 100) == answer
    assert smallest(lambda n: n >= 101, 1, 100) is None
