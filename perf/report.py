"""A run's data -> `report.html` (one file, offline), `report.md`, `plots/*.png` and `plots/*.svg`, `results.json`."""

import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from perf import findings, plan, plots, promises, results, tables
from perf.candidates import Constraints
from perf.chart import COLOURS, GRID, INK, MUTED, SURFACE, Chart
from perf.choices import Choice
from perf.recommend import Recommendation, recommend
from perf.study import accuracy_caveat
from perf.study_table import twelve_columns
from perf.summary import Cell
from perf.tables import Table

TITLE = "Models and deployments compared"
PLAN_RATES, PLAN_P99_MS = (1000.0, 5000.0), 200.0


@dataclass
class Report:
    """All that the page and the Markdown say."""

    run: dict[str, Any]
    cells: list[Cell]
    chosen: Recommendation

    @cached_property
    def plan_tables(self) -> list[Table]:
        """The queueing model against measurement, and what some rates would need."""
        checked, price = plan.check(self.run, self.cells), self.chosen.constraints.core_hour_price
        needs = [
            findings.needs(self.run, self.cells, rate=rate, max_p99_ms=PLAN_P99_MS, price=price) for rate in PLAN_RATES
        ]
        return [tables.checks(checked), *needs] if checked else []


def write(folder: Path, constraints: Constraints) -> Report:
    """Draw the report of the data in `folder`; the same data give the same files.

    Raises:
        ValueError: the folder holds no results.
    """
    report = read(folder, constraints)
    cells = report.cells
    results.save(folder, report.run, cells)
    wide, narrow = (plots.charts(cells, report.chosen, is_narrow) for is_narrow in (False, True))
    (folder / "report.html").write_text(page(report, wide, narrow))
    (folder / "report.md").write_text(markdown(report, wide))
    shutil.rmtree(folder / "plots", ignore_errors=True)
    (folder / "plots").mkdir()
    for chart in wide:
        (folder / "plots" / f"{chart.name}.png").write_bytes(chart.png())
        (folder / "plots" / f"{chart.name}.svg").write_text(chart.svg)
    return report


def read(folder: Path, constraints: Constraints | None = None) -> Report:
    """The report of the data in `folder`, not yet drawn; raises ValueError where there are none."""
    run, cells = results.read(folder)
    return Report(run, cells, recommend(cells, constraints or Constraints(), run["options"]["cpus"]))


def page(report: Report, wide: list[Chart], narrow: list[Chart]) -> str:
    """The whole page: one file, no address in it."""
    drawn = {a.name: figure(a, b) for a, b in zip(wide, narrow, strict=True)}
    run, cells, chosen = report.run, report.cells, report.chosen
    parts = [
        f"<h1>{TITLE}</h1>",
        f'<p class="muted">{escape(findings.when_and_where(run))}</p>',
        *(f'<p class="lead">{escape(text)}</p>' for text in findings.headline(cells)),
        *(f'<p class="warn">{escape(text)}</p>' for text in findings.warnings(cells)),
        "<h2>Recommendation</h2>",
        f"<p>{escape(findings.constraints(chosen))}</p>",
        f'<div class="cards">{"".join(card(choice) for choice in chosen.choices)}</div>',
        drawn.get("rates", ""),
        table(promises.promises(run, cells), "words"),
        "<h2>Models</h2>",
        f'<p class="note">{escape(caveat)}</p>' if (caveat := accuracy_caveat(run["models"])) else "",
        table(tables.models(run, cells), titled=False),
        drawn.get("models", ""),
        "<h2>Deployments</h2>",
        table(tables.deployments(cells), titled=False),
        drawn.get("deployments", ""),
        drawn.get("latency", ""),
        drawn.get("scaling", ""),
        "<h2>What to choose from</h2>",
        drawn.get("pareto", ""),
        table(tables.left_out(chosen), "words"),
        "<h2>The study's twelve columns</h2>",
        *(
            f"<details><summary>{escape(name)}</summary>{table(twelve_columns(name, cells), titled=False)}</details>"
            for name in run["models"]
        ),
        "<h2>Capacity beyond this machine</h2>",
        *(table(t) for t in report.plan_tables),
        "<h2>How it was measured</h2>",
        *(f"<p>{escape(text)}</p>" for text in findings.method(run)),
        table(findings.machine(run), "words", titled=False),
        *(f'<p class="note">{escape(text)}</p>' for text in findings.notes(cells)),
    ]
    template = Path(__file__).with_name("page.html").read_text()
    return template.replace("@title@", TITLE).replace("@body@", "\n".join(part for part in parts if part))


def card(choice: Choice) -> str:
    """One priority's answer."""
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in findings.figures(choice.candidate)
    )
    change = f"<h4>What would change it</h4>{_list(choice.change)}" if choice.change else ""
    return (
        f'<div class="card"><div class="priority">{escape(choice.priority.capitalize())}</div>'
        "<div "
        f'class="choice">{escape(choice.candidate.name)}</div><dl>{figures}</dl>{_list(choice.reasons)}{change}</div>'
    )


def _list(items: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def figure(wide: Chart, narrow: Chart) -> str:
    """The wide drawing and the one for a phone; the page shows the one that fits."""
    drawings = "".join(
        f'<div class="{kind}">{inline_svg(c, kind)}</div>' for kind, c in (("wide", wide), ("narrow", narrow))
    )
    return (
        f"<figure>{drawings}<figcaption>{escape(wide.title)}. "
        f"{escape(findings.CAPTIONS[wide.name])}</figcaption></figure>"
    )


def inline_svg(chart: Chart, kind: str) -> str:
    """The drawing with the page's colours, ids of its own, and hoverable marks."""
    svg = chart.svg
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    own = f"{chart.name}-{kind}-"
    svg = re.sub(r'(id="|url\(#|href="#)(?!tip-)', rf"\g<1>{own}", svg)
    svg = re.sub(r'<g id="tip-(\d+)">', lambda m: _tip(chart.tips[int(m[1])]), svg)
    for colour, name in (
        *zip((INK, MUTED, GRID, SURFACE), ("ink", "muted", "grid", "surface"), strict=True),
        *((c, f"m{k}") for k, c in enumerate(COLOURS)),
    ):
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{escape(chart.title)}" \1', svg, count=1
    )


def _tip(text: str) -> str:
    return f'<g class="tip" tabindex="0" data-tip="{escape(text)}" pointer-events="all">'


def table(content: Table, kind: str = "figures", titled: bool = True) -> str:
    """A table that scrolls sideways in its own box; empty where it has no row."""
    if not content.rows:
        return ""
    kinds = [' class="t"' if _is_text(column) else "" for column in zip(*content.rows, strict=True)]
    head = "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(kinds, content.header, strict=True))
    body = "".join(
        f'<tr class="{content.marks.get(n, "")}">'
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for n, row in enumerate(content.rows)
    )
    title = f"<h3>{escape(content.title)}</h3>" if titled else ""
    note = f'<p class="note">{escape(content.note)}</p>' if content.note else ""
    return (
        f'{title}<div class="table"><table '
        f'class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'
    )


def _is_text(column: tuple[str, ...]) -> bool:
    """Words are set to the left, figures to the right."""
    return any(cell[:1].isalpha() for cell in column)


def markdown(report: Report, drawn: list[Chart]) -> str:
    """The same for a repository's page."""
    run, cells, chosen = report.run, report.cells, report.chosen
    images = {
        chart.name: f"![{chart.title}](plots/{chart.name}.png)\n\n*{findings.CAPTIONS[chart.name]}*" for chart in drawn
    }
    blocks = [
        f"# {TITLE}",
        findings.when_and_where(run),
        *findings.headline(cells),
        *(f"> **{text}**" for text in findings.warnings(cells)),
        "## Recommendation",
        findings.constraints(chosen),
        *(_choice_markdown(choice) for choice in chosen.choices),
        images.get("rates", ""),
        table_markdown(promises.promises(run, cells)),
        "## Models",
        accuracy_caveat(run["models"]),
        table_markdown(tables.models(run, cells)),
        images.get("models", ""),
        "## Deployments",
        table_markdown(tables.deployments(cells)),
        *(images.get(name, "") for name in ("deployments", "latency", "scaling")),
        "## What to choose from",
        images.get("pareto", ""),
        table_markdown(tables.left_out(chosen)),
        "## The study's twelve columns",
        *(table_markdown(twelve_columns(name, cells)) for name in run["models"]),
        "## Capacity beyond this machine",
        *map(table_markdown, report.plan_tables),
        "## How it was measured",
        *findings.method(run),
        table_markdown(findings.machine(run)),
        *(f"- {text}" for text in findings.notes(cells)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _choice_markdown(choice: Choice) -> str:
    figures = ", ".join(f"{name.lower()} {value}" for name, value in findings.figures(choice.candidate))
    lines = [f"**{choice.priority.capitalize()}: {choice.candidate.name}** ({figures})", ""]
    lines += [f"- {reason}" for reason in choice.reasons]
    return "\n".join([*lines, *(f"- *what would change it:* {change}" for change in choice.change)])


def table_markdown(content: Table) -> str:
    """A pipe table under its title; empty where it has no row."""
    if not content.rows:
        return ""
    rows = [content.header, ["---", *["---:"] * (len(content.header) - 1)], *content.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"### {content.title}", "", *lines, *(["", content.note] if content.note else [])])
