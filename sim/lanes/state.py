"""Small questions to a lane's memory and to the tables: the time, an address, the banks a command reaches."""

from nearbank.compiled import compiled_part
from nearbank.sim import vm


@compiled_part
def now_of(m):  # type: ignore[no-untyped-def]
    return max(m[vm.PREVIOUS] + 1, m[vm.FLOOR])


@compiled_part
def affine(code, pc, base, strides, m):  # type: ignore[no-untyped-def]
    value = code[pc * vm.WIDTH + base]
    for d in range(code[pc * vm.WIDTH + vm.DEPTH]):
        value += code[pc * vm.WIDTH + strides + d] * m[vm.COUNTER + d]
    return value


@compiled_part
def spec_of(command):  # type: ignore[no-untyped-def]
    """Where the command's own row of the command table is."""
    return vm.COMMANDS + command * vm.COMMAND_WIDTH


@compiled_part
def mask_of(t, command, bank):  # type: ignore[no-untyped-def]
    """The banks that the command reaches, as bits."""
    return t[spec_of(command) + vm.REACHED] << bank
