"""`nearbank demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearbank.cli.options import Backend, Out, Prompt, Seed, Temperature, Threads, Tokens
from nearbank.cli.output import Json, console, output_folder, print_json, stages

if TYPE_CHECKING:
    from nearbank.demo import DemoResult


def demo(
    prompt: Prompt = "ROMEO:",
    tokens: Tokens = 160,
    out: Out = Path("nearbank-out"),
    seed: Seed = 1,
    temperature: Temperature = 0.8,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Let the bundled ternary model write, then price that run on PIM-GPT's memory, on GPUs and on this CPU."""
    from nearbank.demo import DemoOptions, run_demo
    from nearbank.models import Sampling

    options = DemoOptions(prompt, tokens, Sampling(temperature=temperature, seed=seed), backend, threads)
    with stages() as stage:
        result = run_demo(options, output_folder(out), stage)
    if as_json:
        print_json(_as_json(result))
    else:
        _show(result)


def _as_json(result: DemoResult) -> dict[str, Any]:
    content = result.report.as_json()
    card = result.model.card
    return {
        "text": content["text"],
        "tokens": len(result.generation.tokens),
        "cpu_tokens_per_s": content["cpu_tokens_per_s"],
        "val_loss_nats": card["val_loss_nats"],
        "val_loss_twin_nats": card["val_loss_twin_nats"],
        "out": result.out,
        "machines": content["sections"][0]["machines"],
        "large": content["sections"][1],
        "prompt": content["prompt"],
        "configuration": content["configuration"],
    }


def _show(result: DemoResult) -> None:
    from rich.text import Text

    from nearbank.report.table import table

    screen = console()
    screen.print(Text.assemble((result.report.prompt or "", "dim"), result.report.text or ""))
    made = result.generation
    screen.print(f"\n{len(made.tokens)} tokens at {made.tokens_per_s:.0f} tokens/s on this CPU\n", style="bold")
    for section in result.report.sections:
        screen.print(table(section.title, section.rows, section.baseline_row))
        for remark in section.remarks:
            screen.print(remark, style="dim")
        screen.print()
    screen.print(
        f"Report: {result.out / 'report.html'}   Timeline: {result.out / 'timeline.perfetto-trace'} (ui.perfetto.dev)"
    )
