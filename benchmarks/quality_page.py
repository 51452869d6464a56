"""Write docs/quality.md and its figures from the results in docs/quality: `python benchmarks/quality_page.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kv_ablation import CACHES
from matplotlib import rc_context
from matplotlib.figure import Figure
from quality_models import CONTROL, RESTORER, RESTORER_CONTROL, RESTORERS, RESULTS, STUDENTS, TEACHER

from nearbank.models.checkpoint import load_checkpoint
from nearbank.plot.training import loss_by_bytes

PAGE = RESULTS.parent / "quality.md"
NATS_PER_BIT = 0.6931471805599453
Row = Mapping[str, Any]
NAMES = {
    TEACHER: "full precision: the teacher",
    CONTROL: "full precision: the control",
    "twn-2": "2-2 naive (TWN)",
    "bwn-1": "1-1 naive (BWN)",
    RESTORER: "full precision: the teacher",
    RESTORER_CONTROL: "full precision: the control",
}


def page(trained: Sequence[Row], restored: Sequence[Row], rounded: Sequence[Row], caches: Sequence[Row]) -> str:
    """The whole page."""
    parts: list[Iterable[str]] = [
        [INTRO], _trained_table(trained), [""], _missing([*trained, *restored]), _bars(trained), [""],
        _told(trained), ["", FIGURE, BUNDLED], _bundled(),
        *([[RESTORING], _restored_table(restored), [""], _told(restored), [""]] if restored else []),
        [ROUNDED], _rounded_table(rounded), ["", PARTS], _rounded_control(trained, rounded, caches),
        _caches_table(caches), [""], _cache_bars(caches), ["", TRAINING],
    ]  # fmt: skip
    return "\n".join(line for part in parts for line in part)


def _named(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row["name"] == name)


def _table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """columns: headings with their alignment."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join(columns.values())}|"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def _trained_table(rows: Sequence[Row]) -> Iterable[str]:
    control = _named(rows, CONTROL)["nats_per_character"]
    columns = {
        "weights–activations": "---", "nats per character": "---:", "bits per character": "---:",
        "above the control": "---:", "block weights, bytes": "---:",
    }  # fmt: skip
    return _table(columns, (_loss_cells(row, control, CONTROL) for row in rows))


def _loss_cells(row: Row, control: float, reference: str) -> Sequence[str]:
    nats = row["nats_per_character"]
    above = "" if row["name"] == reference else f"{nats - control:+.4f}"
    name = NAMES.get(row["name"], row["precision"])
    return name, f"{nats:.4f}", f"{nats / NATS_PER_BIT:.4f}", above, f"{row['block_weight_bytes']:,}"


def _bars(rows: Sequence[Row]) -> Iterable[str]:
    """The bar for 2-8, held against both full-precision models."""
    nats = _named(rows, "2-8")["nats_per_character"]
    for name, what in ((TEACHER, "the teacher it started from"), (CONTROL, "the control of equal training")):
        above = nats - _named(rows, name)["nats_per_character"]
        yield f"- 2-8 against {what}: {above:+.4f} nats per character; {_met(above, BAR_2_8)} the bar of {BAR_2_8}."


def _missing(rows: Sequence[Row]) -> Iterable[str]:
    """The runs that have no result yet."""
    there = {row["name"] for row in rows}
    wanted = [TEACHER, RESTORER, *(name for name, *_ in (*STUDENTS, *RESTORERS))]
    missing = [name for name in wanted if name not in there]
    return [f"Not trained yet: {', '.join(missing)}.", ""] if missing else []


def _met(value: float, bar: float) -> str:
    return "within" if value <= bar else "misses"


def _told(rows: Sequence[Row]) -> Iterable[str]:
    """How each was trained."""
    columns = {
        "run": "---", "steps": "---:", "learning rate": "---:", "falls over": "---:",
        "weights of hidden states, attention": "---", "seed": "---:", "products in": "---", "minutes of steps": "---:",
    }  # fmt: skip
    yield from _table(columns, map(_told_cells, rows))
    one = rows[0]
    yield ""
    yield (
        f"All: {one['layers']} layers, width {one['width']}, {one['heads']} heads, context {one['context']}, "
        f"{one['parameters']:,} parameters; {one['batch']} windows a step; {one['threads']} thread of "
        f"{one['machine']}; torch {one['torch']}, {one['date']}."
    )


def _told_cells(row: Row) -> Sequence[str]:
    return (
        row["name"],
        str(row["steps"]),
        f"{row['lr']:g}",
        f"{row['decay_percent']} %",
        f"{row['hidden_weight']:g}, {row['attention_weight']:g}",
        str(row["seed"]),
        row.get("products", "not recorded"),
        f"{row['training_time_s'] / 60:.1f}",
    )


def _bundled() -> Iterable[str]:
    """The checkpoint that ships with the package, trained with the kernels' 8-bit inputs and exact attention."""
    checkpoint = load_checkpoint()
    origin, shape = checkpoint.origin, checkpoint.config.shape
    yield (
        f"`{checkpoint.config.name}`, {shape.layers} layers of width {shape.width}, context {shape.context}: "
        f"{origin.val_loss_nats:.4f} nats per character; its teacher {origin.val_loss_twin_nats:.4f}.\n"
    )


def _restored_table(rows: Sequence[Row]) -> Iterable[str]:
    columns = {
        "weights–embeddings–activations": "---", "nats per character": "---:", "on damaged characters": "---:",
        "block weights, bytes": "---:",
    }  # fmt: skip
    return _table(columns, map(_restored_cells, rows))


def _restored_cells(row: Row) -> Sequence[str]:
    losses = f"{row['nats_per_character']:.4f}", f"{row['damaged_nats_per_character']:.4f}"
    return NAMES.get(row["name"], row["precision"]), *losses, f"{row['block_weight_bytes']:,}"


def _rounded_table(rows: Sequence[Row]) -> Iterable[str]:
    columns = {
        "rounded": "---", "weights": "---", "inputs": "---", "KV": "---", "nats per character": "---:",
        "reference": "---", "above it": "---:", "block weights, bytes": "---:", "KV, bytes per token": "---:",
    }  # fmt: skip
    return _table(columns, map(_rounded_cells, rows))


def _rounded_cells(row: Row) -> Sequence[str]:
    return (
        row["name"],
        row["weights"],
        row["inputs"],
        row["kv"],
        f"{row['nats_per_character']:.4f}",
        row["against"],
        f"{row['above_reference_nats']:+.4f} ± {row['standard_error_nats']:.4f}",
        f"{row['block_weight_bytes']:,}",
        f"{row['kv_bytes_per_token']:,}",
    )


def _rounded_control(trained: Sequence[Row], rounded: Sequence[Row], caches: Sequence[Row]) -> Iterable[str]:
    """Says which control was rounded, where it is not the students'."""
    students = _named(trained, CONTROL)["nats_per_character"]
    first = next(row for row in caches if row["weights"] == "fp32")
    used = {
        "the table above": _named(rounded, "FP")["nats_per_character"],
        "the next table": first["nats"] - first["above_exact"],
    }
    others = [what for what, nats in used.items() if abs(nats - students) > 5e-5]
    if others:
        again = read("again/fp", "again/fp-control")
        which = " and ".join(others).capitalize()
        yield (
            f"{which}: of a control that the same commands trained once more, with products in "
            f"{again[-1]['products']}.\nIt has {again[-1]['nats_per_character']:.4f} nats per character, the students' "
            f"{students:.4f}; the first one's weights were not kept, and the\nstudents were not trained again.\n"
        )
        yield from _told(again)
        yield ""


def _cache_bars(rows: Sequence[Row]) -> Iterable[str]:
    """The bar for WKVQuant, held against rounding to nearest on the same weights."""
    for row in rows:
        if row["kv"] in ("int4-wkv", "int4-wkv+feedback"):
            share, what = row["share_of_plain"], f"{row['kv']} on {row['weights']}"
            yield f"- {what}: {share:.2f} of plain rounding's loss; {_met(share, BAR_CACHE)} the bar of {BAR_CACHE}."


def _caches_table(rows: Sequence[Row]) -> Iterable[str]:
    columns = {
        "weights": "---", "KV": "---", "windows": "---:", "above the exact cache": "---:",
        "above plain rounding": "---:", "share of plain": "---:",
    }  # fmt: skip
    ours = [row for row in rows if row["model"] == CONTROL and row["kv"] in CACHES[row["weights"]]]
    ordered = sorted(
        ours, key=lambda row: (list(CACHES).index(row["weights"]), CACHES[row["weights"]].index(row["kv"]))
    )
    return _table(columns, map(_cache_cells, ordered))


def _cache_cells(row: Row) -> Sequence[str]:
    return (
        row["weights"],
        row["kv"],
        str(row["windows"]),
        f"{row['above_exact']:+.4f} ± {row['above_exact_error']:.4f}",
        f"{row['above_plain']:+.4f} ± {row['above_plain_error']:.4f}" if row["above_plain"] else "",
        f"{row['share_of_plain']:.2f}",
    )


def figure(trained: Sequence[Row], rounded: Sequence[Row]) -> Figure:
    """Left: weights, trained and rounded. Right: KV caches of the full-precision weights."""
    fig = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = fig.subplots(1, 2)
    weights = [_point(r, "naive baseline" if "w" in r["precision"] else "trained") for r in trained]
    weights += [_point(r, "rounded after training") for r in rounded if r["kv"] == "fp32" and r["name"] != "FP"]
    loss_by_bytes(weights, "block_weight_bytes", left)
    left.set_xlabel("bytes of the block matrices, scales included")
    caches = [_point(r, "KV cache, full-precision weights") for r in rounded if r["weights"] == "fp32"]
    loss_by_bytes(caches, "kv_bytes_per_token", right)
    right.set_xlabel("bytes of K and V per token, all layers")
    return fig


def _point(row: Row, kind: str) -> dict[str, Any]:
    return {**row, "kind": kind, "nats": row["nats_per_character"]}


def read(*names: str) -> list[Any]:
    """The results that are there: a page can be written while the longest runs still train."""
    paths = [RESULTS / f"{name}.json" for name in names]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def main() -> None:
    trained = read(TEACHER, *(name for name, *_ in STUDENTS))
    restored = read(RESTORER, *(name for name, *_ in RESTORERS))
    rounded, caches = read("post-training", "kv-ablation")
    PAGE.write_text(page(trained, restored, rounded, caches), encoding="utf-8")
    with rc_context({"svg.hashsalt": "nearbank"}):  # equal results, equal bytes
        figure(trained, rounded).savefig(RESULTS / "loss.svg", metadata={"Date": None})


BAR_2_8 = 0.06  # nats above full precision
BAR_CACHE = 0.5  # of what rounding to nearest costs

INTRO = """# What precision costs in quality

Made by `make quality TEXT=tinyshakespeare.txt`, which trains, rounds and writes this page; it takes about two hours on
one core and goes on where it was stopped. Every number in a table comes from a JSON file in `docs/quality/`. The text
is Tiny Shakespeare; its first 90 % trains, its last 10 % (111,540 characters) validates, cut into windows of the
model's context side by side. The models are small, so that a CPU trains them: what they show is which precision is near
which, not what a large model would lose.

## Trained at a precision

Character models in GPT-2's shape. "2-8" has ternary weights and 8-bit activations; activations are the inputs of all
block matrices, and queries, keys, values and attention probabilities. Below 8 bits activations have one learned scale
per tensor (elastic activations, arXiv 2306.01841, see `nearbank.models.elastic`). Embeddings and the LM head stay
float16. Students start from the teacher and learn from the text and from the teacher's logits, hidden states and
attention scores. The control is a student without rounding: the fair comparison, since a student goes on learning from
the text where its teacher stopped. The naive baselines start alike and take as many steps, with the quantisers of TWN
and BWN for weights and activations, scales from each row as it comes, and the text alone to learn from.
"""
FIGURE = "![Loss against bytes stored](quality/loss.svg)\n"
BUNDLED = """## The bundled model

It is 2-8 with exact attention (its KV cache takes any format), larger, and trained longer. Against its own control of
equal training rounding costs it 0.0256 nats per character, within the bar (its card in `models/checkpoints/`). The
smaller models above have fewer weights than the text could teach, so that ternary weights cost them more.
"""
RESTORING = """## An encoder and decoder that restore damaged text

BART's shape: layers in each half. In windows of 60 characters about 30 % of the spans of five are damaged, half of them
masked, half shuffled; the decoder writes the window again. "2-2-8" rounds the looked-up embeddings too. Damaged
characters are the masked ones and those that shuffling changed; the others can be copied. So few steps let a busy CPU
core finish each run within minutes; more were not tried. These runs alone, with `TEXT` the text:

    python benchmarks/quality_models.py TEXT --only restore-fp restore-fp-control restore-2-2-8 restore-1-1-8
"""
ROUNDED = """## Rounded after training

The control, rounded in other ways, run by the kernels and the caches of `nearbank.models`. Each is held against a
reference window by window, which gives the difference its standard error. "GPTQ" weights are fitted to the first 32
contexts of the training split, searched channels of a cache to the first 8, learned ones to the first 64; errors are
fed back as the first 192 weigh them. KIVI keeps the last 32 tokens exact, here a quarter of the context, which flatters
it; they are not in the bytes. KV bytes count a scale and an offset in bf16 for each token and head; heads are so small
here, 32 values, that these are a fifth of a 4-bit cache.
"""
PARTS = """### What each part of WKVQuant brings

Caches of equal bits take the same bytes and have the same decoder. "past": a token sees its own K and V exactly. "wkv":
that, and each channel has a learned shift and scale. "+feedback" goes beyond WKVQuant: codes need not be the nearest
ones, a token's later channels make good the errors of its earlier ones, weighed by what errors cost the calibration
text, and the best of nine ranges of codes is kept (`nearbank.kernels.reference.feedback`). Every cache is compared
window by window with the exact one under the same weights, and with plain rounding to nearest under them; weights are
int4 to nearest, int4 by GPTQ, or not rounded. `benchmarks/kv_ablation.py` makes the table; its arithmetic is torch's.
"""
TRAINING = """## Training one

    nearbank train tinyshakespeare.txt --out fp --precision fp --layers 3 --width 128
    nearbank train tinyshakespeare.txt --out small --precision 2-2 --layers 3 --width 128 --teacher fp --hidden-weight 1

A killed run resumes where its last state was saved, to the same bits on one machine. `--precision` is one of fp, 2-8,
1-8, 2-2, 1-1, twn-2, bwn-1 and, with `--task restore`, 2-2-8 and 1-1-8. Without `--teacher` the teacher is trained
first. The folder then holds the checkpoint, its card, the logs and the loss as a plot.

Matrix products of training are done in bfloat16 where the machine multiplies it and in float32 elsewhere; the card says
which, and so does the tables' column ("not recorded" for runs older than the column). With `--device cuda` batches,
learning rates and losses lie on the GPU and a step is one CUDA graph.
`benchmarks/quality_gpu.py` trains larger models (4 layers of 256, and 2 + 2 for the restorers) side by side on one GPU
within a given time. It has been tried with tiny models on a CPU; **it has not run on a GPU yet**.

Learned scales start where the first batch is rounded with the least square error; the authors' code starts at a
multiple of the mean. Rounded weights settle only while the learning rate falls, so students' rates fall over nearly all
of their steps.

A trained checkpoint runs packed, through `nearbank.kernels`, at any of these precisions. Its logits equal those of the
fake-quantised model in torch to the bit, on CPU, when torch computes with the deployed arithmetic
(`nearbank.models.training.deployed`): products of codes exact, float sums in the kernels' order or in double precision.
With torch's own order of sums a value on the edge between two codes now and then rounds the other way.
"""

if __name__ == "__main__":
    main()
