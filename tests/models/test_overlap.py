"""ROUGE and BLEU of an encoder-decoder: scores by hand, and a model scored on its own outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.models.test_bart import reference
from typer.testing import CliRunner

from nearbank.cli.app import app
from nearbank.models.generate import generate
from nearbank.models.load import load_model
from nearbank.models.overlap import compare_pairs, read_pairs, score

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")
tokenizers = pytest.importorskip("tokenizers")
SOURCES = ("w3 w40 w41 w42 w5 w6", "w9 w8 w77 w66 w55 w44 w33", "w10 w20 w30")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose token i is the word wi."""
    directory = tmp_path_factory.mktemp("bart")
    reference("bart").save_pretrained(directory)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(directory / "tokenizer.json"))
    return directory


def write_own_outputs(bart: Path, path: Path) -> Path:
    model = load_model(bart)
    pairs = [{"source": source, "target": generate(model, source, 12).text} for source in SOURCES]
    path.write_text("\n\n".join(map(json.dumps, pairs)))
    return path


def test_scores_by_hand() -> None:
    """Of 6 words 5 are shared, in order; of 5 pairs 3; 1 of 4 triples; no quadruple (smoothed to half of 1/3)."""
    found = score(["the cat is on the mat"], ["the cat sat on the mat"])
    assert (found.rouge1, found.rouge2, found.rougeL) == pytest.approx((500 / 6, 60, 500 / 6))
    assert found.bleu == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    two = score(["the cat is on the mat", "no word"], ["the cat sat on the mat", "entirely other"])
    assert (two.rouge1, two.rouge2) == pytest.approx((250 / 6, 30))


def test_a_model_repeats_itself_and_fewer_bits_do_not(bart: Path, tmp_path: Path) -> None:
    pairs = read_pairs(write_own_outputs(bart, tmp_path / "pairs.jsonl"))
    exact, rounded = compare_pairs(bart, pairs, weights=(None, "binary"), tokens=12)
    assert exact.scores == score(*([pair.target for pair in pairs],) * 2)
    assert exact.scores.bleu == pytest.approx(100)
    assert rounded.scores.bleu < 50
    assert rounded.weight_bytes < exact.weight_bytes / 2
    own = load_model(bart, weights="binary")
    outputs = [generate(own, source, 12) for source in SOURCES]
    assert rounded.scores == score([one.text for one in outputs], [pair.target for pair in pairs])
    assert (rounded.tokens, rounded.pairs) == (sum(len(one.tokens) for one in outputs), 3)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["quality", *map(str, arguments)])


def test_the_command_prints_a_row_for_every_pair_of_formats(bart: Path, tmp_path: Path) -> None:
    path = write_own_outputs(bart, tmp_path / "pairs.jsonl")
    options = (bart, "--pairs", path, "--weights", "fp32,int4", "--kv", "bf16,int8", "--tokens", 12)
    rows = json.loads(run(*options, "--json").stdout)["rows"]
    assert [(row["weights"], row["kv"]) for row in rows] == [
        (weights, kv) for weights in ("fp32", "int4") for kv in ("bf16", "int8")
    ]
    assert rows[0]["rouge1"] == pytest.approx(100)
    table = run(*options[:3], "--tokens", 12).stdout
    assert "ROUGE-L" in table and "100.00" in table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"source": "w3", "target": "w4"}\nw5', "line 2: not JSON"),
        ('{"source": "w3"}', 'line 1: expected "source" and "target"'),
        ('["w3", "w4"]', 'line 1: expected "source" and "target"'),
        ("\n\n", "no pairs"),
    ],
)
def test_files_without_pairs_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_impossible_requests_are_refused(bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_own_outputs(bart, tmp_path / "pairs.jsonl")
    pairs = read_pairs(path)
    for source, options, message in (
        (bart, {"kv": ("int4-wkv",)}, "'int4-wkv' is fitted to a running text"),
        (bart, {"weights": ("int5",)}, "unknown format 'int5'"),
        ("shakespeare-ternary", {}, "has no encoder; pairs are for encoder-decoders"),
    ):
        with pytest.raises(ValueError, match=message):
            list(compare_pairs(source, pairs, **options))  # type: ignore[arg-type]
    path.write_text(json.dumps({"source": "w3 " * 65, "target": "w4"}))
    with pytest.raises(ValueError, match="pair 1: "):
        list(compare_pairs(bart, read_pairs(path)))
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"ROUGE and BLEU need sacrebleu; pip install 'nearbank\[quality\]'"):
        score(["a"], ["a"])
    assert isinstance(run(bart).exception, ValueError)
