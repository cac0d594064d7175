"""Arrow buffers by address, so that one kernel can read from any number of record batches.

A corpus is mapped in thousands of record batches, and a row takes its documents from all of them. Numba wants an
array per buffer; a call per batch would put Python between the documents. So a table of addresses (int64, one row
per record batch) goes to the kernel, which turns the ones it needs into arrays. Whoever holds addresses must hold the
Arrow tables too, and must check positions against the stored sizes before reading.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """`numba.carray(pointer(address), count, dtype)` is the array at an int64 address, inside a kernel."""
    del typing_context

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), build


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Have the cache line at an int64 address on its way into the processor's caches; any address does no harm."""
    del typing_context

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        place, number = cgutils.voidptr_t, ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [place, number, number, number])
        called = builder.module.declare_intrinsic("llvm.prefetch", [place], function)
        read, keep, data = number(0), number(3), number(1)
        builder.call(called, [builder.inttoptr(arguments[0], place), read, keep, data])
        return context.get_dummy_value()

    return types.void(address), build


def address_of(array: pa.Array) -> int:
    """The address of the first value of a primitive array; slices begin at their own offset."""
    buffer = array.buffers()[1]
    return buffer.address + array.offset * (array.type.bit_width // 8) if buffer is not None and len(array) else 0


def bits_of(array: pa.Array) -> tuple[int, int]:
    """(address of the buffer, number of the first value's bit in it) of a boolean array: Arrow packs 8 to a byte."""
    buffer = array.buffers()[1]
    return (buffer.address, array.offset) if buffer is not None and len(array) else (0, 0)


@njit(cache=True, nogil=True)
def read_bit(address: int, bit: int) -> bool:
    """Bit `bit` of the buffer at `address`, lowest bit of each byte first."""
    return bool((carray(pointer(address), (bit >> 3) + 1, np.uint8)[bit >> 3] >> (bit & 7)) & 1)
