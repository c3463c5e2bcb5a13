"""The published figures are complete, named as the package names things, and as the papers print them."""

import pytest

from flexgs_lightning.data.benchmarks import BENCHMARKS, PROTOCOLS, find_scene
from flexgs_lightning.evaluation.published import METRICS, benchmark_means, published_tables


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_has_the_papers_means(name: str) -> None:
    table = benchmark_means(name)
    assert table is not None
    assert set(table.methods) == {"LightGS*", "LightGS", "C3DGS", "EAGLES", "FlexGS"}
    for ratios in table.methods.values():
        assert list(ratios) == [0.01, 0.05, 0.1, 0.15]
        psnr = [metrics["psnr"] for metrics in ratios.values()]
        assert psnr == sorted(psnr), "more Gaussians, better pictures"


def test_rows_name_their_benchmark_protocol_scene_and_source() -> None:
    for table in published_tables():
        assert PROTOCOLS[table.protocol].benchmark == table.benchmark
        assert table.source.startswith("arXiv:")
        if table.scene is not None:
            find_scene(table.scene, table.benchmark)
        for ratios in table.methods.values():
            for ratio, metrics in ratios.items():
                assert 0 < ratio <= 1
                assert 10 < metrics["psnr"] < 40
                assert all(0 < metrics[name] < 1 for name in METRICS[1:] if name in metrics)


def test_numbers_that_the_papers_text_repeats() -> None:
    means = benchmark_means("mipnerf360")
    assert means is not None
    assert means.methods["FlexGS"][0.01]["psnr"] == 22.730
    assert means.methods["LightGS*"][0.01] == {"psnr": 14.455, "ssim": 0.3741, "lpips": 0.5780}
    assert means.methods["C3DGS"][0.01]["ssim"] == 0.5440
    tanks = benchmark_means("tanks_and_temples")
    assert tanks is not None
    assert tanks.methods["FlexGS"][0.15]["psnr"] == 27.802
    assert "lpips" not in tanks.methods["FlexGS"][0.15], "not printed there"
