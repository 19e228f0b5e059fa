from dataclasses import replace
from math import inf
from typing import Any

import pytest

from perf.candidates import Candidate, Constraints, candidate, dominator
from perf.choices import Choice
from perf.deployment import BALANCER_CPUS
from perf.intervals import Interval
from perf.recommend import Recommendation, recommend
from perf.summary import Cell, Latency, Use


def cell(
    stack: str,
    model: str,
    *,
    accuracy: float,
    rate: float,
    p99: float,
    memory: float,
    replicas: float = 1,
    reasons: Any = (),
) -> Cell:
    mark = Interval(p99, p99, p99)
    return Cell(
        stack,
        model,
        list(reasons),
        accuracy=accuracy,
        rate=Interval(rate, 0.97 * rate, 1.03 * rate),
        use=Use(memory, 10.0, 0.5 * replicas, 0.0, 0.2, replicas, 0.0),
        latency={"rate": Latency(10, 10, p99, mark, mark, mark, [])},
    )


SMALL = cell("single", "small", accuracy=0.58, rate=100, p99=40, memory=90)
SMALL_TWICE = cell("balanced", "small", accuracy=0.58, rate=190, p99=30, memory=200, replicas=2)
LARGE = cell("single", "large", accuracy=0.60, rate=12, p99=300, memory=220)
PLAIN = cell("plain", "small", accuracy=0.58, rate=9, p99=900, memory=800)
CELLS = [SMALL, SMALL_TWICE, LARGE, PLAIN]


def chosen(cells: list[Cell] = CELLS, **limits: float) -> Recommendation:
    return recommend(cells, Constraints(**limits), cpus=0.5)


def by_priority(made: Recommendation) -> dict[str, str]:
    return {choice.priority: choice.candidate.name for choice in made.choices}


def test_a_tenth_of_a_point_of_accuracy_is_no_step_of_the_balance() -> None:
    """Within half a point accuracies count as equal: which of two is the higher decides nothing."""
    for accuracy in (0.579, 0.581):
        cheaper = cell("single", "other", accuracy=accuracy, rate=104, p99=41, memory=91)
        assert by_priority(chosen([SMALL, cheaper]))["balance"] == "other on single"


def test_each_priority_has_its_own_winner() -> None:
    assert by_priority(chosen()) == {
        "lowest cost": "small on single",
        "highest throughput": "small on balanced",
        "balance": "small on single",
        "highest accuracy": "large on single",
    }


def test_the_cost_is_that_of_every_core_reserved() -> None:
    costs = {c.stack: candidate(c, 0.5, 0.04).cost for c in (SMALL, SMALL_TWICE)}
    assert costs["single"] == pytest.approx(0.5 * 0.04 / 3600 / 100 * 1e6)
    assert costs["balanced"] == pytest.approx((2 * 0.5 + BALANCER_CPUS) * 0.04 / 3600 / 190 * 1e6)


def test_every_choice_gives_reasons_in_numbers_and_what_would_change_it() -> None:
    for choice in chosen().choices:
        assert any(character.isdigit() for reason in choice.reasons for character in reason), choice.priority
        assert choice.change, choice.priority


def test_cost_is_the_cores_reserved_for_a_million_answers() -> None:
    made = candidate(SMALL, cpus=0.5, price=0.04)
    assert made.cost == pytest.approx(0.5 * 0.04 / 3600 / 100 * 1e6)
    assert candidate(SMALL, cpus=0.1, price=0.04).cost == made.cost  # it used 0.5 cores: nothing held it to 0.1


@pytest.mark.parametrize(
    ("limits", "left", "why"),
    [
        ({"min_accuracy": 0.59}, {"large"}, "accuracy 0.580 under 0.59"),
        ({"max_p99_ms": 35}, {"small"}, "p99 40 ms over 35 ms"),
        ({"max_memory_mb": 100}, {"small"}, "memory 200 MB over 100 MB"),
        ({"min_rate": 150}, {"small"}, "100.0/s under 150/s"),
    ],
)
def test_constraints_come_first(limits: dict[str, float], left: set[str], why: str) -> None:
    made = chosen(**limits)
    assert {choice.candidate.model for choice in made.choices} == left
    assert any(why in text for _, text in made.refused)


def test_no_choice_where_nothing_meets_the_constraints() -> None:
    made = chosen(min_rate=1000)
    assert made.choices == []
    assert len(made.refused) == 4


def test_an_invalid_cell_is_left_out_with_its_reason() -> None:
    spoilt = cell(
        "scaled", "small", accuracy=0.58, rate=900, p99=1, memory=1, reasons=["the load generator was saturated"]
    )
    made = chosen([*CELLS, spoilt])
    assert by_priority(made) == by_priority(chosen())
    assert made.invalid == [("small on scaled", "the load generator was saturated")]


def test_a_cell_that_lacks_a_figure_is_left_out_with_what_it_lacks() -> None:
    unlabelled, unread = replace(LARGE, accuracy=None), replace(SMALL, stack="scaled", use=None)
    made = chosen([*CELLS[:2], PLAIN, unlabelled, unread])
    assert made.unknown == [
        ("large on single", "its accuracy is not known: convert the model with labelled photos"),
        ("small on scaled", "its resources could not be read"),
    ]


def test_the_front_holds_what_nothing_beats() -> None:
    made = chosen()
    assert {c.name for c in made.front} == {"small on single", "small on balanced", "large on single"}
    assert [(c.name, by.name) for c, by in made.dominated] == [("small on plain", "small on single")]


def test_a_chain_of_half_points_leaves_both_its_ends_on_the_front() -> None:
    """Each next one is better in all but the half point of accuracy, which is no order."""
    chain = [cell("single", name, accuracy=a, rate=r, p99=1e3 / r, memory=1e4 / r) for name, a, r in CHAIN]
    made = chosen(chain)
    assert [c.model for c in made.front] == ["exact", "quick"]


CHAIN = (("exact", 0.600, 100), ("mid", 0.596, 110), ("quick", 0.592, 120))


def test_only_what_meets_the_limits_dominates() -> None:
    made = chosen(min_accuracy=0.59)
    assert [(c.name, by.name) for c, by in made.dominated] == []
    assert {c.name for c in made.front} == {"large on single"}


def test_what_is_chosen_is_not_left_out() -> None:
    """The cheapest within half a point of the most accurate may be dominated by one that is not."""
    made = chosen([cell("single", name, accuracy=a, rate=r, p99=1e3 / r, memory=1e4 / r) for name, a, r in CHAIN])
    assert by_priority(made)["highest accuracy"] == "mid on single"
    assert made.dominated == []


def test_nothing_dominates_its_equal() -> None:
    a = Candidate("single", "a", 0.5, 10, 5, 50, 1, 9, 11, 6)
    assert dominator(a, [a, a._replace(stack="balanced")]) is None
    assert dominator(a, [a, a._replace(rate=11)]) is not None


def test_a_stack_that_did_not_keep_up_misses_any_p99() -> None:
    mark = Interval(10, 10, 10)
    behind = Cell(**{**vars(SMALL), "latency": {"rate": Latency(100, 50, 10, mark, mark, mark, [])}})
    made = chosen([behind, LARGE], max_p99_ms=1000)
    assert by_priority(made)["lowest cost"] == "large on single"
    assert candidate(behind, 0.5, 0.04).p99_ms == inf
    assert chosen([behind]).choices  # without a limit it may still be chosen


def test_equal_accuracy_goes_to_the_cheapest() -> None:
    made = chosen([SMALL_TWICE, SMALL])
    assert by_priority(made)["highest accuracy"] == "small on single"


def test_what_is_given_up_for_the_highest_accuracy_is_a_cheaper_deployment_not_a_worse_one() -> None:
    dear = cell("plain", "large", accuracy=0.59, rate=1, p99=900, memory=800)
    (best,) = [c for c in chosen([*CELLS, dear]).choices if c.priority == "highest accuracy"]
    assert best.change[-1] == "small on single has 2.0 points less, at x 8.33 the rate and x 0.12 the cost"


def test_the_price_of_a_core_changes_no_ranking() -> None:
    assert by_priority(chosen(core_hour_price=1.0)) == by_priority(chosen())


def test_overlapping_rates_are_called_a_tie() -> None:
    close = cell("scaled", "small", accuracy=0.58, rate=187, p99=35, memory=210, replicas=2)
    (fastest,) = [c for c in chosen([*CELLS, close]).choices if c.priority == "highest throughput"]
    assert "its 95 % interval and that of small on scaled overlap: another run may swap them" in fastest.change


def test_rates_that_their_intervals_do_not_tell_apart_go_to_the_more_accurate() -> None:
    close = cell("scaled", "better", accuracy=0.60, rate=187, p99=35, memory=210, replicas=2)
    (fastest,) = [c for c in chosen([*CELLS, close]).choices if c.priority == "highest throughput"]
    assert fastest.candidate.name == "better on scaled"
    assert "small on balanced at 190/s is no faster within their 95 % intervals, and 2.0 points" in fastest.reasons[0]
    assert fastest.reasons[1].startswith("next: small on balanced at 190/s (+2%)")
    assert fastest.change[0] == "small on balanced would win if it gave 199/s"  # 0.97 x 199 is over 1.03 x 187
    apart = cell("scaled", "better", accuracy=0.60, rate=170, p99=35, memory=210, replicas=2)
    assert by_priority(chosen([*CELLS, apart]))["highest throughput"] == "small on balanced"


@pytest.mark.parametrize(("priority", "rate"), [("lowest cost", 100), ("highest throughput", 190)])
@pytest.mark.parametrize(("accuracy", "times"), [(0.58, 1), (0.60, 0.97 / 1.03), (0.56, 1.03 / 0.97)])
def test_what_would_win_with_more_answers_does_with_them_and_not_with_fewer(
    priority: str, rate: float, accuracy: float, times: float
) -> None:
    def answer(rate: float) -> Choice:
        other = cell("single", "other", accuracy=accuracy, rate=rate, p99=45, memory=210)
        return next(c for c in chosen([SMALL, SMALL_TWICE, other]).choices if c.priority == priority)

    (text,) = [text for text in answer(0.9 * rate).change if text.startswith("other on single would win if")]
    stated = float(text.split()[-1].removesuffix("/s"))
    assert 0 <= stated - rate * times <= 1
    assert answer(stated).candidate.model == "other"
    assert answer(1.001 * rate * times).candidate.model == "other"
    assert answer(0.999 * rate * times).candidate.model == "small"


def test_the_most_accurate_would_win_once_no_run_tells_it_from_the_fastest() -> None:
    tied = cell("scaled", "tied", accuracy=0.60, rate=187, p99=35, memory=210, replicas=2)
    slower = cell("scaled", "slower", accuracy=0.62, rate=175, p99=35, memory=210, replicas=2)
    (fastest,) = [c for c in chosen([SMALL_TWICE, tied, slower]).choices if c.priority == "highest throughput"]
    assert fastest.candidate.model == "tied"
    assert fastest.change[0] == "slower on scaled would win if it gave 179/s"  # 1.03 x 179 reaches 0.97 x 190


def test_of_those_more_accurate_that_no_run_tells_from_the_fastest_half_a_point_decides_nothing() -> None:
    faster = cell("single", "faster", accuracy=0.602, rate=99, p99=40, memory=90)
    most_accurate = cell("single", "most", accuracy=0.604, rate=98, p99=40, memory=90)
    for cells in ([SMALL, faster, most_accurate], [most_accurate, faster, SMALL]):
        assert by_priority(chosen(cells))["highest throughput"] == "faster on single"
        assert by_priority(chosen(cells))["lowest cost"] == "faster on single"
    further = replace(most_accurate, accuracy=0.608)
    assert by_priority(chosen([SMALL, faster, further]))["highest throughput"] == "most on single"


def test_costs_that_the_rates_intervals_do_not_tell_apart_go_to_the_more_accurate() -> None:
    close = cell("single", "better", accuracy=0.60, rate=97, p99=41, memory=95)
    (cheapest,) = [c for c in chosen([*CELLS, close]).choices if c.priority == "lowest cost"]
    assert cheapest.candidate.name == "better on single"
    assert "small on single at 0.056 is no cheaper within the 95 % intervals" in cheapest.reasons[0]
    apart = cell("single", "better", accuracy=0.60, rate=90, p99=41, memory=95)
    assert by_priority(chosen([*CELLS, apart]))["lowest cost"] == "small on single"


@pytest.mark.parametrize(
    ("limits", "priority", "change"),
    [
        ({"min_accuracy": 0.59}, "lowest cost", "small on single would win with --min-accuracy 0.58"),
        ({"max_p99_ms": 35}, "highest accuracy", "large on single would win with --max-p99-ms 300"),
        ({"max_memory_mb": 100}, "highest throughput", "small on balanced would win with --max-memory-mb 200"),
        ({"min_rate": 150}, "highest accuracy", "large on single would win with --min-rate 12"),
    ],
)
def test_each_limit_says_what_would_win_were_it_looser(limits: dict[str, float], priority: str, change: str) -> None:
    (choice,) = [c for c in chosen(**limits).choices if c.priority == priority]
    assert change in choice.change
    assert not any("--" in text for c in chosen().choices for text in c.change)


def test_the_least_that_changes_a_choice_is_named_and_what_would_win_without_the_limit() -> None:
    fast = cell("scaled", "small", accuracy=0.58, rate=280, p99=32, memory=300, replicas=3)
    made = chosen([*CELLS, fast], max_memory_mb=150)
    (choice,) = [c for c in made.choices if c.priority == "highest throughput"]
    assert [text for text in choice.change if "--" in text] == [
        "small on balanced would win with --max-memory-mb 200",
        "small on scaled would win with --max-memory-mb 300",
    ]


def test_what_no_run_tells_apart_is_no_step_of_the_balance_and_of_the_front() -> None:
    """Two per cent of rate and cost are noise; eight points of accuracy are not."""
    poor = cell("single", "poor", accuracy=0.50, rate=102, p99=40, memory=90)
    made = chosen([SMALL, poor])
    assert by_priority(made)["balance"] == "small on single"
    assert [c.model for c in made.front] == ["small"]
    assert [c.model for c, _ in made.dominated] == ["poor"]


def test_nothing_cheaper_that_is_faster_is_called_enough() -> None:
    poor = cell("single", "poor", accuracy=0.50, rate=102, p99=40, memory=90)
    (choice,) = [c for c in chosen([SMALL, poor]).choices if c.priority == "highest throughput"]
    assert choice.candidate.model == "small"
    assert not any("is enough" in text for text in choice.change)


def test_limits_that_only_together_keep_something_out_are_named_together() -> None:
    limits = {"min_accuracy": 0.5, "max_p99_ms": 29, "max_memory_mb": 100}
    tiny = cell("single", "tiny", accuracy=0.5, rate=20, p99=20, memory=50)
    cells = [tiny, SMALL_TWICE, replace(LARGE, accuracy=0.4)]
    (choice,) = [c for c in chosen(cells, **limits).choices if c.priority == "highest throughput"]
    assert choice.candidate.model == "tiny"
    assert "small on balanced would win with --max-p99-ms 30 and --max-memory-mb 200" in choice.change


def test_where_nothing_meets_the_limits_the_closest_is_named_with_what_it_needs() -> None:
    made = chosen(min_accuracy=0.59, max_p99_ms=290, min_rate=5)
    assert made.closest == "small on single would with --min-accuracy 0.58"  # and cheaper than the large one
    assert chosen(min_accuracy=0.9).closest == "large on single would with --min-accuracy 0.6"
    assert chosen().closest == ""


def test_no_looser_limit_is_named_that_would_not_do() -> None:
    """The rate at which a p99 was measured still counts."""
    slow = cell("single", "slow", accuracy=0.7, rate=300, p99=50, memory=50)
    faster = replace(slow.latency["rate"], offered=200.0, answered=200.0)
    timed = replace(slow, model="timed", latency={"rate": faster}, accuracy=0.6)
    (choice,) = [c for c in chosen([slow, timed], min_rate=100, max_p99_ms=60).choices if c.priority == "lowest cost"]
    assert choice.candidate.name == "timed on single"
    assert [text for text in choice.change if "--" in text] == ["slow on single would win with --min-rate 10"]


def test_a_rate_and_a_p99_must_have_been_measured_together() -> None:
    assert chosen(min_rate=50).choices
    both = chosen(min_rate=50, max_p99_ms=100)
    assert both.choices == []  # every p99 was measured at 10 requests a second
    assert dict(both.refused)["small on single"] == "10.0/s, at which its p99 was measured, under 50/s"
