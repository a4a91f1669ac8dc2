"""HyperLogLog as Redis has it, so that its estimates can be read, moved and go on in any store.

A sketch is a map from the number of a register, as text, to its value; a register without one is 0. The
formats are those of Redis' hyperloglog.c, the estimator is that of O. Ertl, "New cardinality estimation
algorithms for HyperLogLog sketches" (2017), which Redis uses as well.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

ERROR = 0.0081  # the standard error of an estimate, 1.04 / sqrt(REGISTERS)
REGISTERS = 2**14
MAX = 51  # the largest value of a register, since hashes have 64 bits
_DENSE = b"HYLL\x00"  # one byte more says sparse
_HEAD = 16  # bytes: those five, three unused, and the last estimate, whose highest bit says that it is out of date
_M, _MASK = 0xC6A4A7935BD1E995, 2**64 - 1


def sketch(ids: Iterable[str]) -> dict[str, int]:
    """The sketch of these."""
    registers: dict[str, int] = {}
    for hashed in map(_murmur, map(str.encode, ids)):
        register, rest = str(hashed % REGISTERS), hashed // REGISTERS | 1 << (MAX - 1)
        registers[register] = max(registers.get(register, 0), (rest & -rest).bit_length())
    return registers


def estimate(*sketches: Mapping[str, int]) -> int:
    """How many different ids these have seen together."""
    together: dict[str, int] = {}
    for sketch in sketches:
        for register, value in sketch.items():
            together[register] = max(value, together.get(register, 0))
    having = Counter(together.values())
    having[0] += REGISTERS - len(together)
    z = REGISTERS * _tau(1 - having[MAX] / REGISTERS)
    for value in range(MAX - 1, 0, -1):
        z = (z + having[value]) / 2
    z += REGISTERS * _sigma(having[0] / REGISTERS)
    return round(REGISTERS**2 / (2 * math.log(2)) / z)


def from_redis(text: bytes) -> dict[str, int]:
    """What Redis keeps under a key of PFADD."""
    values: list[int] = []
    if text.startswith(_DENSE):
        for i in range(_HEAD, len(text), 3):
            four = int.from_bytes(text[i : i + 3], "little")
            values += [four >> bits & 63 for bits in (0, 6, 12, 18)]
    else:
        rest = iter(text[_HEAD:])
        for byte in rest:
            if byte >= 0x80:
                values += [(byte >> 2 & 31) + 1] * ((byte & 3) + 1)
            else:
                values += [0] * ((byte & 63) + 1 if byte < 0x40 else ((byte & 63) << 8 | next(rest)) + 1)
    return {str(register): value for register, value in enumerate(values) if value}


def to_redis(sketch: Mapping[str, int]) -> bytes:
    """What Redis takes for one of its own."""
    values = [sketch.get(str(register), 0) for register in range(REGISTERS)]
    fours = zip(values[::4], values[1::4], values[2::4], values[3::4], strict=True)
    packed = b"".join((a | b << 6 | c << 12 | d << 18).to_bytes(3, "little") for a, b, c, d in fours)
    return _DENSE + bytes(10) + b"\x80" + packed


def _murmur(data: bytes) -> int:
    """MurmurHash64A with Redis' seed."""
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
