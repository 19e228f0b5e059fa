import pytest

from perf.schedule import intended_sends, parse


def test_sends_are_evenly_spaced_in_every_step() -> None:
    assert list(intended_sends(parse("2x1,4x0.5"))) == [0.0, 0.5, 1.0, 1.25]


@pytest.mark.parametrize("text", ["0x5", "5x0", "-1x5", "fast", "5", ""])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"above zero|could not convert"):
        parse(text)
