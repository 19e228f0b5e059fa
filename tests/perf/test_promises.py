"""The table of promises."""

from dataclasses import replace
from pathlib import Path

import pytest

from perf import results
from perf.promises import promises
from perf.samples import Part, read_resources, read_samples
from perf.summary import summarise


def test_a_promise_that_could_not_be_measured_is_shown_with_the_reason(finished_once: Path) -> None:
    run, cells = results.read(finished_once)
    invalid = [replace(c, reasons=["others took the cores"]) if c.stack == "single" else c for c in cells]
    rows = promises(run, invalid).rows
    shown = [row[0] for row in rows if row[1:] == ["single: others took the cores", "not measured"]]
    assert any("x the plain recipe" in promise for promise in shown)
    assert any("balanced at least 1.8 x" in promise for promise in shown)


@pytest.mark.parametrize("phase", ["idle", "closed", "rate", "varying"])
def test_a_request_that_failed_under_any_load_breaks_the_promise_that_all_are_answered(
    phase: str, finished_once: Path
) -> None:
    run, _ = results.read(finished_once)
    samples, resources = read_samples(finished_once), read_resources(finished_once)
    first = next(iter(promises(run, summarise(run, samples, resources)).rows))
    sent = sum(len(load) for part, load in samples.items() if part.stack != "plain")
    assert first[1:] == [f"{sent:,} of {sent:,} requests of all loads answered", "yes"]
    part = Part("scaled", "mobilenet_v2", phase)
    failed = samples | {part: [samples[part][0]._replace(status=503), *samples[part][1:]]}
    first = next(iter(promises(run, summarise(run, failed, resources)).rows))
    assert first[1:] == [f"{sent - 1:,} of {sent:,} requests of all loads answered", "no"]
