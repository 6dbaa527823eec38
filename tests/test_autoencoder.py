import pytest
import torch
from torch import nn

from models.activations import ACTIVATIONS
from models.autoencoder import KIND, Autoencoder, AutoencoderConfig, ResidualBlock, psnr
from utils.core.files import UserError
from utils.runs.checkpoint import fingerprint, save_checkpoint

DEFAULTS = {
    "model_lr": 1e-3, "image_channel": 3, "min_channel": 4, "max_channel": 6, "num_layers": 1, "latent_channel": 2,
    "hidden_activation_type": "silu", "use_final_enc_activation": False, "encoder_activation_type": "tanh",
    "use_final_dec_activation": False, "decoder_activation_type": "tanh",
}  # fmt: skip


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig(**DEFAULTS | changes))


def images(batch, height, width, seed=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("num_layers", "rows", "columns"), [(1, 1, 1), (2, 2, 3), (3, 5, 2)])
def test_each_layer_halves_and_the_decoder_mirrors(num_layers, rows, columns):
    model, factor = build(num_layers=num_layers), 2**num_layers
    x = images(2, rows * factor, columns * factor)
    fmap = model.encode(x)
    assert fmap.shape == (2, 2, rows, columns)
    assert model.decode(fmap).shape == x.shape
    assert torch.equal(model(x), model.decode(fmap))


@pytest.mark.parametrize("number", [0, 1])
def test_channels_double_up_to_the_maximum_and_residual_blocks_stand_at_each_resolution(number):
    model = build(min_channel=4, max_channel=6, num_layers=3, num_enc_res_blocks=number, num_dec_res_blocks=2)
    assert model.config.channels() == [4, 6, 6]
    counts = [sum(isinstance(m, ResidualBlock) for m in part.modules()) for part in (model.encoder, model.decoder)]
    assert counts == [3 * number, 3 * 2]


@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_loss_is_that_of_pixels_and_of_differences_between_neighbours(loss, weight):
    built, given = images(2, 4, 6), images(2, 4, 6, seed=2)
    error, pixels, rows, columns = (built - given).double(), [], [], []
    measure = (lambda x: x**2) if loss == "mse" else abs
    for i in range(4):
        for j in range(6):
            pixels.append(measure(error[:, :, i, j]))
            if i < 3:
                rows.append(measure(error[:, :, i + 1, j] - error[:, :, i, j]))
            if j < 5:
                columns.append(measure(error[:, :, i, j + 1] - error[:, :, i, j]))
    means = [torch.stack(part).mean() for part in (pixels, rows, columns)]
    result = build(loss=loss, edge_weight=weight).loss(built, given)
    assert result.item() == pytest.approx((means[0] + weight * (means[1] + means[2])).item(), rel=1e-5)


@torch.no_grad()
def test_what_is_far_from_a_cell_does_not_change_it():
    """Four 3×3 convolutions a side at half size see four cells: a crop gives the same middle as the whole."""
    model, whole = build().eval(), images(1, 40, 44)
    crop = whole[:, :, 8:36, 6:38]  # cells 4 to 18 and 3 to 19
    assert torch.allclose(model.encode(crop)[:, :, 4:-4, 4:-4], model.encode(whole)[:, :, 8:14, 7:15], atol=1e-6)
    fmap = torch.randn(1, 2, 20, 22, generator=torch.Generator().manual_seed(2))
    decoded = model.decode(fmap[:, :, 4:18, 3:19])
    assert torch.allclose(decoded[:, :, 8:-8, 8:-8], model.decode(fmap)[:, :, 16:28, 14:30], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("end", ["enc", "dec"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_end_activation_is_the_one_named_and_only_if_asked_for(end, name):
    key = {"enc": "encoder_activation_type", "dec": "decoder_activation_type"}[end]
    plain = build(**{key: name})
    ended = build(**{key: name, f"use_final_{end}_activation": True})
    ended.load_state_dict(plain.state_dict())
    x = images(2, 8, 6) if end == "enc" else 5 * torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(2))
    run = Autoencoder.encode if end == "enc" else Autoencoder.decode
    expected = ACTIVATIONS[name]()(run(plain, x))
    assert torch.equal(run(ended, x), expected)
    assert not torch.equal(run(plain, x), expected)


@torch.no_grad()
def test_the_hidden_activation_is_the_one_named():
    silu, elu = build(hidden_activation_type="silu"), build(hidden_activation_type="elu")
    kinds = {type(module) for module in elu.modules()}
    assert nn.ELU in kinds
    assert nn.SiLU not in kinds
    elu.load_state_dict(silu.state_dict())
    assert not torch.allclose(silu(images(1, 8, 8)), elu(images(1, 8, 8)))


@torch.no_grad()
def test_noise_on_the_feature_map_is_for_training_only():
    model, x = build(latent_noise=0.3), images(4, 32, 32)
    clean = model.decode(model.encode(x))
    assert torch.equal(model.eval()(x), clean)
    assert not torch.allclose(model.train()(x), clean, atol=1e-3)
    model.decoder = nn.Identity()
    noise = model(x) - model.encode(x)
    assert noise.std() == pytest.approx(0.3, rel=0.1)
    assert noise.mean() == pytest.approx(0, abs=0.03)


def test_an_image_that_cannot_be_halved_is_named(tmp_path):
    model = build(num_layers=3)
    model.check_image((3, 16, 24), tmp_path)
    for shape, size, larger in (((3, 16, 20), "20×16", "24x16"), ((3, 20, 16), "16×20", "16x24")):
        line = f"faces.json: images of {size} cannot be halved 3 times .*; make them 16 or {larger}, the nearest sizes"
        with pytest.raises(UserError, match=line):
            model.check_image(shape, tmp_path / "faces.json")


@torch.no_grad()
def test_a_saved_autoencoder_comes_back_the_same(tmp_path):
    model, x = build(num_layers=2, latent_noise=0.5), images(2, 8, 12)
    plain = build(seed=1, num_layers=2).state_dict()
    save_checkpoint(tmp_path / "a.pt", KIND, model.config, plain, {}, ema=model.state_dict())  # which is preferred
    loaded = Autoencoder.load(tmp_path / "a.pt")
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(x), model.eval()(x))
    assert loaded.fingerprint == fingerprint(model.state_dict())


def test_it_learns_and_the_psnr_is_that_of_the_error():
    model, x = build(min_channel=16, max_channel=16, latent_channel=8), images(1, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert [psnr(4), psnr(0.04)] == pytest.approx([0, 20])
    assert psnr(0) < float("inf")
