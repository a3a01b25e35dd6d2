#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the JSON of `quatrain bench` as SVG, with nothing but the standard library.

usage: bench/plot.py RESULTS.json [-o FOLDER]

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
    kind = "one replay" if breakdown["recorded"] else "run eagerly"
    notes = [f'{breakdown["step_us"]:.0f} µs as {kind}, {breakdown["sum_us"]:.0f} µs operation by operation; '
             "dark: time at the limit", f'{report["device"]}, {limits_line(breakdown["limits"])}']
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


def charts(report):
    """File name → SVG."""
    if report.get("bench") == "serve":
        return {"serve.svg": serve_chart(report)}
    if "results" in report:
        return {"ops.svg": operations_chart(report)}
    out = {"speed.svg": speed_chart(report)}
    for breakdown in report["breakdowns"]:
        name = re.sub(r"[^a-z0-9]+", "-", breakdown["test"].lower()).strip("-")
        out[f"breakdown-{name}.svg"] = breakdown_chart(report, breakdown)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, help="what `quatrain bench … -o json` printed")
    parser.add_argument("-o", "--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for the files")
    flags = parser.parse_args()
    try:
        drawn = charts(json.loads(flags.results.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{flags.results}: not a result of quatrain bench: {error!r}")
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (flags.out / name).write_text(svg, encoding="utf-8")
        print(flags.out / name)


if __name__ == "__main__":
    main()
