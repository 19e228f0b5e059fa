"""The table of promises."""

from pathlib import Path

import pytest

from perf import results
from perf.promises import promises
from perf.samples import Part, read_resources, read_samples
from perf.summary import summarise


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
