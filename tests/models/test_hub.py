"""Models by hub name, without any network: from a prepared cache, and one clear line where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.models.test_hf import reference

from nearbank.models.hub import UNWANTED, WANTED, find_directory

hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
from nearbank.models.load import load_model
model = load_model("some-org/tiny-llama", "numpy", kv="fp32")
print(model.name, model.logits([1, 2, 3]).argmax(axis=1).tolist())
try:
    load_model("some-org/absent")
except ValueError as error:
    print(error)
"""


def prepared(home: Path) -> Path:
    """A cache as huggingface_hub lays it out, with a pickle that must not matter."""
    repository = home / "hub" / "models--some-org--tiny-llama"
    snapshot = repository / "snapshots" / COMMIT
    reference("llama").save_pretrained(snapshot)
    (snapshot / "pytorch_model.bin").write_bytes(b"not to be opened")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize(
    "network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "unreachable"]
)
def test_the_cache_is_used_without_a_network(tmp_path: Path, network: dict[str, str]) -> None:
    import torch

    prepared(tmp_path)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment = {**own, **network, "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = reference("llama")(torch.tensor([[1, 2, 3]])).logits[0].argmax(dim=1).tolist()
    loaded, *refused = run.stdout.splitlines()
    assert loaded == f"tiny-llama {expected}"
    assert len(refused) == 1 and refused[0].startswith("some-org/absent: no such directory, and no such model in the")


def test_no_code_and_no_pickle_is_asked_for() -> None:
    kept = ["config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    kept += ["tokenizer.json", "tokenizer_config.json"]
    others = ["pytorch_model.bin", "modeling_own.py", "onnx/model.safetensors", "consolidated.safetensors", "x.pkl"]
    others += ["tf_model.h5", "flax_model.msgpack", "README.md", "training_args.bin", "original/tokenizer.json"]
    filtered = hub.utils.filter_repo_objects(kept + others, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    assert list(filtered) == kept


def test_paths_are_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_directory(tmp_path)
    assert found is not None and (found.directory, found.name) == (tmp_path, tmp_path.name)
    for source in ("shakespeare-ternary", "runs/model.safetensors", "a/b/c", "./there/none", "/there"):
        assert find_directory(source) is None
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"org/name: no such directory, .* pip install 'nearbank\[hub\]'"):
        find_directory("org/name")
