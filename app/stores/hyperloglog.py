"""HyperLogLog in the formats of Redis, so that a sketch can be moved between stores and visitors added to it.

A sketch maps the number of a register, as text, to its value; a register that is missing has the value 0. The formats
are those of Redis' hyperloglog.c. The estimator is that of O. Ertl, "New cardinality estimation algorithms for
HyperLogLog sketches" (2017), which Redis uses too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

ERROR = 0.0081  # the relative standard error of an estimate, 1.04 / sqrt(REGISTERS)
REGISTERS = 2**14
MAX = 51  # the largest value of a register, since hashes have 64 bits
_DENSE = b"HYLL\x00"  # how a dense sketch begins; in a sparse one the last byte is 1
_HEADER_BYTES = 16  # _DENSE, three unused bytes, and the cached estimate, whose highest bit means that it is outdated
_M, _MASK = 0xC6A4A7935BD1E995, 2**64 - 1


def sketch(ids: Iterable[str]) -> dict[str, int]:
    """Return the sketch of these ids."""
    registers: dict[str, int] = {}
    add(registers, ids)
    return registers


def add(registers: dict[str, int], ids: Iterable[str]) -> None:
    """Add ids to a sketch."""
    for hashed in map(_murmur, map(str.encode, ids)):
        register, rest = str(hashed % REGISTERS), hashed // REGISTERS | 1 << (MAX - 1)
        registers[register] = max(registers.get(register, 0), (rest & -rest).bit_length())


def estimate(*sketches: Mapping[str, int]) -> int:
    """Return the estimated number of different ids in the union of these sketches."""
    union: dict[str, int] = {}
    for sketch in sketches:
        for register, value in sketch.items():
            union[register] = max(value, union.get(register, 0))
    histogram = Counter(union.values())
    histogram[0] += REGISTERS - len(union)
    z = REGISTERS * _tau(1 - histogram[MAX] / REGISTERS)
    for value in range(MAX - 1, 0, -1):
        z = (z + histogram[value]) / 2
    z += REGISTERS * _sigma(histogram[0] / REGISTERS)
    return round(REGISTERS**2 / (2 * math.log(2)) / z)


def from_redis(data: bytes) -> dict[str, int]:
    """Return the sketch in a Redis value that PFADD wrote, dense or sparse."""
    values: list[int] = []
    if data.startswith(_DENSE):
        for i in range(_HEADER_BYTES, len(data), 3):
            four_registers = int.from_bytes(data[i : i + 3], "little")
            values += [four_registers >> bits & 63 for bits in (0, 6, 12, 18)]
    else:
        opcodes = iter(data[_HEADER_BYTES:])
        for byte in opcodes:
            if byte >= 0x80:
                values += [(byte >> 2 & 31) + 1] * ((byte & 3) + 1)
            else:
                values += [0] * ((byte & 63) + 1 if byte < 0x40 else ((byte & 63) << 8 | next(opcodes)) + 1)
    return {str(register): value for register, value in enumerate(values) if value}


def to_redis(sketch: Mapping[str, int]) -> bytes:
    """Return a sketch as the dense Redis value that PFMERGE and PFCOUNT read."""
    values = [sketch.get(str(register), 0) for register in range(REGISTERS)]
    groups_of_four = zip(values[::4], values[1::4], values[2::4], values[3::4], strict=True)
    packed = b"".join((a | b << 6 | c << 12 | d << 18).to_bytes(3, "little") for a, b, c, d in groups_of_four)
    return _DENSE + bytes(10) + b"\x80" + packed


def _murmur(data: bytes) -> int:
    """Return the MurmurHash64A of the data, with the seed of Redis."""
    hashed = 0xADC83B19 ^ (len(data) * _M & _MASK)
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        k = int.from_bytes(data[i : i + 8], "little") * _M & _MASK
        hashed = (hashed ^ ((k ^ k >> 47) * _M & _MASK)) * _M & _MASK
    if data[whole:]:
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    hashed = (hashed ^ hashed >> 47) * _M & _MASK
    return hashed ^ hashed >> 47


def _sigma(x: float) -> float:
    if x == 1:
        return math.inf
    z, y, last = x, 1.0, -1.0
    while z != last:
        x, last = x * x, z
        z, y = z + x * y, 2 * y
    return z


def _tau(x: float) -> float:
    if x in {0, 1}:
        return 0.0
    y, z, last = 1.0, 1 - x, -1.0
    while z != last:
        x, last, y = math.sqrt(x), z, y / 2
        z -= (1 - x) ** 2 * y
    return z / 3
