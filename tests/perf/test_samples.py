from pathlib import Path

from perf.samples import Part, Sample, Second, append_resources, append_samples, read_resources, read_samples

PART, OTHER = Part("single", "m", "closed"), Part("single", "m", "rate")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    sent = [Sample(0.0, 12.5, 200, 640, 1), Sample(0.25, 30000.0, 0, 0, -1)]
    read = [Second(0.0, 1, 90_000_000, 0.0, 0.0, 0.0, 0.0, 0.0), Second(1.0, 2, 91_000_000, 0.5, 0.125, 0.25, 0.0, 0.9)]
    for part in (PART, OTHER):
        append_samples(tmp_path, part, sent)
        append_resources(tmp_path, part, read)
    assert read_samples(tmp_path) == {PART: sent, OTHER: sent}
    assert read_resources(tmp_path) == {PART: read, OTHER: read}


def test_a_last_line_cut_by_an_interrupt_is_left_out(tmp_path: Path) -> None:
    append_samples(tmp_path, PART, [Sample(0.0, 1.0, 200, 1, 0)])
    with (tmp_path / "samples.csv").open("a") as file:
        file.write("single,m,closed,0.5,")
    assert len(read_samples(tmp_path)[PART]) == 1


def test_a_folder_without_samples_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == {}
    assert read_resources(tmp_path) == {}
