"""The elastic file: what is written is read, to the bit, whole and cut, by any process."""

import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from elastic_arrays import digest, encoded, one_size, random_arrays, same
from elastic_reader import Reader

from flexgs_lightning.codec import encoder
from flexgs_lightning.codec.arrays import ElasticModelArrays
from flexgs_lightning.codec.chunks import cells_of, morton_codes, spread
from flexgs_lightning.codec.conversion import arrays_of, arrays_of_splats, model_of
from flexgs_lightning.codec.decoder import cut_file, open_file, read_elastic
from flexgs_lightning.codec.encoder import Encoding, chunk_stops
from flexgs_lightning.codec.quantization import Numbers
from flexgs_lightning.codec.rans import Stream, Trace, magnitude, new_tables
from flexgs_lightning.codec.rows import BIT_PRICE, TABLES_A_COLUMN, code_columns
from flexgs_lightning.errors import InputError
from flexgs_lightning.jit import kernel
from flexgs_lightning.model.compression.coordinates import PLACES, quaternion_product
from flexgs_lightning.splats import Splats

KNOWN = Path(__file__).parent / "known_answers"


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return encoded(random_arrays())


@pytest.fixture(scope="module")
def written(encoding: Encoding, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elastic") / "scene.egs"
    encoding.write(path, {"psnr": {"1": 30.5}})
    return path


def test_decodes_to_what_the_encoder_says(encoding: Encoding, written: Path) -> None:
    assert same(read_elastic(written), encoding.decoded)
    assert open_file(written).header.facts == {"psnr": {"1": 30.5}}


@pytest.mark.parametrize("total", [1, 2, 3, 40])
@pytest.mark.parametrize("sh_degree", [0, 3])
def test_tiny_models(total: int, sh_degree: int, tmp_path: Path) -> None:
    arrays = random_arrays(total, sh_degree, elastic=False)
    encoding = encoded(arrays)
    encoding.write(tmp_path / "tiny.egs")
    decoded = read_elastic(tmp_path / "tiny.egs")
    assert same(decoded, encoding.decoded)
    assert decoded.sh_rest.shape == arrays.sh_rest.shape


def test_finer_steps_are_nearer_and_cost_more() -> None:
    arrays = one_size(random_arrays(400))
    sizes, errors = [], []
    for harm in (1e-2, 1e-3, 1e-4):
        encoding = encoded(arrays, harm)
        sizes.append(encoding.size())
        errors.append(_nearest_error(arrays, encoding.decoded))
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > 2 * errors[1] > 3 * errors[2]


def _nearest_error(arrays: ElasticModelArrays, decoded: ElasticModelArrays) -> float:
    """Mean distance of decoded means and colours to the nearest Gaussian of the source."""
    columns = [*range(4, 7), *range(10, 13)]
    here, there = arrays.levels[-1].values[:, columns], decoded.levels[-1].values[:, columns]
    return float(np.linalg.norm(there[:, None] - here[None], axis=-1).min(axis=1).mean())


def test_errors_are_bounded_by_steps(encoding: Encoding) -> None:
    """One and a half of the largest steps that the bounds allow bound every error, at every level."""
    arrays, decoded = random_arrays(), encoding.decoded
    steps = {"opacities": 0.25, "scales": 1.0, "rotations": 0.52, "sh0": 2.0}
    for source, coded in zip(arrays.levels, decoded.levels, strict=True):
        for name, step in steps.items():
            here = np.sort(source.values[:, PLACES[name]], axis=0)
            there = np.sort(coded.values[:, PLACES[name]], axis=0)
            assert np.abs(here - there).max() <= 1.5 * step


def test_numbers_are_rounded_to_what_costs_least() -> None:
    """Bits and squared errors together cost less than with the nearest numbers."""
    step, place = 64, slice(10, 13)
    rows = np.zeros((4000, 14), dtype=np.int32)
    targets = np.zeros((4000, 13), dtype=np.int32)
    targets[:, place] = np.random.default_rng(0).laplace(0, 0.6 * step, (4000, 3))
    nearest = np.rint(targets / step).astype(np.int32) * step
    found, bits = _columns_as_coded(targets, rows, place, step)
    _, bits_nearest = _columns_as_coded(nearest, rows, place, step)
    errors = [float((((values - targets)[:, place] / step) ** 2).sum()) for values in (found, nearest)]
    assert bits < 0.95 * bits_nearest
    assert errors[0] < 1.6 * errors[1]
    assert errors[0] + BIT_PRICE * bits < 0.98 * (errors[1] + BIT_PRICE * bits_nearest)


def _columns_as_coded(
    targets: np.ndarray, rows: np.ndarray, place: slice, step: int
) -> tuple[np.ndarray, float]:
    """[n, 13] columns that updates of one step size lead to, and their bits."""
    trace, after = Trace(), rows.copy()
    trace.reserve(6 * targets.size)
    class_ = next(c for c in range(96) if (16 << (c >> 2)) >> 4 == step and c % 4 == 0)
    bounds = np.full((14, 2), class_, dtype=np.int32)
    code_columns(
        True, False, place.start, place.stop, 0, targets, after, np.zeros(len(rows), np.uint8), 0, 0,
        np.zeros((14, 7), np.int32), bounds, np.zeros((13, 14), np.int32), np.zeros(13, np.int64),
        new_tables(13 * TABLES_A_COLUMN),
        trace.intervals, trace.data, trace.state,
    )  # fmt: skip
    return after[:, :13], trace.bits()


def test_every_cut_is_the_wholes_prefix(written: Path, tmp_path: Path) -> None:
    """head -c at each indexed length opens, and draws at every ratio what the whole file draws."""
    whole, data = read_elastic(written), written.read_bytes()
    header = open_file(written).header
    assert len(header.entries) >= 4
    for entry, length in zip(header.entries, header.indexed_lengths(), strict=True):
        path = tmp_path / f"{entry.stop}.egs"
        path.write_bytes(data[:length])
        part = read_elastic(path)
        assert len(part) == entry.stop
        assert np.array_equal(part.sh_rest, whole.sh_rest[: entry.stop])
        for ratio in (0.01, 0.05, 0.1, 0.2, 0.3, 0.6, entry.stop / whole.total):
            if math.floor(ratio * whole.total) <= entry.stop:
                assert np.array_equal(part.values_at(ratio), whole.values_at(ratio))
        assert same(part, read_elastic(written, max_gaussians=entry.stop))


def test_a_prefix_has_the_quantised_models_residuals(written: Path) -> None:
    """At levels and between them the file draws as a checkpoint with its tables would."""
    arrays = read_elastic(written)
    model = model_of(arrays)
    for ratio in (0.05, 0.1, 0.17, 0.3, 0.8, 1.0):
        ours, theirs = arrays.at(ratio), model.at(ratio)
        torch.testing.assert_close(ours.means, theirs.means, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.scales, theirs.scales, atol=0, rtol=1e-5)
        torch.testing.assert_close(_unit(ours.quats), _unit(theirs.quats), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.sh, theirs.sh, atol=1e-5, rtol=1e-5)
        # Between levels logits are interpolated there and t here.
        torch.testing.assert_close(ours.opacities, theirs.opacities, atol=2e-3, rtol=1e-2)
    back = arrays_of(model)
    for one, other in zip(arrays.levels, back.levels, strict=True):
        assert one.values.shape == other.values.shape
        assert np.abs(one.values[:, PLACES["means"]] - other.values[:, PLACES["means"]]).max() < 1e-4


def _unit(quats: torch.Tensor) -> torch.Tensor:
    quats = quats / quats.norm(dim=1, keepdim=True)
    return quats * quats[:, :1].sign()


def test_canonical_frames_draw_the_same() -> None:
    """Axes may be renamed; the covariance R diag(s^2) R^T is the Gaussian."""
    generator = torch.Generator().manual_seed(0)
    splats = Splats(
        torch.randn(300, 3, generator=generator),
        torch.randn(300, 4, generator=generator),
        torch.rand(300, 3, generator=generator) + 0.01,
        torch.rand(300, generator=generator),
        torch.randn(300, 4, 3, generator=generator),
    )
    arrays = arrays_of_splats(splats)
    drawn = arrays.at(1.0)
    np.testing.assert_allclose(_covariances(drawn), _covariances(splats), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn.opacities, splats.opacities, atol=1e-5, rtol=1e-4)
    values = arrays.levels[-1].values
    assert np.abs(values[:, PLACES["rotations"]]).max() <= 1.0 + 1e-6
    assert (np.diff(values[:, PLACES["scales"]], axis=1) <= 0).all()


def _covariances(splats: Splats) -> np.ndarray:
    quats = _unit(splats.quats).double()
    conjugate = quats * torch.tensor([1.0, -1.0, -1.0, -1.0]).double()
    axes = [
        quaternion_product(quaternion_product(quats, axis.expand(len(quats), 4)), conjugate)[:, 1:]
        for axis in torch.eye(4).double()[1:]
    ]
    scaled = (torch.stack(axes, dim=-1) * splats.scales.double()[:, None]).numpy()
    return np.asarray(scaled @ scaled.transpose(0, 2, 1))


def test_chunks_grow_and_end_at_levels() -> None:
    stops = chunk_stops(60_000, [600, 18_000, 60_000])
    sizes = np.diff([0, *stops])
    assert sizes[0] <= 400
    assert sizes.max() <= 1.3 * 8192
    assert {600, 18_000, 60_000} <= set(stops)
    assert sizes[-1] > 4000


def test_spread_covers_the_chunk_evenly() -> None:
    rows = spread(np.arange(1000)[:, None])[:, 0]
    assert sorted(rows) == list(range(1000))
    for count in (10, 100, 500):
        assert np.abs(np.sort(rows[:count]) - np.arange(count) * 1000 / count).max() < 2.1 * 1000 / count


def test_morton_codes_are_inverted() -> None:
    cells = np.random.default_rng(0).integers(0, 1 << 16, (500, 3))
    codes = morton_codes(cells, 16)
    assert np.array_equal(cells_of(codes, 16), cells)
    assert codes.max() < 1 << 48


@kernel
def _code(encoding, values, tables, intervals, data, state):  # type: ignore[no-untyped-def]
    for i in range(len(values)):
        values[i] = magnitude(encoding, values[i], tables, i % 3, intervals, data, state)


def test_entropy_coder_reaches_the_entropy() -> None:
    """Geometric numbers in three contexts take what they must, and come back."""
    rng = np.random.default_rng(0)
    values = rng.geometric(np.tile([0.5, 0.2, 0.9], 20_000)).astype(np.int64) - 1
    values[:6] = [0, 127, 128, 40_000, (1 << 24) - 1, 63]
    trace = Trace()
    trace.reserve(6 * len(values))
    _code(True, values.copy(), new_tables(3), trace.intervals, trace.data, trace.state)
    data = trace.to_bytes()
    entropy = sum(20_000 * (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / p for p in (0.5, 0.2, 0.9))
    assert entropy < 8 * len(data) < 1.03 * entropy + 200
    stream = Stream(data)
    decoded = np.zeros_like(values)
    _code(False, decoded, new_tables(3), stream.intervals, stream.data, stream.state)
    assert np.array_equal(decoded, values)
    assert stream.ended_well()


def test_tables_never_run_out_of_room() -> None:
    """However one-sided, every symbol keeps an interval."""
    tables = new_tables(1)
    trace = Trace()
    trace.reserve(20_000)
    _code(
        True,
        np.zeros(9000, dtype=np.int64),
        np.repeat(tables, 3, axis=0),
        trace.intervals,
        trace.data,
        trace.state,
    )
    many = np.repeat(tables, 3, axis=0)
    for value in (0, 200, 0, 5):
        trace = Trace()
        trace.reserve(60_000)
        _code(True, np.full(5000, value), many, trace.intervals, trace.data, trace.state)
        assert (np.diff(many[:, :17], axis=1) >= 1).all()
        assert (many[:, 16] == 65536).all()


def test_floats_are_one_exact_operation() -> None:
    """float32(integer) * unit + origin, each rounded once: checked against exact arithmetic."""
    origin, unit = np.array([0.1, -3.7, 100.5], dtype=np.float32), np.float32(1.2345e-5)
    numbers = Numbers(
        origin, unit, np.zeros(3, np.int32), 8, np.zeros((14, 7), np.int32), np.zeros((14, 2), np.int32),
        np.zeros((13, 14), np.int32), np.zeros((0, 0), np.int8), np.zeros(0, np.float32),
    )  # fmt: skip
    rows = np.random.default_rng(0).integers(-(1 << 24) + 1, 1 << 24, (50, 14)).astype(np.int32)
    values = numbers.values(rows)
    for row, value in zip(rows, values, strict=True):
        for axis in range(3):
            product = _float32(int(row[4 + axis]) * float(unit))  # exact in float64: 24 bits by 24
            assert value[4 + axis] == _float32(product + float(origin[axis]))
        assert value[0] == int(row[0]) * 2.0**-12


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


@pytest.mark.parametrize("name", ["levels", "one_size"])
def test_known_answers(name: str) -> None:
    """Files of an earlier day decode to the same bits; tests/known_answers/make.py wrote them."""
    decoded = read_elastic(KNOWN / f"{name}.egs")
    assert digest(decoded) == (KNOWN / f"{name}.sha256").read_text().strip()


@pytest.mark.parametrize("name", ["levels", "one_size"])
def test_a_reader_written_from_the_documentation_agrees(name: str) -> None:
    path = KNOWN / f"{name}.egs"
    arrays, reader = read_elastic(path), Reader(path.read_bytes())
    assert list(reader.ratios) == [level.ratio for level in arrays.levels]
    for level, values in zip(arrays.levels, reader.levels, strict=True):
        assert np.array_equal(level.values, values)
    assert np.array_equal(arrays.sh_rest.reshape(len(arrays), -1), reader.sh_rest)


def test_another_process_with_other_threads_decodes_the_same_bits(written: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from elastic_arrays import digest; from flexgs_lightning.codec.decoder import read_elastic;"
        "print(digest(read_elastic(sys.argv[1])))"
    )
    threads = {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", program, str(written), str(Path(__file__).parent)],
        env=os.environ | threads, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == digest(read_elastic(written))


def test_cut_file_keeps_within_a_budget(written: Path, tmp_path: Path) -> None:
    lengths = open_file(written).header.indexed_lengths()
    count = cut_file(written, tmp_path / "small.egs", lengths[2] - 1)
    assert (tmp_path / "small.egs").stat().st_size == lengths[1]
    assert len(read_elastic(tmp_path / "small.egs")) == count
    with pytest.raises(InputError, match="first chunk"):
        cut_file(written, tmp_path / "none.egs", lengths[0] - 1)
    assert not (tmp_path / "none.egs").exists()


def test_ratios_beyond_what_is_at_hand_are_refused(written: Path, tmp_path: Path) -> None:
    lengths = open_file(written).header.indexed_lengths()
    (tmp_path / "cut.egs").write_bytes(written.read_bytes()[: lengths[1]])
    arrays = read_elastic(tmp_path / "cut.egs")
    assert arrays.elastic
    with pytest.raises(InputError, match="at hand"):
        arrays.at(1.0)
    assert len(arrays.splats()) == len(arrays)


@pytest.mark.parametrize("harm", [1e-5, 3e-4, 1e-2])
def test_cells_are_as_fine_as_steps_ask_for(harm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every other size of cells: the chosen one makes a file that is next to the smallest."""
    arrays = random_arrays(3000)
    sizes = {}
    chosen = encoded(arrays, harm)
    for bits in encoder.CELL_BITS:
        monkeypatch.setattr(encoder, "CELL_BITS", range(bits, bits + 1))
        sizes[bits] = encoded(arrays, harm).size()
    assert chosen.size() < 1.03 * min(sizes.values()), sizes
    assert chosen.size() < 0.99 * max(sizes.values()), sizes


@pytest.mark.parametrize("harm", [3e-4, 1e-2, 1.0])
def test_who_is_not_seen_is_not_seen_in_the_file(harm: float) -> None:
    """Steps that are large for the many must not make a fog of those below 1/255, at any size."""
    arrays = random_arrays(2000)
    faint = np.random.default_rng(0).random(2000) < 0.3
    t = np.random.default_rng(1).uniform(0, 0.0363, 2000)
    for level in arrays.levels:
        chosen = faint[: len(level.values)]
        level.values[chosen, 0] = t[: len(chosen)][chosen]
    encoding = encoded(arrays, harm)
    for level in encoding.decoded.levels:
        decoded = np.clip(level.values[:, 0], 0, 1)
        opacities = decoded**2 * (3 - 2 * decoded)
        still = faint[encoding.ranks[: len(decoded)]]
        assert 0 < still.sum() < len(still)
        assert opacities[still].max() < 1 / 255
        assert (opacities[~still] > 1 / 255).mean() > 0.7
