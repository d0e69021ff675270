import pytest
import torch

from cryoseg_dist.errors import SettingsError
from cryoseg_dist.kernels.tiles import Tiling, check_tile, cut, padded_tiling, predict, valid_tiling
from cryoseg_dist.networks.unet import Architecture, UNet, fold_batch_norm, valid_input_extent


def network_and_tiling(depth: int, padded: bool, width: int = 4) -> tuple[UNet, Tiling]:
    torch.manual_seed(depth)
    architecture = Architecture(depth=depth, width=width, classes=3, padded=padded)
    network = fold_batch_norm(UNet(architecture).eval()).double()
    if padded:
        return network, padded_tiling(architecture.stride, architecture.reach)
    return network, valid_tiling(
        architecture.stride, architecture.margin, lambda n: valid_input_extent(architecture, n)[0]
    )


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("border", ["mirror", "zero"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_any_tile_gives_the_result_of_one_pass(depth: int, padded: bool, border: str) -> None:
    network, tiling = network_and_tiling(depth, padded)
    image = noise(1, 75, 101)
    with torch.inference_mode():
        whole = predict(image, network, tiling, None, border)
        assert whole.shape == (3, 75, 101)
        for tile in (16, 24, 56, 104, 256):
            tiled = predict(image, network, tiling, tile, border)
            # All pixels, the four borders among them.
            torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)


def test_single_precision_and_depth_four() -> None:
    network, tiling = network_and_tiling(4, padded=True, width=8)
    network = network.float()
    image = noise(1, 130, 171).float()
    with torch.inference_mode():
        whole = predict(image, network, tiling, None)
        tiled = predict(image, network, tiling, 64)
    assert torch.equal(tiled.argmax(dim=0), whole.argmax(dim=0))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5 * float(whole.std()))


@pytest.mark.parametrize("shape", [(9, 200), (1, 1), (3, 17)])
def test_images_smaller_than_the_context(shape: tuple[int, int]) -> None:
    network, tiling = network_and_tiling(2, padded=True)
    image = noise(1, *shape)
    with torch.inference_mode():
        whole = predict(image, network, tiling, None)
        torch.testing.assert_close(predict(image, network, tiling, 8), whole, rtol=0, atol=1e-12)
    assert whole.shape[1:] == shape
    assert bool(torch.isfinite(whole).all())


def test_the_border_is_that_of_an_image_extended_by_hand() -> None:
    network, tiling = network_and_tiling(2, padded=False)
    image = noise(1, 40, 48)
    extended = torch.nn.functional.pad(image[None], (20, 20, 20, 20), mode="reflect")[0]
    zeros = torch.nn.functional.pad(image[None], (20, 20, 20, 20))[0]
    with torch.inference_mode():
        for by_hand, border in ((extended, "mirror"), (zeros, "zero")):
            reference = predict(by_hand, network, tiling, None, "zero")[:, 20:-20, 20:-20]
            torch.testing.assert_close(predict(image, network, tiling, 16, border), reference, rtol=0, atol=1e-12)


def test_the_published_stride_is_refused_because_it_leaves_seams() -> None:
    with pytest.raises(SettingsError, match=r"multiple of 16 .* got 388.*take 384"):
        check_tile(388, 16)
    with pytest.raises(SettingsError):
        check_tile(0, 16)
    network, tiling = network_and_tiling(4, padded=True)
    image = noise(1, 420, 32)
    # The same function, told that any stride will do, shows what it refuses.
    careless = Tiling(4, tiling.halo, False, lambda n: -(-n // 16) * 16 + 2 * tiling.halo)
    with torch.inference_mode():
        whole = predict(image, network, tiling, None)
        seamed = predict(image, network, careless, 388)
        sound = predict(image, network, tiling, 384)
    torch.testing.assert_close(sound, whole, rtol=0, atol=1e-12)
    assert float((seamed - whole).abs().max()) > 0.1 * float(whole.std())
    assert not torch.equal(seamed.argmax(dim=0), whole.argmax(dim=0))


def test_windows_mirror_any_number_of_times() -> None:
    image = torch.arange(3.0).expand(2, 3)
    window = cut(image, 0, -5, 1, 13, "mirror")
    assert window[0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert cut(image, 0, -2, 1, 6, "zero")[0].tolist() == [0, 0, 0, 1, 2, 0]
