#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws results of `quatrain bench` as SVG, with nothing but the standard library.

usage: bench/plot.py RESULTS [-o FOLDER] [--prefix NAME-] [--only TEXT]

RESULTS is what it printed with `-o json`, or a Markdown file with what it printed without (bench/results): the
tables of `--breakdown` and of `bench ops` in it are found, whatever stands around them.

For `bench e2e`: speed.svg, tokens per second of each test, and breakdown-TEST.svg, where the time of a step
goes; the dark part of a bar is what the device's limit leaves of it. For `bench ops`: ops.svg, the share of
the limit that each operation reaches. For `bench serve`: serve.svg, how long requests waited. Prints the names
of the files it wrote.
"""
import argparse
import json
import pathlib
import re
import sys
from html import escape

WIDTH = 860
LABEL = 300  # columns of pixels for what stands left of the bars
NOTE = 120   # and right of them
ROW = 20
TOP = 80
LIGHT, DARK, TEXT, FAINT = "#9db7d5", "#1f4e8c", "#222222", "#767676"
MOST_BARS = 30


def text(x, y, content, size=12, anchor="start", colour=TEXT):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
            f'{escape(content)}</text>')


def bars(title, notes, rows):
    """An SVG of horizontal bars under up to two lines of notes; rows are (label, length, dark length, note) with
    lengths of any unit."""
    longest = max((row[1] for row in rows), default=0) or 1
    scale = (WIDTH - LABEL - NOTE) / longest
    height = TOP + ROW * len(rows) + 16
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
           f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
           f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
           text(16, 26, title, 16), *(text(16, 46 + 16 * i, note, 12, colour=FAINT) for i, note in enumerate(notes))]
    for i, (label, length, dark, note) in enumerate(rows):
        y = TOP + ROW * i
        out.append(text(LABEL - 8, y + 14, label, anchor="end"))
        out.append(f'<rect x="{LABEL}" y="{y + 3}" width="{max(0.5, length * scale):.1f}" height="{ROW - 6}" '
                   f'fill="{LIGHT}"/>')
        if dark > 0:
            out.append(f'<rect x="{LABEL}" y="{y + 3}" width="{min(dark, length) * scale:.1f}" '
                       f'height="{ROW - 6}" fill="{DARK}"/>')
        out.append(text(LABEL + length * scale + 6, y + 14, note, colour=FAINT))
    out.append("</svg>")
    return "\n".join(out) + "\n"


def speed_chart(report):
    rows = [(test["test"], test["avg_ts"], 0, f'{test["avg_ts"]:.1f} ± {test["stddev_ts"]:.1f}')
            for test in report["tests"]]
    return bars(f'{report["model"]}: tokens per second', [f'{report["backend"]}, {report["device"]}'], rows)


def limits_line(limits):
    return f'limits: {limits["read_bytes_per_s"] / 1e9:.0f} GB/s, {limits["flops"] / 1e12:.1f} TFLOP/s'


def breakdown_chart(report, breakdown):
    operations = sorted(breakdown["operations"], key=lambda line: -line["us"])
    shown, rest = operations[:MOST_BARS], operations[MOST_BARS:]
    rows = [(f'{line["layers"]}: {line["operation"]}', line["us"], line["us"] * min(1, line["share_of_limit"]),
             f'{line["us"]:.1f} µs, {100 * line["share_of_limit"]:.0f} %') for line in shown]
    if rest:
        total = sum(line["us"] for line in rest)
        rows.append((f"{len(rest)} others", total, 0, f"{total:.1f} µs"))
    kind = "as one replay" if breakdown["recorded"] else "run eagerly"
    device = ", ".join(filter(None, [report["device"], limits_line(breakdown["limits"])]))
    notes = [f'{breakdown["step_us"]:.0f} µs {kind}, {breakdown["sum_us"]:.0f} µs operation by operation; '
             "dark: time at the limit", device]
    return bars(f'{report["model"]}: {breakdown["test"]}, {breakdown["rows"]} rows', notes, rows)


def operations_chart(report):
    rows = []
    for line in report["results"]:
        context = f', context {line["context"]}' if line["context"] else ""
        share = min(1, line["share_of_limit"])
        rows.append((f'{line["model"]} {line["operation"]}, {line["rows"]} rows{context}', 1, share,
                     f'{100 * line["share_of_limit"]:.0f} %, {line["us"]:.1f} µs'))
    return bars("Share of the device's limit", [f'{report["device"]}, {limits_line(report["limits"])}'], rows)


def serve_chart(report):
    names = {"first_byte_ms": "first byte", "ttft_ms": "time to first token", "tpot_ms": "time per token",
             "itl_ms": "between tokens", "lag_ms": "lag", "refusal_ms": "refusal"}
    rows = [(name, report["p99_" + key], report["median_" + key],
             f'{report["median_" + key]:.1f} / {report["p99_" + key]:.1f} ms')
            for key, name in names.items() if "p99_" + key in report]
    notes = [f'{report["completed"]} of {report["num_prompts"]} requests complete, {report["refused"]} refused; '
             f'{report["request_throughput"]:.1f} requests/s, {report["output_throughput"]:.1f} tokens/s',
             "99th percentile; dark: median"]
    return bars(f'{report["path"]} under load', notes, rows)


def number(cell):
    return float(cell.replace(",", "").replace("%", ""))


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


STEP = re.compile(r"^(?P<test>[^|]+), one step of (?P<rows>\d+) rows: (?P<step>[\d.]+) µs "
                  r"(?P<kind>as one replay|run eagerly); operations one by one (?P<sum>[\d.]+) µs\.$")
LIMITS = re.compile(r"(?P<device>.*): (?P<read>\d+) GB/s read, (?P<flops>[\d.]+) TFLOP/s")


def read_markdown(content):
    """The reports in a Markdown file, in the shape of the JSON: one of breakdowns, one of operations."""
    heading = next((line.lstrip("# ") for line in content.splitlines() if line.startswith("# ")), "")
    steps = {"model": heading, "backend": "", "device": "", "tests": [], "breakdowns": []}
    operations = {"device": "", "limits": {}, "results": []}
    limits, table = {}, ""
    for line in content.splitlines():
        if step := STEP.match(line):
            steps["breakdowns"].append({"test": step["test"], "rows": int(step["rows"]), "limits": limits,
                                        "recorded": step["kind"] == "as one replay", "operations": [],
                                        "step_us": float(step["step"]), "sum_us": float(step["sum"])})
        elif found := LIMITS.match(line):
            limits = {"read_bytes_per_s": 1e9 * float(found["read"]), "flops": 1e12 * float(found["flops"])}
            if found["device"] == "Limits" and steps["breakdowns"]:
                steps["breakdowns"][-1]["limits"] = limits
            else:
                operations.update(device=found["device"], limits=limits)
        elif line.startswith("| layers | operation | calls |"):
            table = "step"
        elif line.startswith("| model | operation | weights, widths |"):
            table = "operations"
        elif not line.startswith("|"):
            table = ""
        elif table and not line.startswith(("|---", "| **", "| all")):
            row = cells(line)
            if table == "step" and steps["breakdowns"]:
                steps["breakdowns"][-1]["operations"].append(
                    {"layers": row[0], "operation": row[1], "us": number(row[3]),
                     "share_of_limit": number(row[9]) / 100})
            elif table == "operations":
                operations["results"].append(
                    {"model": row[0], "operation": row[1], "rows": int(row[3]), "context": int(row[4] or 0),
                     "us": number(row[5]), "share_of_limit": number(row[8]) / 100})
    return [report for report in (steps, operations) if report.get("breakdowns") or report.get("results")]


def charts(report):
    """File name → SVG."""
    if report.get("bench") == "serve":
        return {"serve.svg": serve_chart(report)}
    if "results" in report:
        return {"ops.svg": operations_chart(report)}
    out = {"speed.svg": speed_chart(report)} if report["tests"] else {}
    for breakdown in report["breakdowns"]:
        name = "breakdown-" + re.sub(r"[^a-z0-9]+", "-", breakdown["test"].lower()).strip("-")
        while name + ".svg" in out:
            name += "-again"
        out[name + ".svg"] = breakdown_chart(report, breakdown)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, help="what `quatrain bench` printed: JSON, or a .md file")
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for the files")
    parser.add_argument("--prefix", default="", help="what names of files begin with")
    parser.add_argument("--only", default="", help="draw only charts whose names contain this")
    flags = parser.parse_args()
    try:
        content = flags.results.read_text(encoding="utf-8")
        reports = read_markdown(content) if flags.results.suffix == ".md" else [json.loads(content)]
        drawn = {name: svg for report in reports for name, svg in charts(report).items() if flags.only in name}
    except (OSError, ValueError, KeyError, IndexError) as error:
        sys.exit(f"{flags.results}: not a result of quatrain bench: {error!r}")
    if not drawn:
        sys.exit(f"{flags.results}: nothing to draw in it")
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        path = flags.out / (flags.prefix + name)
        path.write_text(svg, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
