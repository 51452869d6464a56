"""Writing new tokens into the cache's pages: quantised once, packed where they stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.compiled import compiled
from nearbank.kernels.store import PAGE, CacheStore, stored_floats

Floats = npt.NDArray[np.float32]


@compiled(nogil=True)
def _quantise_into(new, start, table, rows, params, bits):  # type: ignore[no-untyped-def]
    """new [T, heads, D] → rows [pages, heads, PAGE, row], params [pages, heads, PAGE, 2] from token `start`."""
    word = np.zeros(1, np.uint32)
    value = word.view(np.float32)
    top = np.float32((1 << bits) - 1)
    places = 8 // bits
    for t in range(new.shape[0]):
        page, slot = table[(start + t) // PAGE], (start + t) % PAGE
        for h in range(new.shape[1]):
            x = new[t, h]
            least, most = x[0], x[0]
            for d in range(x.shape[0]):
                least, most = min(least, x[d]), max(most, x[d])
            value[0] = least
            bits_low = word[0] + (np.uint32(0xFFFF) if word[0] >> 31 == 1 else np.uint32(0))
            word[0] = (bits_low >> 16) << 16
            low = value[0]
            params[page, h, slot, 1] = np.uint16(word[0] >> 16)
            value[0] = (most - low) / top
            word[0] = ((word[0] + np.uint32(0xFFFF)) >> 16) << 16
            step = value[0]
            params[page, h, slot, 0] = np.uint16(word[0] >> 16)
            row = rows[page, h, slot]
            row[:] = 0
            for d in range(x.shape[0]):
                code = np.float32(0)
                if step != 0:
                    code = min(max(np.rint((x[d] - low) / step), np.float32(0)), top)
                block, inside = d // (16 * places), d % (16 * places)
                row[16 * block + inside % 16] |= np.uint8(np.uint8(code) << (bits * (inside // 16)))


def _write_floats(store: CacheStore, rows: npt.NDArray[Any], start: int, new: Floats) -> None:
    stored = stored_floats(store.format, new).swapaxes(0, 1)
    done = 0
    while done < len(new):
        page, slot = divmod(start + done, PAGE)
        count = min(PAGE - slot, len(new) - done)
        rows[store.table[page], :, slot : slot + count, : store.head_dim] = stored[:, done : done + count]
        done += count


def write_rows(
    store: CacheStore, rows: npt.NDArray[Any], params: npt.NDArray[np.uint16], start: int, new: Floats
) -> None:
    """new [T, kv heads, head_dim] → one layer's rows and params, from position `start`."""
    if store.format.is_float:
        _write_floats(store, rows, start, new)
    else:
        _quantise_into(new, start, store.table, rows, params, int(store.format.code_bits))


def append(store: CacheStore, layer: int, start: int, k: Floats, v: Floats) -> None:
    """Quantise k, v [T, kv heads, head_dim] once and write them at positions start …."""
    write_rows(store, store.keys[layer], store.key_params[layer], start, k)
    write_rows(store, store.values[layer], store.value_params[layer], start, v)
