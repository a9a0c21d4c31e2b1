"""QR codes (ISO/IEC 18004, model 2): bytes at error correction level M, versions 1 to 40.

Small enough to be our own: an invitation is shown as one, on paper and on screens.
"""

from typing import Final

# Table 9 of the standard, level M: error correction bytes of a block, and number of blocks.
_CHECK_BYTES: Final = (
    *(0, 10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26),
    *(26, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28),
)
_BLOCKS: Final = (
    *(0, 1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16),
    *(17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37, 38, 40, 43, 45, 47, 49),
)
_LEVEL_M: Final = 0
_MASKS: Final = (
    lambda row, column: (row + column) % 2,
    lambda row, column: row % 2,
    lambda row, column: column % 3,
    lambda row, column: (row + column) % 3,
    lambda row, column: (row // 2 + column // 3) % 2,
    lambda row, column: row * column % 2 + row * column % 3,
    lambda row, column: (row * column % 2 + row * column % 3) % 2,
    lambda row, column: ((row + column) % 2 + row * column % 3) % 2,
)


def matrix(data: bytes, mask: int | None = None) -> list[list[bool]]:
    """Return the code's modules, row by row, true where dark; without the quiet zone.

    The mask is the one of least penalty unless given. Raises ValueError for over 2,331 bytes.
    """
    version = next((v for v in range(1, 41) if _capacity(v) >= len(data) + 2 + (v > 9)), None)
    if version is None:
        raise ValueError(f"{len(data)} bytes don't fit into a QR code; 2,331 do")
    code = _Code(version)
    code.place(_with_check_bytes(version, _codewords(version, data)))
    if mask is None:
        mask = min(range(8), key=lambda one: code.masked(one).penalty())
    return [[bool(module) for module in row] for row in code.masked(mask).modules]


def svg(data: bytes) -> str:
    """Return the code as an SVG drawing, quiet zone included."""
    modules = matrix(data)
    size = len(modules) + 8
    path = "".join(
        f"M{column + 4},{row + 4}h1v1h-1z"
        for row, line in enumerate(modules)
        for column, dark in enumerate(line)
        if dark
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" '
        f'shape-rendering="crispEdges"><rect width="{size}" height="{size}" fill="#fff"/>'
        f'<path d="{path}" fill="#000"/></svg>'
    )


def text(data: bytes) -> str:
    """Return the code for a terminal, two rows a line, light on dark."""
    modules = matrix(data)
    blank = [False] * (len(modules) + 4)
    rows = [blank, blank, *([False, False, *line, False, False] for line in modules), blank, blank]
    if len(rows) % 2:
        rows.append(blank)
    glyphs = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}
    return "\n".join(
        "".join(glyphs[pair] for pair in zip(rows[row], rows[row + 1], strict=True))
        for row in range(0, len(rows), 2)
    )


def _alignment(version: int) -> list[int]:
    """Where alignment patterns are centred (annex E)."""
    if version == 1:
        return []
    count = version // 7 + 2
    step = 26 if version == 32 else (version * 4 + count * 2 + 1) // (count * 2 - 2) * 2
    last = version * 4 + 10
    return [6, *(last - step * index for index in range(count - 2, -1, -1))]


def _raw_bytes(version: int) -> int:
    """All bytes of a version's data area."""
    bits = (16 * version + 128) * version + 64
    if version > 1:
        count = version // 7 + 2
        bits -= (25 * count - 10) * count - 55
        if version > 6:
            bits -= 36
    return bits // 8


def _capacity(version: int) -> int:
    return _raw_bytes(version) - _CHECK_BYTES[version] * _BLOCKS[version]


def _codewords(version: int, data: bytes) -> bytes:
    """Mode, length, data, terminator and padding."""
    length_bits = 8 if version < 10 else 16
    bits = f"0100{len(data):0{length_bits}b}" + "".join(f"{byte:08b}" for byte in data)
    room = _capacity(version) * 8
    bits += "0" * min(4, room - len(bits))
    bits += "0" * (-len(bits) % 8)
    words = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    padding = b"\xec\x11" * (_capacity(version) // 2 + 1)
    return words + padding[: _capacity(version) - len(words)]


def _multiply(one: int, other: int) -> int:
    """Multiply in GF(2^8) over x^8 + x^4 + x^3 + x^2 + 1."""
    product = 0
    for shift in range(7, -1, -1):
        product = (product << 1) ^ ((product >> 7) * 0x11D)
        product ^= (other >> shift & 1) * one
    return product


def _check(data: bytes, divisor: list[int]) -> bytes:
    """The remainder of Reed and Solomon's division."""
    rest = [0] * len(divisor)
    for byte in data:
        factor = byte ^ rest.pop(0)
        rest.append(0)
        rest = [have ^ _multiply(term, factor) for have, term in zip(rest, divisor, strict=True)]
    return bytes(rest)


def _with_check_bytes(version: int, data: bytes) -> bytes:
    """Cut into blocks, add each one's check bytes, and interleave."""
    blocks, check_bytes = _BLOCKS[version], _CHECK_BYTES[version]
    divisor, root = [0] * (check_bytes - 1) + [1], 1
    for _ in range(check_bytes):
        divisor = [
            _multiply(term, root) ^ (divisor[at + 1] if at + 1 < check_bytes else 0)
            for at, term in enumerate(divisor)
        ]
        root = _multiply(root, 2)
    short, longer = divmod(len(data), blocks)
    parts, at = [], 0
    for block in range(blocks):
        size = short + (block >= blocks - longer)
        parts.append(data[at : at + size])
        at += size
    checks = [_check(part, divisor) for part in parts]
    mixed = [part[i] for i in range(short + 1) for part in parts if i < len(part)]
    mixed += [check[i] for i in range(check_bytes) for check in checks]
    return bytes(mixed)


class _Code:
    """The modules of one code, and which of them hold no data."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.size = version * 4 + 17
        self.modules = [[0] * self.size for _ in range(self.size)]
        self.fixed = [[False] * self.size for _ in range(self.size)]
        for index in range(self.size):
            self._set(6, index, index % 2 == 0)
            self._set(index, 6, index % 2 == 0)
        for row, column in ((3, 3), (3, self.size - 4), (self.size - 4, 3)):
            self._pattern(row, column, 4)
        centres = _alignment(version)
        for row in centres:
            for column in centres:
                corner = {(6, 6), (6, centres[-1]), (centres[-1], 6)}
                if (row, column) not in corner:
                    self._pattern(row, column, 2)
        self._format(0)
        self._write_version()

    def _set(self, row: int, column: int, dark: bool) -> None:
        self.modules[row][column] = int(dark)
        self.fixed[row][column] = True

    def _pattern(self, row: int, column: int, reach: int) -> None:
        """A finder (reach 4, with its border) or an alignment pattern (reach 2)."""
        for y in range(max(0, row - reach), min(self.size, row + reach + 1)):
            for x in range(max(0, column - reach), min(self.size, column + reach + 1)):
                distance = max(abs(y - row), abs(x - column))
                self._set(y, x, distance not in ((2, 4) if reach == 4 else (1,)))

    def _format(self, mask: int) -> None:
        stated = _LEVEL_M << 3 | mask
        rest = stated
        for _ in range(10):
            rest = rest << 1 ^ (rest >> 9) * 0x537
        bits = (stated << 10 | rest) ^ 0x5412
        places = [(i, 8) for i in (0, 1, 2, 3, 4, 5, 7, 8)]
        places += [(8, i) for i in (7, 5, 4, 3, 2, 1, 0)]
        copies = [(8, self.size - 1 - i) for i in range(8)]
        copies += [(self.size - 15 + i, 8) for i in range(8, 15)]
        for index, (place, copy) in enumerate(zip(places, copies, strict=True)):
            self._set(*place, bool(bits >> index & 1))
            self._set(*copy, bool(bits >> index & 1))
        self._set(self.size - 8, 8, dark=True)

    def _write_version(self) -> None:
        if self.version < 7:
            return
        rest = self.version
        for _ in range(12):
            rest = rest << 1 ^ (rest >> 11) * 0x1F25
        bits = self.version << 12 | rest
        for index in range(18):
            dark = bool(bits >> index & 1)
            row, column = index // 3, self.size - 11 + index % 3
            self._set(row, column, dark)
            self._set(column, row, dark)

    def place(self, data: bytes) -> None:
        """Write the data in its zigzag from the lower right corner."""
        bits = "".join(f"{byte:08b}" for byte in data)
        at, upwards = 0, True
        for right in range(self.size - 1, 0, -2):
            column = right - 1 if right <= 6 else right
            rows = range(self.size - 1, -1, -1) if upwards else range(self.size)
            for row in rows:
                for x in (column, column - 1):
                    if not self.fixed[row][x] and at < len(bits):
                        self.modules[row][x] = int(bits[at])
                        at += 1
            upwards = not upwards

    def masked(self, mask: int) -> _Code:
        """A copy with a mask applied and named."""
        copy = _Code(self.version)
        copy._format(mask)
        for row in range(self.size):
            for column in range(self.size):
                if not self.fixed[row][column]:
                    flip = not _MASKS[mask](row, column)
                    copy.modules[row][column] = self.modules[row][column] ^ flip
        return copy

    def penalty(self) -> int:
        """How hard it is to read (7.8.3): long runs, blocks, false finders, and imbalance."""
        total = 0
        columns = [list(column) for column in zip(*self.modules, strict=True)]
        for line in (*self.modules, *columns):
            text_ = "".join(map(str, line))
            run = 1
            for before, here in zip(text_, text_[1:] + "2", strict=True):
                if before == here:
                    run += 1
                    continue
                total += run - 2 if run >= 5 else 0
                run = 1
            total += 40 * sum(
                text_[at : at + 11] in ("10111010000", "00001011101")
                for at in range(len(text_) - 10)
            )
        for upper, lower in zip(self.modules, self.modules[1:], strict=False):
            for at in range(self.size - 1):
                if upper[at] == upper[at + 1] == lower[at] == lower[at + 1]:
                    total += 3
        dark = sum(map(sum, self.modules))
        return total + 10 * (abs(dark * 20 - self.size**2 * 10) // self.size**2)
