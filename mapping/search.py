"""The automatic mapper: searches the choices of a mapping, with a bound to prune and the simulator to decide.

    found = plan_best(model, machine, MappingOptions(max_context=1024), steps)
    programs = [found.plan.lower(step) for step in steps]

One choice after another is tried on some steps of the run, spread over its contexts; the quickest value is kept. It
starts at the published mapping and moves only where the simulated time falls, so it is never slower on those steps.
What a placement cannot be quicker than (`bounds.placed_ns`) is compared with the best time so far first: candidates
that cannot win are not simulated. The same input gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.mapping.bounds import bounds, matrix_cycles
from nearbank.mapping.cache_placement import team_sizes
from nearbank.mapping.choices import MatrixChoice
from nearbank.mapping.gap import Gap, gap_of
from nearbank.mapping.kept import longest_closed_ps
from nearbank.mapping.least import Least, least
from nearbank.mapping.matrix_placement import MatrixPlacement, splits
from nearbank.mapping.plan import MappingOptions, Plan, plan
from nearbank.sim.engine import Player
from nearbank.sim.machine import Machine
from nearbank.sim.result import SimResult
from nearbank.sim.retention import RETENTION_PS
from nearbank.trace import ModelDescription, Step

SAMPLES = 3  # steps that decide, in the middle of as many equal parts of the run
ROUNDS = 2  # over all choices, as one may pay only after another
MATRIX_TRIALS = 4  # ways to lay one matrix that are simulated, the quickest by their bound

Candidates = Callable[[Plan], Iterator[tuple[str, MappingOptions]]]


@dataclass(frozen=True, slots=True)
class Gain:
    """A choice that was kept: what it is, and the time of a step before and after."""

    choice: str
    before_ns: float
    after_ns: float

    @property
    def percent(self) -> float:
        return 100 * (1 - self.after_ns / self.before_ns)


@dataclass(frozen=True, slots=True)
class Found:
    """The quickest mapping found, and how: mean times of the sampled steps in nanoseconds.

    `simulated` and `pruned` count candidates. `gap` says what lies between `best_ns` and the bound of rows; `least` is
    the bound that knows of sums, vectors, writes and dependencies, too, and `ahead` the same of mappings that send
    vectors before the sums of the chunk before are read. `closed_ps`: how long a row that holds data stays closed at
    most, where there are no refresh commands.
    """

    plan: Plan
    default_ns: float
    best_ns: float
    gains: tuple[Gain, ...]
    gap: Gap
    least: Least
    ahead: Least
    simulated: int
    pruned: int
    closed_ps: int | None = None

    @property
    def percent(self) -> float:
        """What was gained over the published mapping."""
        return 100 * (1 - self.best_ns / self.default_ns)

    def lines(self) -> list[str]:
        """What was chosen and gained, and what is left, for a person."""
        head = (
            f"mapper: {self.default_ns / 1e3:.1f} us per token as published, {self.best_ns / 1e3:.1f} us found "
            f"({self.percent:.1f} % less); {self.simulated} mappings simulated, {self.pruned} ruled out by their bound"
        )
        return [
            head,
            *(f"  {g.choice}: {g.percent:.2f} %" for g in self.gains),
            *self._without_refresh(),
            *self.gap.lines(),
            *self.least.lines(self.best_ns, self.default_ns),
        ]

    def _without_refresh(self) -> list[str]:
        if self.closed_ps is None:
            return []
        return [
            f"no refresh commands: every row that holds data is opened again within {self.closed_ps / 1e9:.2f} ms, and "
            f"keeps it for {RETENTION_PS / 1e9:.0f} ms; JEDEC's standards do not promise that this is enough"
        ]


def plan_best(
    model: ModelDescription,
    machine: Machine,
    options: MappingOptions | None,
    steps: Iterable[Step],
    *,
    by_use: bool = False,
) -> Found:
    """The quickest mapping of `model` for a run of `steps`; never slower than `options` on the sampled ones.

    With `by_use` the run goes without refresh commands. Raises `NearbankError` where `plan` does, when there are no
    steps, and where the run would leave a row that holds data closed for too long to go without.
    """
    run = list(steps)
    search = _Search(machine, sample(run), model)
    best = default = search.first(options or MappingOptions())
    gains: list[Gain] = []
    for candidates in (*((_by_use,) if by_use else ()), *KNOBS * ROUNDS):
        for better in search.improve(best, candidates):
            gains.append(Gain(better.name, best.time_ns, better.time_ns))
            best = better
    gap = gap_of(best.plan, best.plan.machine, best.result, len(search.steps), search.context)
    bound, beyond = (least(best.plan, best.plan.machine, search.contexts, ahead=ahead) for ahead in (False, True))
    counts = search.simulated, search.pruned
    closed_ps = longest_closed_ps(best.plan, run) if best.plan.options.choices.by_use else None
    return Found(best.plan, default.time_ns, best.time_ns, tuple(gains), gap, bound, beyond, *counts, closed_ps)


def sample(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Some steps in which one token is decoded, spread over the run; of a run without, the first step."""
    if not steps:
        raise NearbankError("a run without steps has nothing to map for; expected at least one step")
    decoding = [step for step in steps if step.phase == "decode"] or list(steps[:1])
    count = min(SAMPLES, len(decoding))
    return tuple(decoding[(2 * i + 1) * len(decoding) // (2 * count)] for i in range(count))


@dataclass(frozen=True, slots=True)
class _Trial:
    name: str
    plan: Plan
    result: SimResult
    time_ns: float


@dataclass
class _Search:
    """Counts what was tried; everything else is a function of its arguments."""

    machine: Machine
    steps: tuple[Step, ...]
    model: ModelDescription
    simulated: int = 0
    pruned: int = 0

    @property
    def context(self) -> float:
        """Mean positions that the sampled steps attend."""
        return sum(self.contexts) / len(self.contexts)

    @property
    def contexts(self) -> list[int]:
        """Positions that each of the sampled steps attends."""
        return [max((o.context or 0) for b in step.blocks for o in b.operations) for step in self.steps]

    def first(self, options: MappingOptions) -> _Trial:
        return self._simulate("as published", plan(self.model, self.machine, options))

    def improve(self, best: _Trial, candidates: Candidates) -> Iterator[_Trial]:
        """The quickest of one knob's candidates, when it is quicker than the best so far; per matrix, for each."""
        for group in _grouped(candidates(best.plan)):
            trials = [found for name, options in group if (found := self._try(name, _onto(best, options), best))]
            quickest = min(trials, key=lambda trial: trial.time_ns, default=best)
            if quickest.time_ns < best.time_ns:
                best = quickest
                yield best

    def _try(self, name: str, options: MappingOptions, best: _Trial) -> _Trial | None:
        """A candidate simulated; None where it does not fit, changes nothing or cannot be quicker."""
        try:
            placed = plan(self.model, self.machine, options)
        except NearbankError:
            return None
        schedule = ("pieces", "early_rows", "by_use")
        same = all(getattr(options.choices, f) == getattr(best.plan.options.choices, f) for f in schedule)
        if same and placed.placement == best.plan.placement:
            return None
        if self._one_token and bounds(placed, placed.machine, self.context).placed_ns >= best.time_ns:
            self.pruned += 1
            return None
        return self._simulate(name, placed)

    @property
    def _one_token(self) -> bool:
        return self.steps[0].phase == "decode"

    def _simulate(self, name: str, placed: Plan) -> _Trial:
        player = Player(placed.machine)
        for step in self.steps:
            player.play(placed.lower(step))
        self.simulated += 1
        result = player.result()
        return _Trial(name, placed, result, result.time_ps / 1e3 / len(self.steps))


def _grouped(candidates: Iterator[tuple[str, MappingOptions]]) -> list[list[tuple[str, MappingOptions]]]:
    """Candidates of the same thing, which is what their names say before the colon, together."""
    groups: dict[str, list[tuple[str, MappingOptions]]] = {}
    for name, options in candidates:
        groups.setdefault(name.split(":")[0], []).append((name, options))
    return list(groups.values())


def _onto(best: _Trial, options: MappingOptions) -> MappingOptions:
    """A candidate with the matrices that were chosen since it was made."""
    kept = dict(best.plan.options.choices.matrices) | dict(options.choices.matrices)
    return replace(options, choices=replace(options.choices, matrices=tuple(sorted(kept.items()))))


def _by_use(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    yield "refresh: none, rows are opened often enough", _with(placed, by_use=True)


def _early_rows(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    yield "rows: opened while vectors are sent", _with(placed, early_rows=True)


def _matrices(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    for matrix in placed.placement.matrices:
        for choice in _best_choices(placed, matrix):
            chosen = placed.options.choices.with_matrix(matrix.name, choice)
            yield f"{matrix.name}: {_in_words(choice)}", replace(placed.options, choices=chosen)


def _best_choices(placed: Plan, matrix: MatrixPlacement) -> list[MatrixChoice]:
    """The quickest ways to lay one matrix by their bound, without the one that it has."""
    now = placed.options.choices.of(matrix.name)
    costs = {choice: _cost(placed, matrix.name, choice) for choice in _choices(placed, matrix) if choice != now}
    known = {choice: cost for choice, cost in costs.items() if cost is not None}
    return sorted(known, key=lambda choice: (known[choice], choice.split, choice.chunk or 0))[:MATRIX_TRIALS]


def _choices(placed: Plan, matrix: MatrixPlacement) -> Iterator[MatrixChoice]:
    """Teams of channels, chunks of the whole buffer or equal ones, both packings."""
    able = splits(format_named(matrix.use.format))
    for split in (s for s in range(1, placed.target.channels + 1) if placed.target.channels % s == 0):
        if split > 1 and not able:
            return
        columns = -(-matrix.use.columns(matrix.k) // split)
        held = max(8 * placed.target.buffer_bytes // matrix.input_bits // matrix.use.values, 1)
        equal = -(-columns // -(-columns // held))
        for chunk in {None, equal if equal < min(held, columns) else None}:
            for crossing in (None, True, False) if able else (None,):
                yield MatrixChoice(split, chunk, crossing)
            if able and columns % (chunk or held):
                yield MatrixChoice(split, chunk, narrow_first=True)


def _cost(placed: Plan, name: str, choice: MatrixChoice) -> float | None:
    chosen = placed.options.choices.with_matrix(name, choice)
    try:
        found = plan_like(placed, replace(placed.options, choices=chosen))
    except NearbankError:
        return None
    return matrix_cycles(found.placement.matrix(name), found.target)


def plan_like(placed: Plan, options: MappingOptions) -> Plan:
    """The same model on the same machine with other options."""
    return plan(placed.model, placed.machine, options)


def _in_words(choice: MatrixChoice) -> str:
    words = [f"{choice.split} channels share an output"] if choice.split > 1 else []
    words += [f"chunks of {choice.chunk} columns"] if choice.chunk else []
    words += ["the narrow one first"] if choice.narrow_first else []
    packing = {None: [], True: ["end to end over rows"], False: ["whole outputs per row"]}[choice.crossing]
    return ", ".join(words + packing) or "as published"


def _teams(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    for team in team_sizes(placed.model, placed.target, placed.placement.cache.method):
        yield f"team: {team} channels share a KV head", _with(placed, team=team)


def _in_place(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    if placed.placement.cache.scales or placed.placement.cache.method != "plain":
        return
    for team in (None, *team_sizes(placed.model, placed.target)):
        share = "" if team is None else f", {team} channels share a KV head"
        yield f"K and V: written into open rows{share}", _with(placed, in_place=True, joined=None, team=team)
        yield (
            f"K and V: written into open rows, heads one after another{share}",
            _with(placed, in_place=True, joined=False, team=team),
        )


def _heads(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    yield "heads: scored one after another", _with(placed, joined=False)


def _blocks(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    cache, target = placed.placement.cache, placed.target
    most = min(target.buffer_bytes // cache.input_bytes, target.columns * cache.use.values)
    for tokens in (most >> i for i in range(6)):
        yield f"V: {tokens} tokens in a row", replace(placed.options, v_block=tokens)


def _pieces(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    for pieces in (8, 32, 64):
        yield f"pieces: {pieces} hand-overs of a product", _with(placed, pieces=pieces)


def _padding(placed: Plan) -> Iterator[tuple[str, MappingOptions]]:
    for percent in (0, 3, 10):
        yield f"padding: up to {percent} % of outputs, so that channels are equal", _with(placed, padding=percent)


def _with(placed: Plan, **changed: object) -> MappingOptions:
    return replace(placed.options, choices=replace(placed.options.choices, **changed))  # type: ignore[arg-type]


KNOBS: tuple[Candidates, ...] = (_early_rows, _matrices, _in_place, _teams, _heads, _blocks, _pieces, _padding)
