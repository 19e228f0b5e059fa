import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from perf import findings, results
from perf.candidates import Constraints
from perf.report import page as html
from perf.report import read, write

VOID = {"meta", "br", "path", "use", "line", "img", "rect", "circle", "polygon", "polyline"}
SECTIONS = [
    "Recommendation",
    "Models",
    "Deployments",
    "What to choose from",
    "The study's twelve columns",
    "Capacity beyond this machine",
    "How it was measured",
]


@pytest.fixture(scope="module")
def written(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its report, to be read only."""
    folder = shutil.copytree(finished_once, tmp_path_factory.mktemp("written") / "run")
    write(folder, Constraints())
    return folder


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return (written / "report.html").read_text()


class Balanced(HTMLParser):
    """Collects what is open and never closed, and closed but not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)


def test_the_page_is_one_file_that_opens_offline(page: str) -> None:
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)  # names of formats, never fetched
    assert not re.findall(r"https?://(?!127\.0\.0\.1)|@import|<link|<img|src=|url\((?!#)", without_names)
    assert page.count("<script>") == 1


def test_the_page_is_well_formed(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert (parser.open, parser.wrong) == ([], [])
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_section_is_there_in_both(page: str, written: Path) -> None:
    text = (written / "report.md").read_text()
    for section in SECTIONS:
        assert f"<h2>{section.replace(chr(39), '&#x27;')}</h2>" in page or f"<h2>{section}</h2>" in page
        assert f"## {section}\n" in text


def test_marks_can_be_hovered_and_say_their_figures(page: str) -> None:
    tips = re.findall(r'data-tip="([^"]+)"', page)
    assert any(re.match(r"mobilenet_v2 on single: \d+\.\d/s \(95 % interval", tip) for tip in tips)
    assert any(tip.startswith("2023 study, MobileNetV2") for tip in tips)
    assert 'id="tip-' not in page


def test_the_page_has_light_and_dark_and_a_phones_drawings(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert page.count('<div class="wide"><svg') == page.count('<div class="narrow"><svg') == 6
    drawings = page[page.index("<svg") : page.rindex("</svg>")]
    assert not re.findall(r"#[0-9a-f]{6}", drawings), "a colour that does not change with the page"


def files(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_of_many_photos_the_first_are_named(run_facts: dict[str, Any]) -> None:
    text = " ".join(findings.method(run_facts | {"photos": [f"{k}.jpg" for k in range(3000)]}))
    assert "7.jpg, 2992 more. Engine" in text


def test_the_same_data_give_the_same_files_also_without_the_samples(written: Path, tmp_path: Path) -> None:
    again = shutil.copytree(written, tmp_path / "again")
    for name in ("samples.csv", "resources.csv"):
        (again / name).unlink()
    write(again, Constraints())
    first, second = files(written), files(again)
    assert {path for path in first if second.get(path) != first[path]} == {Path("samples.csv"), Path("resources.csv")}


def test_a_summary_is_not_written_over_where_what_it_was_made_of_is_gone(written: Path, tmp_path: Path) -> None:
    again = shutil.copytree(written, tmp_path / "again")
    (again / "resources.csv").unlink()
    before = files(again)
    with pytest.raises(ValueError, match=r"resources\.csv, which was summarised with samples\.csv, is gone"):
        write(again, Constraints())
    assert files(again) == before


def test_samples_of_another_run_are_not_summarised_as_this_one(written: Path, tmp_path: Path) -> None:
    ours, both = results.read(written)[1], tmp_path / "both"
    shutil.copytree(written, both)
    lines = (both / "samples.csv").read_text().splitlines(keepends=True)
    (both / "samples.csv").write_text("".join(lines[: len(lines) // 2]))
    assert results.read(both)[1] == ours


def test_plots_are_png_and_svg_and_linked_from_the_markdown(written: Path) -> None:
    linked = re.findall(r"!\[[^]]*\]\((plots/[^)]+\.png)\)", (written / "report.md").read_text())
    assert sorted(linked) == sorted(f"plots/{p.name}" for p in (written / "plots").glob("*.png"))
    assert len(linked) == len(list((written / "plots").glob("*.svg"))) == 6


def test_an_invalid_cell_is_shown_with_its_reason_and_not_recommended(finished: Path) -> None:
    data = json.loads((finished / "results.json").read_text())
    for cell in data["run"]["cells"]:
        if cell["stack"] == "balanced":
            cell["reason"] = "the load generator was saturated"
    results.save(finished, data["run"])
    made = read(finished)
    assert "balanced" not in {choice.candidate.stack for choice in made.chosen.choices}
    assert "left out of the recommendation: the load generator was saturated" in html(made, [], [])


def test_the_studys_figures_stand_beside_ours_with_the_ratio(page: str, written: Path) -> None:
    text = (written / "report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| mobilenet_v2 | 58.8 "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:4] == ["58.9", "83.8"]
    assert cells[6] == "288"
    assert float(cells[8]) == pytest.approx(float(cells[4]) / 288.1, abs=0.01)  # its memory, of the study's
    assert cells[11] == "15.61"
    assert float(cells[12]) == pytest.approx(10, rel=0.1)  # times the plain recipe
    assert float(cells[13]) == pytest.approx(float(cells[9]) / 15.61, abs=0.01)
    assert "not comparable" in page
    assert "8.58" in page


def test_no_ratio_is_claimed_from_an_invalid_measurement(finished: Path) -> None:
    data = json.loads((finished / "results.json").read_text())
    for cell in data["run"]["cells"]:
        if cell["stack"] == "plain":
            cell["reason"] = "other programs took 60% of the CPU time"
    results.save(finished, data["run"])
    text = html(read(finished), [], [])
    assert "times the plain recipe" not in text
    assert "plain: other programs took 60% of the CPU time</td><td>not measured" in re.sub("<td[^>]*>", "<td>", text)


def test_nothing_to_choose_is_said(finished: Path) -> None:
    assert "No deployment meets them" in html(read(finished, Constraints(min_rate=1e6)), [], [])


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results of a run"):
        write(tmp_path, Constraints())


PROBE = """
<script>
const mark = [...document.querySelectorAll(".tip")].find((each) => each.getClientRects().length);
mark.scrollIntoView();
mark.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
const root = document.documentElement, box = say.getBoundingClientRect();
parent.postMessage({
  width: innerWidth, content: root.scrollWidth, said: say.textContent, of: mark.dataset.tip,
  left: box.left, right: box.right, ground: getComputedStyle(document.body).backgroundColor,
}, "*");
</script>
</body>"""
FRAME = """<body><iframe src="report.html" width="WIDTH" height="900"></iframe><script>
addEventListener("message", (event) => { document.body.dataset.found = JSON.stringify(event.data); });
</script></body>"""


def looked_at(page: str, folder: Path, width: int, *options: str) -> dict[str, Any]:
    """What a browser makes of the page in a frame so wide (its window is at least 500 pixels)."""
    (folder / "report.html").write_text(page.replace("</body>", PROBE))
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=5000", *options, "--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(unescape(found[1]))
    return said


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_is_cut_off_and_a_mark_says_its_figure(page: str, tmp_path: Path, width: int) -> None:
    found = looked_at(page, tmp_path, width)
    assert found["content"] <= found["width"] <= width
    assert found["said"] == found["of"] != ""
    assert 0 <= found["left"] < found["right"] <= found["width"]
    dark = looked_at(page, tmp_path, width, "--blink-settings=preferredColorScheme=0")
    assert dark["ground"] != found["ground"]
