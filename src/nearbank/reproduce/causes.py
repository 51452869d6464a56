"""Why ours differ from the published values where they do, in sentences that carry the numbers of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from nearbank.reproduce.published import VERDICTS
from nearbank.reproduce.reads import OTHER_READS
from nearbank.reproduce.results import Results, energy_ratios, span

Why = Callable[[Results], str]


def causes(results: Results) -> Iterator[tuple[str, str]]:
    """(quantity, explanation) for every published value that ours do not lie inside of."""
    for claim in results.published:
        if claim["verdict"] != VERDICTS[0] and claim["column"] in _WHY:
            yield claim["quantity"], _WHY[claim["column"]](results)


def _gpu(results: Results) -> str:
    small, large = _ends(results)
    ours = {model: _baseline(results, model, "t4 eager") / 1e6 for model in (small, large)}
    slower = {n: _speedups(results, f"t4 eager, host {n}x slower") for n in (2, 3)}
    times = results.column("time_ns_per_token")
    asked = {model: 41 * times[model] / 1e6 for model in (small, large)}
    return (
        f"Our T4 takes {ours[small]:.1f} ms per token for {small} and {ours[large]:.1f} ms for {large}: the small "
        "models wait for the host, the large ones for fp32 weights at the 220 GB/s that a benchmark reads. For the "
        f"lowest published speedup, 41x, it would have to take {asked[small]:.1f} and {asked[large]:.1f} ms. The "
        "host's cost per layer is transformers' own, but on a newer core, carried over unscaled; the versions make "
        "little difference, and which host the published T4 had is not known. "
        f"With a host two times slower ours would be {slower[2]}, with one three times slower {slower[3]}."
    )


def _cpu(results: Results) -> str:
    return (
        f"With one core ours are {_speedups(results, 'xeon-6154 eager')}, with all 18 cores "
        f"{_speedups(results, 'xeon-6154 eager, all cores')}. How many threads the published run had is not known to "
        "us; its ratios of time and energy together put the CPU at about half of PIM's power, 12 to 14 W if the T4 "
        "drew its 70 W, which is one core of 18. The share of bandwidth that a GEMV reaches was measured on another "
        "processor, next to other work."
    )


def _energy_gpu(results: Results) -> str:
    return (
        f"{_power(results)} The published pairs of speedup and energy ratio put the T4 at 2.8 to 3 times PIM's power, "
        "PIM at about 25 W if the T4 drew its 70 W; our T4 is charged those 70 W while it waits for its host, too. "
        f"What a column costs on its way to the MAC unit decides: with the datasheet's currents PIM would draw "
        f"{_watts_with_currents(results)} and the ratios would be {_with_currents(results, 't4 eager')}, with the "
        "figures of the table below in between. The speedup's own deviation comes on top."
    )


def _energy_cpu(results: Results) -> str:
    return (
        f"{_power(results)} The CPU is charged one core's share of its thermal design power, 11.1 W. The published "
        "pairs put it at 0.51 to 0.56 of PIM's power; ours draws about as much as PIM. With the datasheet's currents "
        f"for the columns the ratios would be {_with_currents(results, 'xeon-6154 eager')}."
    )


def _rows(results: Results) -> str:
    by_bank = list(results.column("row_hit_rate").values())
    by_command = [detail["row_hit_rate_by_command"] for detail in results.details.values()]
    return (
        "The rate depends on what counts as an access, and how the paper counts is not known. Counted by bank, a MAC "
        f"in all 16 being 16 accesses, ours are {_per_cent(by_bank)}; counted by command, a MAC being one access and "
        f"each write of K and V to one bank another, they are {_per_cent(by_command)}. Writing V touches many rows for "
        "one value each, which weighs more in the second count. One miss per 64 columns, 98.44 %, is the "
        f"ceiling of products{_rate_by_tokens(results)}."
    )


def _per_cent(rates: list[float]) -> str:
    mean = sum(rates) / len(rates)
    return f"{100 * min(rates):.2f} to {100 * max(rates):.2f} %, {100 * mean:.2f} % in the mean"


def _rate_by_tokens(results: Results) -> str:
    """How the row-hit rate falls with the token count, if that was studied."""
    rows = [row for row in results.sensitivities if row["axis"] == "tokens"]
    by_model = {row["model"]: row for row in reversed(rows)}  # the shortest run of each
    found = [f"{row['model']} {100 * row['row_hit_rate']:.2f} %" for row in by_model.values()]
    return (
        f" (by bank, in runs of {next(iter(by_model.values()))['value']} tokens: {', '.join(found)})" if found else ""
    )


def _off_chip(results: Results) -> str:
    values = results.column("off_chip_reduction")
    high, low = max(values, key=lambda m: values[m]), min(values, key=lambda m: values[m])
    return (
        f"From {values[low]:.0f}x ({low}) to {values[high]:.0f}x ({high}). What counts as moved by a plain system is "
        "ours: weights, KV cache and activations of every operation, LM head included; so is the pins' traffic: "
        "vectors in, K and V in, results out, once per chunk."
    )


def _non_vmm(results: Results) -> str:
    detail = results.details["gpt3-xl"]
    parts = detail["time_by_part_ns_per_token"]
    shares = {name: ns / sum(parts.values()) for name, ns in parts.items()}
    named = ("norm", "append", "activation", "softmax", "residual", "sample")
    split = ", ".join(f"{name} {100 * shares[name]:.2f} %" for name in named if shares.get(name))
    without = results.column("non_vmm_share")["gpt3-xl"] - shares.get("append", 0)
    return (
        f"Ours for GPT3-XL is made of {split}. Writing K and V (append) is counted, as no product runs meanwhile; "
        f"whether the paper counts it is not known. Without it the share is {100 * without:.2f} %."
    )


def _asic(results: Results) -> str:
    values = results.column("slowdown_asic_100mhz")
    high, low = max(values, key=lambda m: values[m]), min(values, key=lambda m: values[m])
    return (
        f"From {values[low]:.2f}x ({low}) to {values[high]:.2f}x ({high}). The ASIC's work is counted by element on "
        "256 adders and 128 multipliers. Much of it runs beside the banks: GELU, the softmax of one head beside the "
        "scores of the next, a norm's statistics while its input arrives. What nothing can overlap with, the rest of "
        "the norms and the ends of these, grows tenfold at a tenth of the clock, most visibly in narrow models"
        f"{_fifth(results)}. How the paper's ASIC pipelines them is not known to us."
    )


def _fifth(results: Results) -> str:
    """The slowdown at 200 MHz, if that was studied."""
    rows = [row for row in results.sensitivities if (row["axis"], row["value"]) == ("ASIC clock", 200)]
    found = [f"{row['relative_time']:.2f}x ({row['model']})" for row in rows]
    return f"; at 200 MHz it is {', '.join(found)}" if found else ""


_WHY: Mapping[str, Why] = {
    "speedup_gpu_eager": _gpu,
    "speedup_cpu_eager": _cpu,
    "energy_ratio_gpu": _energy_gpu,
    "energy_ratio_cpu": _energy_cpu,
    "row_hit_rate": _rows,
    "off_chip_reduction": _off_chip,
    "non_vmm_share": _non_vmm,
    "slowdown_asic_100mhz": _asic,
}


def _baseline(results: Results, model: str, name: str) -> float:
    return float(results.details[model]["baselines"][name]["time_ns_per_token"])


def _ends(results: Results) -> tuple[str, str]:
    """The fastest and the slowest model."""
    times = results.column("time_ns_per_token")
    return min(times, key=lambda m: times[m]), max(times, key=lambda m: times[m])


def _power(results: Results) -> str:
    watts = [detail["power_w"] for detail in results.details.values()]
    reads = [_share(detail["energy_by_component_pj_per_token"], "mac_read") for detail in results.details.values()]
    return (
        f"Our PIM draws {span(watts, ' W', 1)}, {100 * min(reads):.0f} to {100 * max(reads):.0f} % of "
        "it for columns on their way to the MAC units."
    )


def _speedups(results: Results, name: str) -> str:
    """The range of speedups over one modelled baseline."""
    found = [detail["baselines"][name]["speedup"] for detail in results.details.values()]
    return f"{min(found):.0f} to {max(found):.0f}x"


def _watts_with_currents(results: Results) -> str:
    return span(
        [detail["energy_by_reads"][OTHER_READS[-1].name]["power_w"] for detail in results.details.values()], " W"
    )


def _with_currents(results: Results, baseline: str) -> str:
    return span(energy_ratios(results, OTHER_READS[-1].name, baseline), "x")


def _share(parts: Mapping[str, float | None], name: str) -> float:
    return (parts.get(name) or 0) / sum(value for value in parts.values() if value is not None)
