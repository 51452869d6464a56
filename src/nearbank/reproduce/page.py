"""The results as a page of Markdown with figures: one table, published values beside ours, causes, sensitivities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearbank.plot.picture import write_picture
from nearbank.report.report import write_atomically
from nearbank.reproduce.causes import causes
from nearbank.reproduce.figures import FIGURES, figure
from nearbank.reproduce.results import Results, energy_ratios, span

FOLDER = "reproduction"  # of the data and the figures, beside the page
ROW_HEADINGS = (
    "Model", "µs/token", "mJ/token", "Row hits", "Off-chip ÷", "Not VMM", "T4 eager", "T4 roofline", "Xeon eager",
    "Energy, T4", "Energy, Xeon", "ASIC 100 MHz",
)  # fmt: skip
CLAIM_HEADINGS = ("Quantity", "Published", "Ours", "Deviation", "Inside", "Verdict", "Source")


def write_page(results: Results, folder: Path) -> Path:
    """Write reproduction.md, and beside it the results as JSON and the figures."""
    data = folder / FOLDER
    from matplotlib import rc_context

    data.mkdir(parents=True, exist_ok=True)
    results.save(data / f"{results.system}.json")
    with rc_context({"svg.hashsalt": "nearbank", "svg.fonttype": "none"}):  # the same results make the same files
        for name in FIGURES:
            write_picture(figure(name, results), data / f"{name}.svg", metadata={"Date": None})
    write_atomically(folder / "reproduction.md", page(results))
    return folder / "reproduction.md"


def page(results: Results) -> str:
    """The whole page."""
    sections = (
        _opening(results),
        "## Eight models",
        _table(ROW_HEADINGS, map(row_cells, results.rows)),
        _COLUMNS + _absences(results),
        "## Published beside ours",
        _table(CLAIM_HEADINGS, map(claim_cells, results.published)),
        _VERDICTS,
        "### Where they differ, and why",
        "\n".join(f"- **{title}.** {text}" for title, text in causes(results)),
        "### What reaching the MAC units costs",
        _reads(results),
        "## Figures",
        *(f"![{name.replace('_', ' ')}]({FOLDER}/{name}.svg)" for name in FIGURES),
        "## Sensitivities",
        *_sensitivities(results),
        "## The baselines",
        *_baselines(results),
        "## Made with",
        _made_with(results),
    )
    return "\n\n".join(sections) + "\n"


def _opening(results: Results) -> str:
    quick = "**A quick run with few tokens: not the published setting.** " if results.quick else ""
    return (
        "# PIM-GPT reproduced\n\n"
        "How much faster and leaner than a GPU and a CPU is memory that computes, by PIM-GPT's own design, when every "
        "DRAM command is played? "
        f"{quick}{len(results.rows)} models generate {results.tokens} tokens after a prompt of {results.prompt}, in "
        "bf16. Simulated rows come from the machine `pim-gpt`; T4 and Xeon are modelled from the constants below.\n\n"
        "`nearbank reproduce pim-gpt` makes this page; "
        f"`nearbank reproduce pim-gpt --from docs/{FOLDER}/{results.system}.json --docs docs` makes it again from "
        "the stored results."
    )


_COLUMNS = (
    "*Row hits* are counted by bank; counted by command they are lower (see below). *Off-chip ÷*: bytes that a plain "
    "GDDR6 system would move per token (weights, KV cache, activations) over bytes on the pins with PIM. *Not VMM*: "
    "share of the time in which the banks multiply nothing: norms, activations, sampling, writing K and V. *T4 eager*, "
    "*Xeon eager*: speedups over an eager framework, *T4 roofline* over bandwidth alone. *ASIC 100 MHz*: time with the "
    "ASIC's clock at a tenth, over the time at 1 GHz."
)
_VERDICTS = (
    "A range is over the eight models; which model gave which number is not published in what was available to us, so "
    "each of ours is held against the whole range. *Reproduced*: all inside; *within tolerance*: all within 15 %, "
    "half a point of row hits, one point of time; *missed*: some are further off. *Unverified*: the paper's text "
    "was not available to us, the value is as other papers cite it."
)


def _absences(results: Results) -> str:
    """Components of the energy that no constant is known for."""
    parts = [detail["energy_by_component_pj_per_token"] for detail in results.details.values()]
    absent = sorted({name for energies in parts for name, value in energies.items() if value is None})
    return f" Energy leaves out what the machine file gives no constant for: {', '.join(absent)}." if absent else ""


def row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A model's row as text, for each of `ROW_HEADINGS`."""
    return (
        row["model"],
        f"{row['time_ns_per_token'] / 1e3:.1f}",
        f"{row['energy_pj_per_token'] / 1e9:.2f}",
        f"{100 * row['row_hit_rate']:.2f} %",
        f"{row['off_chip_reduction']:.0f}x",
        f"{100 * row['non_vmm_share']:.2f} %",
        f"{row['speedup_gpu_eager']:.1f}x",
        f"{row['speedup_gpu_roofline']:.1f}x",
        f"{row['speedup_cpu_eager']:.0f}x",
        f"{row['energy_ratio_gpu']:.0f}x",
        f"{row['energy_ratio_cpu']:.0f}x",
        f"{row['slowdown_asic_100mhz']:.2f}x",
    )


def claim_cells(claim: Mapping[str, Any]) -> tuple[str, ...]:
    """A published value beside ours as text, for each of `CLAIM_HEADINGS`."""
    return (
        claim["quantity"],
        claim["published"],
        claim["ours"],
        claim["deviation"],
        f"{claim['inside']} of {claim['values']}",
        claim["verdict"],
        claim["source"] if claim["verified"] else f"unverified: {claim['source']}",
    )


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    head = [f"| {' | '.join(headings)} |", "|" + " --- |" * len(headings)]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in lines)])


def _reads(results: Results) -> str:
    """Energy ratios by the source of what a column's way to its MAC unit costs."""
    details = list(results.details.values())
    lines = []
    for name, own in details[0]["energy_by_reads"].items():
        costs = [detail["energy_by_reads"][name] for detail in details]
        watts = [cost["power_w"] for cost in costs]
        ratios = [energy_ratios(results, name, baseline) for baseline in ("t4 eager", "xeon-6154 eager")]
        lines.append((name, own["per_bit"], span(watts, " W", 1), *(span(r, "x") for r in ratios), own["source"]))
    headings = ("Source", "Per bit", "PIM draws", "Energy, T4", "Energy, Xeon", "What it is")
    return _READS + "\n\n" + _table(headings, lines)


_READS = (
    "Much of PIM's energy goes into columns on their way from a bank to the MAC unit beside it, and published figures "
    "for that differ almost seven times. The machine file argues for the first, and rows and figures use it; "
    "`pim-gpt-datasheet` is the machine with the last, an upper bound."
)


def _sensitivities(results: Results) -> list[str]:
    """One table per axis, models side by side."""
    axes = dict.fromkeys((row["axis"], row["unit"]) for row in results.sensitivities)
    opening = (
        f"One value of the machine is changed at a time, for {results.tokens} tokens. {results.sensitivity_steps} "
        "steps, spread evenly over the run, are played command by command, and their mean is shown. Relative times "
        "are to the published machine (1 GHz, 8 channels, 16 lanes, 2 KiB, 16 Gb/s), those of the token count to the "
        "shortest run. Fewer channels have more rows per bank, so that the models fit. Where a token count is beyond "
        "a model's context, a shape with a longer one stands in; its name ends in the count."
    )
    parts = [opening]
    for axis, unit in axes:
        rows = [row for row in results.sensitivities if row["axis"] == axis]
        heading = f"{axis}, {unit}" if unit else axis
        headings = (heading, "Shape", "µs/token", "Relative time", "Row hits")
        parts.append(_table(headings, map(_sensitivity_cells, rows)))
    parts += _capacities(results)
    if results.refused:
        parts.append("\n".join(f"- not run: {name}: {why}" for name, why in results.refused.items()))
    return parts


def _capacities(results: Results) -> list[str]:
    """Which models fit at which token counts, and by how many bytes."""
    counts = list(dict.fromkeys(row["tokens"] for row in results.capacities))
    spare = {(row["model"], row["tokens"]): row["spare_bytes"] for row in results.capacities}
    by_model: dict[str, list[str]] = {}
    for (model, count), left in spare.items():
        by_model.setdefault(model.removesuffix(f"-{count}"), []).append(f"{left:,}")
    machine = results.capacities[0]["machine_bytes"] if results.capacities else 0
    text = (
        f"Bytes to spare of the machine's {machine:,} by token count, with weights and KV cache placed in whole rows; "
        "a negative number is missing:"
    )
    lines = [(model, *cells) for model, cells in by_model.items()]
    return [text, _table(("Model", *(f"{count:,}" for count in counts)), lines)] if lines else []


def _sensitivity_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    relative = row["relative_time"]
    return (
        str(row["value"]),
        row["shape"],
        f"{row['time_ns_per_token'] / 1e3:.1f}",
        "" if relative is None else f"{relative:.3f}",
        f"{100 * row['row_hit_rate']:.2f} %",
    )


def _baselines(results: Results) -> list[str]:
    made = results.made_with
    headings = ("Constant", "Value", "Source")
    lines: list[tuple[str, str, str]] = []
    for named in (*made["frameworks"].values(), *made["processors"].values()):
        lines += _constants(named, named["name"])
    return [_CARRIED_OVER, _table(headings, lines), _other_speedups(results)]


_CARRIED_OVER = (
    "The eager framework's host costs come from `benchmarks/eager_overhead.py`, run on the machine named in "
    "`benchmarks/results/eager_overhead.json` with networks so narrow that arithmetic is free: Hugging Face's GPT-2 "
    "generating with a cache, in the versions of 2023 (`gpt2-eager`, which the rows use: the published numbers are of "
    "that year) and of 2026, and beside them the same network as bare torch operators, without a framework's own "
    "Python. They are carried over to the T4's host and to the Xeon as they are, without scaling: neither the "
    "published T4's host nor its clock is known, and the calibration machine's cores are newer, so the eager baselines "
    "lean in the processors' favour. On the T4 each kernel adds a launch, and kernels run beside the host; on the Xeon "
    "the host computes, and a GEMV reaches the same share of a plain read's bandwidth as it does on the calibration "
    "machine. That machine was shared, and other work only slows down: of several runs the least disturbed figures are "
    "taken. Between single runs they moved by a third per layer, and the GEMV's share between 0.62 and 0.88."
)


def _constants(node: object, path: str) -> Iterable[tuple[str, str, str]]:
    """Every constant of a processor or framework file: dotted name, value, source."""
    if not isinstance(node, dict):
        return
    if {"value", "source"} <= node.keys():
        unverified = "" if node.get("verified", True) else "unverified: "
        yield path, str(node["value"]), unverified + node["source"]
        return
    for key, child in node.items():
        yield from _constants(child, f"{path}.{key}")


def _other_speedups(results: Results) -> str:
    """Speedups over every modelled baseline, by model."""
    names = list(next(iter(results.details.values()), {}).get("baselines", {}))
    lines = [
        (model, *(f"{detail['baselines'][name]['speedup']:.1f}x" for name in names))
        for model, detail in results.details.items()
    ]
    return (
        "Speedups over every modelled baseline; those with other versions or a slower host stand in no row above:\n\n"
        + _table(("Model", *names), lines)
    )


def _made_with(results: Results) -> str:
    made = results.made_with
    return (
        f"nearbank {made['nearbank']} (source {made['source']}), Python {made['python']}, machine {made['machine']} "
        f"({made['machine_digest']}, {len(made['unverified_constants'])} unverified constants); {made['points']} "
        f"points, {made['simulated_seconds']:.0f} s of simulation in one process."
    )
