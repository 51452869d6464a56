"""The counters over time, kept at edges that lie twice as far apart whenever there is no more room."""

from nearbank.compiled import compiled_part
from nearbank.sim import vm


@compiled_part
def keep_profile(t, m, cycle, reason):  # type: ignore[no-untyped-def]
    """Keep the counters as they stand at every edge up to `cycle`; cycles idle before an edge count for `reason`."""
    while t[vm.ROOM] and m[vm.EDGE] <= cycle:
        if m[vm.TAKEN] == t[vm.ROOM]:
            _thin(t, m)
            continue
        sample = t[vm.PROFILE] + m[vm.TAKEN] * t[vm.COUNT_SIZE]
        for i in range(t[vm.COUNT_SIZE]):
            m[sample + i] = m[vm.COUNT + i]
        idle = m[vm.EDGE] - 1 - m[vm.PREVIOUS]
        m[sample + t[vm.REASONS] - vm.COUNT + reason] += idle
        m[sample + vm.OPEN_BANK_CYCLES] += idle * m[vm.OPEN_BANKS]
        if m[vm.OPEN] != 0:
            m[sample + vm.OPEN_CYCLES] += idle
        m[vm.TAKEN] += 1
        m[vm.EDGE] += m[vm.STEP]


@compiled_part
def _thin(t, m):  # type: ignore[no-untyped-def]
    """Room for a profile twice as long: every second sample goes, and the next ones are twice as far apart."""
    size = t[vm.COUNT_SIZE]
    m[vm.TAKEN] = t[vm.ROOM] // 2
    for i in range(m[vm.TAKEN]):
        for k in range(size):
            m[t[vm.PROFILE] + i * size + k] = m[t[vm.PROFILE] + (2 * i + 1) * size + k]
    m[vm.STEP] *= 2
    m[vm.EDGE] = (m[vm.TAKEN] + 1) * m[vm.STEP]
