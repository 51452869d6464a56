"""What a student is made of: its weights, its activations, and whether a teacher's inside is distilled into it.

A recipe is named by its bits: weights and activations ("2-8"), or weights, embeddings and activations ("2-2-8").
"twn-2" and "bwn-1" are the naive baselines that the paper sets its method against: the quantisers of TWN (arXiv
1605.04711) and BWN/XNOR-Net (arXiv 1603.05279) for weights and activations alike, scales taken from each row as it
comes, trained on the text alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nearbank.errors import NearbankError


@dataclass(frozen=True)
class Recipe:
    """weights: "fp32", "ternary", "binary", "twn" or "bwn"; activations: a kind of `nearbank.models.rounding`;
    embeddings: as weights, for the table of tokens, which the LM head uses unrounded.

    Activations are the inputs of block matrices, queries, keys and values, and the attention probabilities.
    distilled: learns from the teacher's logits, hidden states and attention scores; else from the text alone.
    """

    name: str
    weights: str
    activations: str
    distilled: bool = True
    embeddings: str = "fp32"

    @property
    def stored_as(self) -> str:
        """The format of `nearbank.formats` that holds the block matrices."""
        return {"twn": "ternary", "bwn": "binary"}.get(self.weights, self.weights)

    @property
    def rounds(self) -> bool:
        """False for the full-precision control."""
        return self.weights != "fp32"


_ALL = (
    Recipe("fp", "fp32", "fp32"),
    Recipe("2-8", "ternary", "int8"),
    Recipe("1-8", "binary", "int8"),
    Recipe("2-2", "ternary", "elastic2"),
    Recipe("1-1", "binary", "elastic1"),
    Recipe("2-2-8", "ternary", "int8", embeddings="ternary"),
    Recipe("1-1-8", "binary", "int8", embeddings="binary"),
    Recipe("twn-2", "twn", "twn", distilled=False),
    Recipe("bwn-1", "bwn", "bwn", distilled=False),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`. Raises NearbankError with the known names."""
    if name not in RECIPES:
        raise NearbankError(f"unknown precision '{name}'; known: {', '.join(RECIPES)}")
    return RECIPES[name]
