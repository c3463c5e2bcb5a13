"""A second reader of the elastic file, in plain Python, from docs/elastic_file.md alone; slow, for tests.

``Reader`` reads version 1, ``FilmReader`` version 2, of which each group is a ``Group``.
"""

import math
import struct
from types import MappingProxyType

import numpy as np

F = np.float32
COLUMNS = ((0,), (1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))


def clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def limit(value: int) -> int:
    return clamp(value, -16777215, 16777215)


class Stream:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 4
        self.x = int.from_bytes(data[:4], "big")

    def advance(self, start: int, size: int, slot: int) -> None:
        self.x = size * (self.x >> 16) + slot - start
        while self.x < 1 << 23:
            self.x = (self.x << 8) | self.data[self.place]
            self.place += 1

    def symbol(self, table: list[int]) -> int:
        slot = self.x & 65535
        s = max(i for i in range(16) if table[i] <= slot)
        self.advance(table[s], table[s + 1] - table[s], slot)
        count = table[17]
        rate = 4 + (count > 15) + (count > 50) + (count > 150)
        table[17] = min(count + 1, 255)
        for i in range(1, 16):
            table[i] += ((i + 65520 if i > s else i) - table[i]) >> rate
        return s

    def bits(self, n: int) -> int:
        slot = self.x & 65535
        v = slot >> (16 - n)
        self.advance(v << (16 - n), 1 << (16 - n), slot)
        return v

    def long(self, n: int) -> int:
        value = 0
        while n > 0:
            piece = min(n, 16)
            value, n = (value << piece) | self.bits(piece), n - piece
        return value

    def magnitude(self, table: list[int]) -> int:
        token = self.symbol(table)
        if token < 8:
            return token
        if token < 14:
            k = 2 + ((token - 8) >> 1)
            return ((2 + (token & 1)) << k) + self.bits(k)
        if token == 14:
            return 64 + self.bits(6)
        k = self.bits(5)
        return 127 + (1 << k) + self.long(k)

    def end(self) -> None:
        assert not self.data or (self.x == 1 << 23 and self.place == len(self.data))


def tables(count: int) -> list[list[int]]:
    return [[4096 * i for i in range(17)] + [0] for _ in range(count)]


UNITS = [2**-12] + [2**-10] * 3 + [0] * 3 + [2**-14] * 3 + [2**-10] * 3


class Taker:
    """Takes numbers from bytes."""

    def __init__(self, data: bytes, place: int = 0) -> None:
        self.data, self.place = data, place

    def take(self, layout: str) -> tuple:
        found = struct.unpack_from(layout, self.data, self.place)
        self.place += struct.calcsize(layout)
        return found

    def streams(self, count: int) -> list[Stream]:
        found = []
        for length in self.take(f"<{count}I"):
            found.append(Stream(self.data[self.place : self.place + length]))
            self.place += length
        return found


class Reader(Taker):
    """Decodes a whole file; ``levels`` are lists of float32 rows [M, 13], ``sh_rest`` is [N, D]."""

    streams_of_rows = ("cells", "opacities", "scales", "means", "rotations", "sh0", "sh_rest")
    updated = ("opacities", "scales", "means", "rotations", "sh0")
    columns_of = MappingProxyType(dict(zip(updated, COLUMNS, strict=True)))
    flag_of = MappingProxyType[str, int]({})
    motion = 0
    varying = False

    def __init__(self, data: bytes) -> None:
        assert data[:8] == b"\x89EGS\r\n\x1a\n"
        super().__init__(data, 20)
        length = struct.unpack_from("<I", data, 12)[0]
        self.total, degree, _, levels, self.cell_bits = self.take("<IBBBB")
        self.take("<3f")
        self.components = self.take("<i")[0]
        self.origin, self.unit, self.centre = self.take("<3f"), self.take("<f")[0], self.take("<3i")
        self.width = 3 * ((degree + 1) ** 2 - 1)
        self.ratios = self.take(f"<{levels}d")
        self.rule(features=7)
        facts = self.take("<I")[0]
        self.place += facts
        index = [self.take("<3I") for _ in range(self.take("<I")[0])]
        assert self.place == 20 + length
        self.begin()
        for stop, size, _ in index:
            end = self.place + size
            self.chunk(stop)
            self.place = end
        self.finish()

    def rule(self, features: int) -> None:
        rows = 14 + self.motion
        self.weights = [self.take(f"<{features}i") for _ in range(rows)]
        self.bounds = [self.take("<2B") for _ in range(rows)]
        self.mixing = [self.take("<14h") for _ in range(13)]
        self.motion_mixing = [self.take(f"<{self.motion + 1}h") for _ in range(self.motion)]
        self.scales = self.take(f"<{self.width}f")
        self.transform = [self.take(f"<{self.width}b") for _ in range(self.components)]

    def begin(self) -> None:
        self.counts = [math.floor(ratio * self.total * (1 + 1e-12)) for ratio in self.ratios]
        self.cells, self.columns, self.updates, self.sh = map(tables, (80, 1924, 1924, 528))
        self.moves, self.motion_columns, self.motion_updates = map(
            tables, (16, 148 * self.motion, 148 * self.motion)
        )
        self.means = [0] * 13
        self.motion_means = [0] * self.motion
        self.chunks: list[list[list[int]]] = []
        self.flags: list[list[int]] = []
        self.levels: list[np.ndarray] = []
        self.rest: list[np.ndarray] = []
        self.before = 0

    def chunk(self, stop: int) -> None:
        if self.before in self.counts:
            self.update()
        self.rows(stop - self.before)
        self.before = stop

    def finish(self) -> None:
        self.levels.append(self.values())
        self.sh_rest = np.concatenate([spread(rows) for rows in self.rest])

    def update(self) -> None:
        self.levels.append(self.values())
        offsets = [self.take(f"<{len(self.updated)}h") for _ in self.chunks]
        self.chunks = [[list(row) for row in chunk] for chunk in self.chunks]
        streams = self.streams(len(self.updated))
        for attribute, (name, stream) in enumerate(zip(self.updated, streams, strict=True)):
            for chunk, offset in zip(self.chunks, offsets, strict=True):
                self.code(stream, chunk, self.columns_of[name], offset[attribute], new=False)
            stream.end()

    def rows(self, count: int) -> None:
        names = self.streams_of_rows
        with_steps = [name for name in names if name not in ("cells", "moves")]
        offsets = dict(zip(with_steps, self.take(f"<{len(with_steps)}h"), strict=True))
        streams = dict(zip(names, self.streams(len(names)), strict=True))
        chunk = self.places(streams["cells"], count)
        flags = [0] * count
        for name in names[1:-1]:
            if name == "moves":
                f = g = 0
                for i in range(count):
                    f, g = streams[name].symbol(self.moves[4 * f + g]) & 3, f
                    flags[i] = f
            else:
                bit = self.flag_of.get(name, 0)
                coded = [bit == 0 or flag & bit != 0 for flag in flags]
                self.code(streams[name], chunk, self.columns_of[name], offsets[name], new=True, coded=coded)
            streams[name].end()
        self.chunks.append(chunk)
        self.flags.append(flags)
        self.rest.append(self.harmonics(streams["sh_rest"], chunk, offsets["sh_rest"]))
        streams["sh_rest"].end()

    def places(self, stream: Stream, count: int) -> list[list[int]]:
        shift, code, h, chunk = 24 - self.cell_bits, 0, 0, []
        for _ in range(count):
            h = stream.symbol(self.cells[h])
            length = 4 * h + (stream.symbol(self.cells[16 + h]) & 3)
            gap = length
            if length > 1:
                r = length - 1
                k = min(r, 3)
                p = stream.symbol(self.cells[31 + length]) & ((1 << k) - 1)
                gap = (((1 << k) + p) << (r - k)) + stream.long(r - k)
            code += gap
            row = [0] * (14 + self.motion)
            for axis in range(3):
                cell = sum(((code >> (3 * bit + 2 - axis)) & 1) << bit for bit in range(self.cell_bits))
                row[4 + axis] = (cell << shift) + ((1 << shift) >> 1)
            d = max(1, *(abs(row[4 + axis] - self.centre[axis]) for axis in range(3)))
            m = d.bit_length() - 1
            row[13] = 1024 * m + 1024 * d // 2**m - 1024
            chunk.append(row)
        stream.end()
        return chunk

    def step(self, row: list[int], c: int, offset: int) -> tuple[int, int]:
        w, t = self.weights[c], clamp(row[0], 0, 4096)
        total = 1024 * offset + 4096 * w[0] + w[1] * t + w[2] * (t * t // 4096) + w[6] * row[13]
        total += w[7] * clamp(row[14], -32768, 32767) if self.varying else 0
        total += sum(w[3 + i] * clamp(row[1 + i], -32768, 32767) for i in range(3))
        kind = clamp((total + 32768) // 65536, *self.bounds[c])
        return kind, max(1, ((16, 19, 23, 27)[kind & 3] << (kind >> 2)) >> 4)

    def code(
        self, stream: Stream, chunk: list, columns: tuple, offset: int, new: bool, coded: list | None = None
    ) -> None:
        first = 14 if columns[0] >= 14 else 0
        count = self.motion if first else 13
        mixing, means = (self.motion_mixing, self.motion_means) if first else (self.mixing, self.means)
        if first:
            table = self.motion_columns if new else self.motion_updates
        else:
            table = self.columns if new else self.updates
        for i, row in enumerate(chunk):
            if coded is not None and not coded[i]:
                continue
            active = 0
            for c in columns:
                kind, step = self.step(row, c, offset)
                k = c - first
                predicted, mixed = row[c], new and c not in (4, 5, 6)
                if mixed:
                    total = sum(mixing[k][d] * row[first + d] for d in range(k))
                    total += mixing[k][count] * chunk[i - 1][c] if i else 0
                    predicted = limit((total + 2048) // 4096 + (means[k] + 128) // 256)
                place = (k * 48 + (kind >> (1 if new else 2))) * 3 + min(2, active)
                n = stream.magnitude(table[place])
                if n:
                    active += 1
                    if new:
                        negative = stream.symbol(table[144 * count + 4 * k + min(n, 4) - 1]) & 1
                    else:
                        negative = stream.bits(1)
                    n = -n if negative else n
                row[c] = limit(predicted + n * step)
                if mixed:
                    means[k] += 256 * (row[c] - predicted) // 64

    def harmonics(self, stream: Stream, chunk: list[list[int]], offset: int) -> np.ndarray:
        values = np.zeros((len(chunk), self.width), dtype=F)
        starts = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
        for row, out in zip(chunk, values, strict=True):
            if not self.width:
                continue
            kind, step = self.step(row, 13, offset)
            coded = stream.magnitude(self.sh[kind >> 1])
            a, b, e, q = 3, 2, 2, []
            for j in range(coded):
                y = 2 * a + b + e
                y = y if y < 8 else min(6 + (y >> 2).bit_length(), 11)
                left = coded - 1 - j
                r = 0 if left == 0 else 1 if left < 4 else 2 if left < 12 else 3
                g = max(k for k in range(10) if starts[k] <= j)
                n = stream.magnitude(self.sh[48 + (4 * g + r) * 12 + y])
                q.append(-n if n and stream.bits(1) else n)
                a, b, e = n, a, b
            for d in range(self.width):
                total = sum(n * self.transform[j][d] for j, n in enumerate(q))
                out[d] = F(total) * (F(step) * F(self.scales[d]))
        return values

    motion_units: tuple = ()

    def values(self) -> np.ndarray:
        units = np.array([*UNITS, *self.motion_units], dtype=F)
        units[4:7] = self.unit
        rows = np.concatenate([spread(np.array(chunk)) for chunk in self.chunks])
        values = np.delete(rows, 13, axis=1).astype(F) * units
        values[:, 4:7] += np.array(self.origin, dtype=F)
        return values


class Group(Reader):
    """A group of a film; its chunks are given one after the other."""

    def __init__(self, total: int, degree: int) -> None:
        self.total, self.width, self.head = total, 3 * ((degree + 1) ** 2 - 1), False

    def read(self, data: bytes, stop: int) -> None:
        Taker.__init__(self, data)
        if not self.head:
            self.read_head()
        self.chunk(stop)

    def read_head(self) -> None:
        length = self.take("<I")[0]
        levels, self.cell_bits, self.components = self.take("<BBi")
        self.origin, self.unit, self.centre = self.take("<3f"), self.take("<f")[0], self.take("<3i")
        path, self.varying, order, knots = self.take("<BBBH")
        self.least = self.take("<f")[0]
        self.ratios = self.take(f"<{levels}d")
        motion = []  # name, columns, whether updates move it, its bit
        motion += [("time_scales", 1, True, 0), ("time_centers", 1, True, 0)] if self.varying else []
        motion += [("real_parts", 1, True, 0)] if path == 3 else []
        motion += [("motion", 3 * order, False, 1), ("omega", 4, False, 2)] if path == 1 else []
        motion += [("coefficients", order, False, 1)] if path in (2, 3) else []
        self.columns_of, self.flag_of, self.motion = dict(Reader.columns_of), {}, 0
        for name, count, _, bit in motion:
            start = 14 + self.motion
            self.columns_of[name], self.flag_of[name] = tuple(range(start, start + count)), bit
            self.motion += count
        early = [name for name, _, moved, _ in motion if moved]
        self.updated = ("opacities", *early, "scales", "means", "rotations", "sh0")
        late = (*(["moves"] if path else []), *(name for name, _, moved, _ in motion if not moved))
        self.streams_of_rows = ("cells", *self.updated, *late, "sh_rest")
        self.motion_units = self.take(f"<{self.motion}f")
        self.rule(features=8 if self.varying else 7)
        self.translations = np.array(self.take(f"<{knots * order * 3}f"), F).reshape(knots, order, 3)
        self.rotations = np.array(self.take(f"<{knots * order * 4}f"), F).reshape(knots, order, 4)
        assert self.place == 4 + length
        self.head = True
        self.begin()


class FilmReader(Taker):
    """Decodes a whole film to its ``groups``."""

    def __init__(self, data: bytes) -> None:
        assert data[:12] == b"\x89EGS\r\n\x1a\n" + struct.pack("<HH", 2, 0)
        super().__init__(data, 20)
        length = struct.unpack_from("<I", data, 12)[0]
        degree, _ = self.take("<BB")
        self.take("<3f")
        self.seconds, self.frames, count = self.take("<dIH")
        self.bounds = self.take(f"<{count + 1}d")
        facts = self.take("<I")[0]
        self.place += facts
        index = [self.take("<4I") for _ in range(self.take("<I")[0])]
        assert self.place == 20 + length
        totals = {group: stop for group, stop, *_ in index}
        self.groups = [Group(totals[group], degree) for group in range(count)]
        for group, stop, size, _ in index:
            self.groups[group].read(data[self.place : self.place + size], stop)
            self.place += size
        for found in self.groups:
            found.finish()


def spread(rows: np.ndarray) -> np.ndarray:
    bits = (len(rows) - 1).bit_length()
    order = [int(f"{i:0{bits}b}"[::-1], 2) if bits else 0 for i in range(1 << bits)]
    return rows[[place for place in order if place < len(rows)]]
