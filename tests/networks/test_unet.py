import numpy as np
import pytest
import torch

from cryoseg_dist.networks.unet import Architecture, UNet, fold_batch_norm, valid_input_extent


def seeded(architecture: Architecture) -> UNet:
    torch.manual_seed(0)
    network = UNet(architecture)
    # Statistics of a trained network, not those of a fresh one.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return network.eval()


def test_the_published_network_has_its_published_size() -> None:
    published = Architecture(depth=4, width=64, classes=2, in_channels=1, padded=False, batch_norm=False)
    network = UNet(published)
    # Ronneberger, Fischer & Brox 2015, figure 1: 572 in, 388 out, 23 convolutions.
    assert valid_input_extent(published, 388) == (572, 388)
    assert published.margin == (572 - 388) // 2
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(convolutions) == 23
    assert sum(p.numel() for p in network.parameters()) == 31_030_658


@pytest.mark.parametrize(("depth", "padded"), [(1, False), (2, False), (3, True), (4, True)])
def test_output_extent(depth: int, padded: bool) -> None:
    architecture = Architecture(depth=depth, width=4, classes=3, in_channels=2, padded=padded)
    extent, expected = (64, 64) if padded else valid_input_extent(architecture, 20)
    with torch.inference_mode():
        out = UNet(architecture).eval()(torch.zeros(1, 2, extent, extent))
    assert out.shape == (1, 3, expected, expected)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_reach_is_how_far_a_block_of_output_sees(depth: int) -> None:
    architecture = Architecture(depth=depth, width=4, padded=True)
    network = seeded(architecture).double()
    extent, first, block = 160, 64, architecture.stride
    image = torch.randn(1, 1, extent, extent, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    image.requires_grad_()
    network(image)[..., first : first + block, first : first + block].sum().backward()
    assert image.grad is not None
    seen = torch.nonzero(image.grad[0, 0].abs().sum(dim=0)).flatten()
    before, after = first - int(seen.min()), int(seen.max()) - (first + block - 1)
    assert max(before, after) <= architecture.reach
    # A pooling may ignore the outermost pixels, not more.
    assert max(before, after) >= architecture.reach - 2


def test_the_margin_is_what_valid_convolutions_lose() -> None:
    for depth in (1, 2, 3, 4):
        architecture = Architecture(depth=depth, width=4)
        extent, output = valid_input_extent(architecture, 30)
        assert extent - output == 2 * architecture.margin


@pytest.mark.parametrize("padded", [True, False])
def test_folded_batch_norm_changes_nothing(padded: bool) -> None:
    network = seeded(Architecture(depth=2, width=4, padded=padded))
    folded = fold_batch_norm(network)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(2, 1, 92, 92, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-4)


def test_dropout_acts_at_the_end_of_the_contracting_path_only_while_training() -> None:
    network = UNet(Architecture(depth=2, width=4, padded=True, dropout=0.5))
    places = [name for name, m in network.named_modules() if isinstance(m, torch.nn.Dropout2d)]
    assert places == ["dropout"]
    x = torch.randn(1, 1, 32, 32)
    network.eval()
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def test_architecture_round_trip() -> None:
    architecture = Architecture(depth=3, width=24, padded=True)
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    assert architecture.stride == 8
    assert np.isclose(architecture.dropout, 0.5)
