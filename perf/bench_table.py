"""A figure, the bar it is held to, and the table of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What a figure is held to, in its own unit."""

    limit: float
    at_least: bool = False  # else: at most

    def is_met(self, measured: float) -> bool:
        return measured >= self.limit if self.at_least else measured <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One figure; without a bar it is printed beside the others."""

    what: str
    measured: float
    unit: str
    bar: Bar | None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        return self.bar.is_met(self.measured) if self.bar else None


def table(rows: list[Row]) -> str:
    """The rows in columns."""
    verdicts = {True: "met", False: "NOT MET", None: ""}
    cells = [("what", "measured", "bar", "", "")]
    for row in rows:
        bar = f"{row.bar} {row.unit}" if row.bar else ""
        cells.append((row.what, f"{row.measured:.2f} {row.unit}", bar, verdicts[row.met], row.detail))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)
