"""The committed run: its report is drawn from its data, it keeps the promises, and the README quotes it."""

from perf import plots, report
from perf.plan import check
from perf.promises import promises
from perf.run import STACKS
from perf.tables import found
from tests.perf.test_stacks import ROOT

FOLDER = ROOT / "perf/results"


def test_the_report_is_what_its_data_and_this_code_give() -> None:
    made = report.read(FOLDER)
    drawn = plots.charts(made.cells, made.chosen, False)
    assert (FOLDER / "report.md").read_text() == report.markdown(made, drawn)
    assert {path.stem for path in (FOLDER / "plots").iterdir()} == {chart.name for chart in drawn}


def test_every_promise_is_kept() -> None:
    made = report.read(FOLDER)
    kept = promises(made.run, made.cells).rows
    assert [row for row in kept if row[2] != "yes"] == []
    assert len(kept) == 11  # availability, rate and memory of two models against plain, int8 and balancing of three


def test_the_queueing_model_is_close_to_every_figure_that_it_is_compared_with() -> None:
    made = report.read(FOLDER)
    compared = [c for c in check(made.run, made.cells) if not c.filled]
    assert [c.name for c in compared if not c.close] == []
    assert len(compared) >= 24


def test_the_readme_quotes_it() -> None:
    made, readme = report.read(FOLDER), (ROOT / "README.md").read_text()
    for model in made.run["models"]:
        cells = [found(made.cells, stack, model) for stack in STACKS]
        figures = [f"{cell.rate.value:.1f} ({cell.p99_ms:.0f} ms)" for cell in cells if cell and cell.rate]
        assert f"| `{model}` | {' | '.join(figures)} |" in readme
    memory = [[found(made.cells, stack, model) for model in made.run["models"]] for stack in STACKS]
    shown = [", ".join(f"{cell.use.memory_mb:.0f}" for cell in row if cell and cell.use) for row in memory]
    assert f"| memory, MB | {' | '.join(shown)} |" in readme
