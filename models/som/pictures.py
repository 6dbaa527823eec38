"""Pictures of a map: its units decoded, the distances between them, and how often each is used."""

import torch
from torch.nn import functional as F

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.patches import unpatchify
from utils.data.images import heat_map, save_image
from utils.runs.folders import OutputFolder

ATLAS_SIDE = 4096  # largest side of the atlas, in pixels
TILE_SIDE = 24  # smallest side of a unit in the atlas, in pixels
BATCH = 32  # units decoded at once
CONTEXT = 3  # minimal number of cells around a decoded patch, so that it does not look like the edge of an image


def save_map(codebook: Codebook, autoencoder: Autoencoder, folder: OutputFolder, suffix: object) -> None:
    """Write `atlas_SUFFIX.png`, `u_matrix_SUFFIX.png` and, once the codebook has counts, `hit_map_SUFFIX.png`."""
    save_image(atlas(codebook, autoencoder), folder.picture("atlas", suffix))
    save_image(heat_map(u_matrix(codebook)), folder.picture("u_matrix", suffix))
    if codebook.counts.sum() > 0:
        save_image(heat_map(hit_map(codebook)), folder.picture("hit_map", suffix))


@torch.no_grad()
def atlas(codebook: Codebook, autoencoder: Autoencoder) -> torch.Tensor:
    """Every unit decoded to pixels, at its place on the map, (3, H, W) in [−1, 1]; empty places are white."""
    return on_map(torch.cat([_decode(units, codebook, autoencoder) for units in codebook.units.split(BATCH)]), codebook)


def on_map(tiles: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    """A picture of each unit, (K, 3, h, w), at its place on the map, (3, H, W); empty places are white."""
    grid = _on_map(tiles, codebook).nan_to_num(1.0)
    rows, columns, channels, height, width = grid.shape
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def _decode(units: torch.Tensor, codebook: Codebook, autoencoder: Autoencoder) -> torch.Tensor:
    """Units (B, D) → images (B, 3, h, w). A patch is decoded with copies of itself around it, then cut out."""
    config = codebook.config
    patches = unpatchify(units[:, None], config.image_C, config.patch_H, config.patch_W, config.patch_H)
    # A patch that is the whole feature map needs no context.
    around = 0 if config.grid == (1, 1) else -(-CONTEXT // min(patches.shape[-2:]))
    images = autoencoder.decode(patches.repeat(1, 1, 2 * around + 1, 2 * around + 1)).float().cpu()
    height, width = (side * autoencoder.scale for side in patches.shape[-2:])
    images = images[..., around * height :, around * width :][..., :height, :width].clamp(-1, 1)
    largest = ATLAS_SIDE // max(config.map_shape)
    factor = min(-(-TILE_SIDE // min(height, width)), largest // max(height, width))
    return F.interpolate(images, scale_factor=factor) if factor > 1 else shrink(images, largest)


def shrink(images: torch.Tensor, largest: int) -> torch.Tensor:
    """Images (N, 3, H, W), scaled down if a side has more than `largest` pixels."""
    longest = max(images.shape[-2:])
    size = [max(1, side * largest // longest) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="area") if longest > largest else images


def u_matrix(codebook: Codebook) -> torch.Tensor:
    """Distances between neighbours, (2·rows − 1, 2·columns − 1): the unified distance matrix (Ultsch 1990).

    A cell between two units holds their distance, one between four the mean of the diagonals, and that of a unit the
    mean of the cells around it. NaN where there is no unit.
    """
    units = _on_map(codebook.units, codebook)
    matrix = torch.full((2 * units.shape[0] - 1, 2 * units.shape[1] - 1), torch.nan)
    matrix[1::2, ::2] = (units[1:] - units[:-1]).norm(dim=-1)
    matrix[::2, 1::2] = (units[:, 1:] - units[:, :-1]).norm(dim=-1)
    diagonals = (units[1:, 1:] - units[:-1, :-1]).norm(dim=-1), (units[1:, :-1] - units[:-1, 1:]).norm(dim=-1)
    matrix[1::2, 1::2] = torch.stack(diagonals).nanmean(0)
    around = F.pad(matrix, (1, 1, 1, 1), value=torch.nan).unfold(0, 3, 2).unfold(1, 3, 2).flatten(2).nanmean(2)
    matrix[::2, ::2] = torch.where(units[..., 0].isnan(), torch.nan, around.nan_to_num(0))  # 0 for a lone unit
    return matrix


def hit_map(codebook: Codebook) -> torch.Tensor:
    """The square root of the count of each unit, (rows, columns); NaN where there is no unit."""
    return _on_map(codebook.counts.float().sqrt(), codebook)


def _on_map(values: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    """Put a value of each unit, (K, ...), at its place: (rows, columns, ...), NaN elsewhere."""
    rows, columns = codebook.coordinates.cpu().T
    grid = torch.full((int(rows.max()) + 1, int(columns.max()) + 1, *values.shape[1:]), torch.nan)
    grid[rows, columns] = values.cpu()
    return grid
