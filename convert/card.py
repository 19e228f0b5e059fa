"""The evidence as people read it: the table printed at the end of a conversion, and MODEL_CARD.md."""

from collections.abc import Mapping
from typing import Any

ROWS = (
    ("top-1", "top1"),
    ("95 % interval", "interval"),
    ("agreement with float", "agreement"),
    ("max / mean \\|dp\\|", "drift"),
    ("size", "size"),
    ("latency, one image", "latency"),
    ("throughput", "throughput"),
)
WEIGHTS = {7: "in codes that saturate on no CPU", 8: "in all codes (for CPUs with VNNI: others saturate)"}
CROPS = {"none": "squeezed", "center": "cropped at the centre and scaled"}


def table(report: Mapping[str, Any]) -> str:
    """Float against the packaged model, as Markdown."""
    evaluation = report["evaluation"]
    columns = [cells(evaluation, side) for side in ("float", "int8") if evaluation.get(side)]
    packaged = report["precision"] if report["verdict"] != "keep float" else "int8 (not packaged)"
    head = ["", "float32", packaged][: len(columns) + 1]
    rows = [[title, *(column[key] for column in columns)] for title, key in ROWS if any(key in one for one in columns)]
    rows.append(["verdict", *[""] * (len(columns) - 1), report["verdict"]])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def cells(evaluation: Mapping[str, Any], side: str) -> dict[str, str]:
    """One model's column; no accuracy without labels."""
    found, quantised = evaluation[side], side == "int8"
    accuracy = {}
    if "top1" in found:
        accuracy["top1"] = f"{found['top1']:.2f} %"
        accuracy["interval"] = f"{found['top1_low']:.2f} to {found['top1_high']:.2f} %"
    return {
        **accuracy,
        "agreement": f"{100 * evaluation['agreement']:.2f} %" if quantised else "",
        "drift": f"{evaluation['max_dp']:.4f} / {evaluation['mean_dp']:.5f}" if quantised else "",
        "size": f"{found['bytes'] / 1e6:.1f} MB",
        "latency": f"{found['latency_ms']:.2f} ms",
        "throughput": f"{found['images_per_s']:.1f} images/s",
    }


def model_card(report: Mapping[str, Any]) -> str:
    """MODEL_CARD.md."""
    evaluation, preprocessing = report["evaluation"], report["preprocessing"]
    machine = report["machine"]
    return "\n".join(
        [
            f"# {report['name']}, version {report['version']}",
            "",
            f"An image classifier of {len(report['labels'])} classes, converted from `{report['source']['file']}`"
            f" (SHA-256 `{report['source']['sha256'][:16]}...`). Verdict: **{report['verdict']}**. {report['reason']}",
            "",
            "## Measured",
            "",
            table(report),
            "",
            f"On {evaluation['photos']} evaluation photos that were neither calibrated nor tuned on"
            f" (split: {report['photos']['split']}). {accuracy_note(evaluation)}",
            f"Timed in turns on {machine['cores']} cores of {machine['cpu']} ({', '.join(machine['instructions'])})."
            " How it is served best there is the `plan`"
            " of `report.json`; `python -m convert.measure` measures it again elsewhere.",
            "",
            "## Input",
            "",
            f"A photo, {CROPS[preprocessing['crop']]} (`crop: {preprocessing['crop']}`) to {preprocessing['height']} x"
            f" {preprocessing['width']} pixels by a {preprocessing['resize']} filter, as uint8 RGB `[N, H, W, 3]` named"
            " `image`; normalisation is inside the graph. Output: `probabilities` float32 `[N, C]`, in the order of the"
            " labels:",
            "",
            ", ".join(report["labels"]) + ".",
            "",
            "## How it was made",
            "",
            *quantisation_lines(report),
            f"- CPUs: {portability_line(report['portability'])}",
            f"- Float parity with the source: max |dp| {report['parity']['max_dp']:.1e} on"
            f" {report['parity']['photos']} photos (limit {report['parity']['limit']:g}).",
            "",
            "Hashes, versions and all figures: `report.json`.",
            "",
        ]
    )


def accuracy_note(evaluation: Mapping[str, Any]) -> str:
    """What the figures can and cannot say."""
    if "drop" in evaluation:
        return f"The drop in top-1 is {evaluation['drop']:.2f} points (int8 against float)."
    return "The photos have no labels: agreement with the float model is measured, accuracy is not."


def quantisation_lines(report: Mapping[str, Any]) -> list[str]:
    """Recipe and provenance, or why the model stayed float."""
    recipe = report.get("quantisation")
    if not recipe:
        return ["- Kept in float32."]
    macs = 100 * recipe.get("macs", 1.0)  # not in packages made before pruning was
    pruned = f"Channels pruned: {macs:.0f} % of the multiplications are left, fitted on the calibration photos."
    count = len(recipe["kept_float"])
    kept = f"{count or 'no'} tensor{'s' * (count > 1)} kept float"
    return [
        *([f"- {pruned}"] if macs < 100 else []),
        f"- Static QDQ, u8 activations (ranges: {recipe['clip']}), s8 weights per channel"
        f" {WEIGHTS[recipe['weight_bits']]}, rounded by least squares with bias correction; {kept}.",
        f"- Calibrated on {report['photos']['calibration']} photos, tuned on {report['photos']['tuning']};"
        f" steps left in float: {', '.join(recipe['float_steps']) or 'none'}.",
    ]


def portability_line(found: Mapping[str, Any]) -> str:
    """Where the answers were checked."""
    here = ", ".join(found["cpu"]) or "no known int8 instructions"
    if "skipped" in found:
        return f"checked on this one ({here}) only: {found['skipped']}."
    return (
        f"this one ({here}) and {found['other_cpu']} agree on {found['agreement']:.1f} % of {found['photos']} images,"
        f" max |dp| {found['max_dp']:.1e}."
    )
