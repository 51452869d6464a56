"""What the ASIC beside the memory spends on everything that is not a matrix product.

Additions and multiplications are counted per element; the time is that of the busier of the two kinds of unit, plus
one trip through the adder tree for every pass that must see all elements before the next can begin.

Published (PIM-GPT): softmax and GELU by Taylor series, division by Newton-Raphson, inverse square root by the fast
inverse square root. How many terms and iterations is not published; those here are the fewest that stay below bf16's
rounding of 2^-9, and are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from nearbank.errors import NearbankError
from nearbank.sim.machine import Asic
from nearbank.units import FREQUENCY, SIZE, ceil_div

# exp(x) = 2^i · exp(f), |f| <= ln(2)/2: four terms leave an error of 4e-5.
TAYLOR_TERMS = 4
# Each iteration squares the error; the first guess comes from the exponent bits, 12 % (reciprocal), 3.4 % (root).
RECIPROCAL_ITERATIONS = 2
ROOT_ITERATIONS = 1


@dataclass(frozen=True, slots=True)
class Work:
    """Additions (comparisons and roundings are additions), multiplications, and dependent passes over the data."""

    adds: int = 0
    multiplies: int = 0
    passes: int = 1

    def __add__(self, other: Work) -> Work:
        return Work(self.adds + other.adds, self.multiplies + other.multiplies, self.passes + other.passes)

    @property
    def streamed(self) -> Work:
        """The same when more of its kind follows: the units stay full, so no trip is waited for."""
        return Work(self.adds, self.multiplies, 0)

    def times(self, count: int) -> Work:
        """The same for `count` elements or heads at once: the passes are shared."""
        return Work(self.adds * count, self.multiplies * count, self.passes)


_NOTHING = Work(passes=0)
# x·log2(e), round, subtract, the series by Horner's rule, put the exponent back.
_EXP = Work(adds=TAYLOR_TERMS + 3, multiplies=TAYLOR_TERMS + 1, passes=0)
# y ← y·(2 − x·y).
_RECIPROCAL = Work(adds=RECIPROCAL_ITERATIONS, multiplies=2 * RECIPROCAL_ITERATIONS, passes=1)
# y ← y·(1.5 − x/2·y²).
_ROOT = Work(adds=ROOT_ITERATIONS, multiplies=3 * ROOT_ITERATIONS + 1, passes=1)


def norm_work(n: int) -> Work:
    """Layer norm of n values: mean, centre, square and sum, then times 1/σ, gain and bias."""
    return Work(adds=4, multiplies=3, passes=3).times(n) + _ROOT


def statistics_work(n: int) -> Work:
    """Mean and squares of n values as they arrive: each block's mean, then centred, squared, summed; blocks merge."""
    return Work(adds=3, multiplies=1, passes=0).times(n)


def finish_norm_work(n: int) -> Work:
    """What a layer norm has left when its statistics came with the values: blocks merged, 1/σ, then every value."""
    return Work(adds=2, multiplies=2, passes=2).times(n) + _ROOT


def softmax_work(heads: int, positions: int) -> Work:
    """Numerators exp(x − max) and their sum. 1/√d is folded into q, the division into the context product's result."""
    each = Work(adds=3, passes=2) + _EXP
    return each.times(heads * positions)


def reciprocal_work(heads: int) -> Work:
    """One reciprocal per head, of the sum of its softmax."""
    return _RECIPROCAL.times(heads)


def normalise_work(heads: int, head_dim: int) -> Work:
    """The context product times the reciprocals."""
    return Work(multiplies=heads * head_dim)


def gelu_work(n: int) -> Work:
    """x·σ(2u), u = √(2/π)·(x + 0.044715 x³): a cubic, an exponential, a reciprocal, a product."""
    return (Work(adds=2, multiplies=4) + _EXP + _RECIPROCAL).times(n)


def add_work(n: int) -> Work:
    """n additions: residuals, embeddings, partial sums, biases, comparisons."""
    return Work(adds=n)


def partial_sum_work(n: int, *, scaled: bool) -> Work:
    """n results of one chunk: the bias or the earlier sum is added; integer results are scaled twice (row, token)."""
    return Work(adds=n, multiplies=2 * n if scaled else 0)


def scaled_sum_work(n: int) -> Work:
    """n results that the banks have scaled: the earlier sum is added, the scale of the token's inputs applied."""
    return Work(adds=n, multiplies=n)


def group_sum_work(n: int, groups: int, *, zeros: bool) -> Work:
    """n outputs of `groups` separately scaled groups each: s·(acc − z·Σx), added up."""
    return Work(adds=(2 if zeros else 1) * n * groups, multiplies=(2 if zeros else 1) * n * groups)


def quantise_work(n: int) -> Work:
    """n values to int8: largest magnitude, one reciprocal, scale, round."""
    return Work(adds=2 * n, multiplies=n, passes=2) + _RECIPROCAL


def cache_scale_work(heads: int, positions: int) -> Work:
    """Scale and offset of quantised K on scores, of quantised V on probabilities: two multiply-adds each."""
    return Work(adds=2 * heads * positions, multiplies=4 * heads * positions)


def value_scale_work(heads: int, positions: int) -> Work:
    """KIVI's share of softmax: a group's offset on scores, scale and offset of V on probabilities."""
    return Work(adds=2 * heads * positions, multiplies=2 * heads * positions)


def scale_query_work(heads: int, head_dim: int, groups: int) -> Work:
    """KIVI: every group's scales taken into the query, and its offsets times the query, summed."""
    return Work(adds=1, multiplies=2).times(heads * head_dim * groups)


def newest_work(heads: int, head_dim: int) -> Work:
    """q·k, or p·v added to the context product, of the one token that past-only caches keep exact."""
    return Work(adds=1, multiplies=1).times(heads * head_dim)


@dataclass(frozen=True, slots=True)
class AsicModel:
    """The ASIC's units. Times are whole picoseconds."""

    clock_hz: int
    adders: int
    multipliers: int
    sram_bytes: int

    @classmethod
    def of(cls, asic: Asic) -> AsicModel:
        return cls(FREQUENCY.parse(asic.clock.value), asic.adders, asic.multipliers, SIZE.parse(asic.sram.value))

    def cycles(self, work: Work) -> int:
        busy = max(ceil_div(work.adds, self.adders), ceil_div(work.multiplies, self.multipliers))
        return busy + work.passes * ceil(log2(max(self.adders, 2)))

    def time_ps(self, work: Work) -> int:
        return ceil_div(self.cycles(work) * 10**12, self.clock_hz)

    def check_sram(self, need_bytes: int, what: str, remedy: str) -> None:
        """`NearbankError` when the ASIC's memory cannot hold `need_bytes`."""
        if need_bytes > self.sram_bytes:
            raise NearbankError(
                f"the ASIC's {self.sram_bytes} bytes of SRAM are {need_bytes - self.sram_bytes} too few "
                f"for {what}; {remedy}"
            )
