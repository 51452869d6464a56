"""What a stretch between two meetings did, kept by its code and the state it began in, and done again."""

import numpy as np

from nearbank.compiled import compiled_part
from nearbank.sim import vm
from nearbank.sim.pointers import popcount

_MIX, _SPREAD = 0x5851F42D, 0x5851F42D4C957F2D


@compiled_part
def begin(t, m, code, pc, kept):  # type: ignore[no-untyped-def]
    """The stretch's first command, at `pc`, was issued: do the rest of it at once if that is kept.

    Returns whether it was, and what `keep` needs otherwise: the key's hash and what rows are counted from.
    """
    body = code[pc * vm.WIDTH + vm.STRETCH_BODY]
    origin = _origin(code, pc, m)
    h = _put_key(t, m, code[pc * vm.WIDTH + vm.STRETCH], body, origin)
    size = vm.K_SIZE + t[vm.BANKS] + _count(t, vm.SEEN_START, body)
    place = _find(t, m, kept, h, size)
    if place >= 0:
        _do_again(t, m, kept, place + size, body, origin)
        return True, h, origin
    for i in range(t[vm.ROWS]):
        m[t[vm.WAS] + i] = m[i]
    return False, h, origin


@compiled_part
def _count(t, starts, body):  # type: ignore[no-untyped-def]
    """How many entries the body has in a list, given where the lists' starts are."""
    return t[t[starts] + body + 1] - t[t[starts] + body]


@compiled_part
def _origin(code, first, m):  # type: ignore[no-untyped-def]
    """What a stretch's rows are counted from: where its first one lies in this round of the loops around it."""
    rowed = code[first * vm.WIDTH + vm.STRETCH_ROWED]
    if rowed < 0:
        return np.int64(0)
    at = (first + rowed) * vm.WIDTH
    origin = code[at + vm.ROW]
    for d in range(code[first * vm.WIDTH + vm.STRETCH_DEPTH]):
        origin += code[at + vm.ROW_STRIDES + d] * m[vm.COUNTER + d]
    return origin


@compiled_part
def _put_key(t, m, stretch, body, origin):  # type: ignore[no-untyped-def]
    """Write the key, for no phase yet, of a stretch whose first command was issued just now; returns its hash."""
    k = t[vm.KEY]
    m[k + vm.K_STRETCH] = stretch
    m[k + vm.K_PHASE] = vm.ANY_PHASE
    m[k + vm.K_REGION] = 0
    m[k + vm.K_OPEN] = m[vm.OPEN]
    m[k + vm.K_TOUCHED] = m[vm.TOUCHED]
    h = stretch * _SPREAD + m[vm.OPEN] * _MIX + m[vm.TOUCHED]
    k += vm.K_SIZE
    for b in range(t[vm.BANKS]):
        m[k + b] = (m[t[vm.ROWS] + b] - origin) if (m[vm.OPEN] >> b) & 1 else np.int64(0)
        h += m[k + b] * (_SPREAD ^ (b * _MIX))
    k += t[vm.BANKS]
    s = t[vm.SEEN] + 2 * t[t[vm.SEEN_START] + body]
    for i in range(_count(t, vm.SEEN_START, body)):
        m[k + i] = min(m[vm.PREVIOUS] - m[t[vm.LAST] + t[s + 2 * i]], t[s + 2 * i + 1])
        h += m[k + i] * (_SPREAD ^ ((i + 64) * _MIX))
    return h


@compiled_part
def _place(t, h, phase):  # type: ignore[no-untyped-def]
    """Where what has this hash and phase is kept."""
    h = (h + phase) * _SPREAD
    return ((h ^ (h >> 29) ^ (h >> 47)) & (t[vm.KEPT] - 1)) * t[vm.KEPT_WIDTH]


@compiled_part
def _is_kept(t, m, kept, place, size):  # type: ignore[no-untyped-def]
    different = np.int64(0)
    for i in range(size):
        different |= kept[place + i] ^ m[t[vm.KEY] + i]
    return different == 0


@compiled_part
def _find(t, m, kept, h, size):  # type: ignore[no-untyped-def]
    """Where it is kept what the stretch does from here on, or -1.

    That is what it did without a refresh, if none is due before that would have ended; or what it did when the next
    refresh was due just as soon.
    """
    place = _place(t, h, np.int64(vm.ANY_PHASE))
    if _is_kept(t, m, kept, place, size) and m[vm.PREVIOUS] + kept[place + size + vm.D_CYCLES] < m[vm.DUE]:
        return place
    m[t[vm.KEY] + vm.K_PHASE] = m[vm.DUE] - m[vm.PREVIOUS]
    m[t[vm.KEY] + vm.K_REGION] = m[vm.NEXT_REGION]
    place = _place(t, h, m[vm.DUE] - m[vm.PREVIOUS])
    return place if _is_kept(t, m, kept, place, size) else np.int64(-1)


@compiled_part
def _do_again(t, m, kept, k, body, origin):  # type: ignore[no-untyped-def]
    """Add up what a stretch did, which is kept from `k` on."""
    began = m[vm.PREVIOUS]
    m[vm.PREVIOUS] += kept[k + vm.D_CYCLES]
    if kept[k + vm.D_DUE]:
        m[vm.DUE] += kept[k + vm.D_DUE]
        m[vm.NEXT_REGION] = kept[k + vm.D_REGION]
    _set_rows(t, m, kept, k, origin)
    k += vm.D_SIZE + t[vm.BANKS]
    w = t[vm.WRITTEN] + 2 * t[t[vm.WRITTEN_START] + body]
    for i in range(_count(t, vm.WRITTEN_START, body)):
        if kept[k + i] != vm.UNCHANGED:
            m[t[vm.LAST] + t[w + 2 * i]] = began + kept[k + i]
    k += _count(t, vm.WRITTEN_START, body)
    c = t[vm.COUNTED] + t[t[vm.COUNTED_START] + body]
    for i in range(_count(t, vm.COUNTED_START, body)):
        m[vm.COUNT + t[c + i]] += kept[k + i]


@compiled_part
def _set_rows(t, m, kept, k, origin):  # type: ignore[no-untyped-def]
    """Open the rows that were open at the stretch's end."""
    m[vm.OPEN] = kept[k + vm.D_OPEN]
    m[vm.OPEN_BANKS] = popcount(m[vm.OPEN])
    m[vm.TOUCHED] = kept[k + vm.D_TOUCHED]
    if m[vm.OPEN] != 0:
        m[vm.SAME_ROW] = -1 if kept[k + vm.D_SAME_ROW] == vm.UNCHANGED else kept[k + vm.D_SAME_ROW] + origin
    for b in range(t[vm.BANKS]):
        if (m[vm.OPEN] >> b) & 1:
            m[t[vm.ROWS] + b] = kept[k + vm.D_SIZE + b] + origin


@compiled_part
def keep(t, m, kept, h, body, origin):  # type: ignore[no-untyped-def]
    """Keep what a stretch did since its key was written."""
    was, size = t[vm.WAS], vm.K_SIZE + t[vm.BANKS] + _count(t, vm.SEEN_START, body)
    if m[vm.DUE] == m[was + vm.DUE]:
        m[t[vm.KEY] + vm.K_PHASE] = vm.ANY_PHASE
        m[t[vm.KEY] + vm.K_REGION] = 0
    k = _place(t, h, m[t[vm.KEY] + vm.K_PHASE])
    for i in range(size):
        kept[k + i] = m[t[vm.KEY] + i]
    k += size
    _keep_scalars(t, m, kept, k, origin)
    k += vm.D_SIZE
    for b in range(t[vm.BANKS]):
        kept[k + b] = m[t[vm.ROWS] + b] - origin
    k += t[vm.BANKS]
    w = t[vm.WRITTEN] + 2 * t[t[vm.WRITTEN_START] + body]
    for i in range(_count(t, vm.WRITTEN_START, body)):
        entry = t[vm.LAST] + t[w + 2 * i]
        kept[k + i] = vm.UNCHANGED if m[entry] == m[was + entry] else m[entry] - m[was + vm.PREVIOUS]
    k += _count(t, vm.WRITTEN_START, body)
    c = t[vm.COUNTED] + t[t[vm.COUNTED_START] + body]
    for i in range(_count(t, vm.COUNTED_START, body)):
        kept[k + i] = m[vm.COUNT + t[c + i]] - m[was + vm.COUNT + t[c + i]]


@compiled_part
def _keep_scalars(t, m, kept, k, origin):  # type: ignore[no-untyped-def]
    was = t[vm.WAS]
    kept[k + vm.D_CYCLES] = m[vm.PREVIOUS] - m[was + vm.PREVIOUS]
    kept[k + vm.D_DUE] = m[vm.DUE] - m[was + vm.DUE]
    kept[k + vm.D_REGION] = m[vm.NEXT_REGION]
    kept[k + vm.D_OPEN] = m[vm.OPEN]
    kept[k + vm.D_TOUCHED] = m[vm.TOUCHED]
    kept[k + vm.D_SAME_ROW] = m[vm.SAME_ROW] - origin if m[vm.SAME_ROW] >= 0 else vm.UNCHANGED
