"""The codebook: a self-organizing map over patches of feature maps (Kohonen 1982; batch form Kohonen 1993)."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.patches import patchify, unpatchify
from utils.core.config import build_config, read_json
from utils.core.files import UserError
from utils.core.options import check_ranges, option
from utils.core.provenance import Origin, check_origin
from utils.data.split import Learned
from utils.runs.checkpoint import build_model, fingerprint, load_checkpoint

KIND = "codebook"
# Distances computed at once in a search, so that memory does not grow with the patches: 4 MiB fit into a processor's
# cache, which makes the search three times as fast as blocks of 32 MiB; a GPU needs larger blocks.
SEARCH_DISTANCES = {"cpu": 2**20, "cuda": 2**24}
MAX_UNITS, MAX_NUMBERS = 2**14, 2**22  # limits of K and of K·D


@dataclass(frozen=True)
class CodebookConfig:
    model_lr: float = option("least fraction of the distance by which a patch moves its unit", above=0, below=1)
    image_H: int = option("height of the feature maps", low=1, unset="that of the data")
    image_W: int = option("width of the feature maps", low=1, unset="that of the data")
    image_C: int = option("channels of the feature maps", low=1, unset="that of the data")
    patch_H: int = option(
        "height of a patch; leave out both for a condition codebook, whose patch is the whole map", low=1
    )
    patch_W: int = option("width of a patch", low=1)
    num_embeddings: int = option("units of the map before pruning; all units together hold at most 2²² numbers", low=2)
    neighbourhood_step: int = option(
        "training steps per decrease of the radius by one; all decreases take at most a fifth of the run", low=1
    )
    final_radius: float = option("final radius; above 0 the map is smoother and less precise", 0.0, low=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        for axis in "HW":
            size, patch = getattr(self, f"image_{axis}"), getattr(self, f"patch_{axis}")
            if size % patch:
                raise ValueError(f"'image_{axis}' {size} is not divisible by 'patch_{axis}' {patch}")
        most = min(MAX_UNITS, MAX_NUMBERS // self.dim)
        if self.num_embeddings > most:
            raise ValueError(
                f"'num_embeddings' is {self.num_embeddings}, expected at most {most} for patches of {self.dim} numbers"
            )

    @classmethod
    def load(cls, path: Path, shape: tuple[int, ...]) -> "CodebookConfig":
        values, sizes = read_json(path), dict(zip(("image_C", "image_H", "image_W"), shape, strict=True))
        if values.keys().isdisjoint(("patch_H", "patch_W")):  # a patch is the whole map
            sizes |= {"patch_H": shape[1], "patch_W": shape[2]}
        return build_config(cls, sizes | values, str(path))

    @property
    def dim(self) -> int:
        return self.image_C * self.patch_H * self.patch_W

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_H // self.patch_H, self.image_W // self.patch_W

    @property
    def map_shape(self) -> tuple[int, int]:
        """Rows and columns of the map: nearly square; the last row may be shorter."""
        rows = math.isqrt(self.num_embeddings)
        return rows, -(-self.num_embeddings // rows)


class Codebook(nn.Module):
    """K units of dimension D, each at a place of the map, as buffers without gradients.

    `units` (K, D) float32; `coordinates` (K, 2) int64, row and column on the map; `counts` (K,) int64, how often each
    unit was the best match over a data set, zero until those of a `Census` are copied in.
    """

    def __init__(self, config: CodebookConfig, num_units: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.fmap_shape = (config.image_C, config.image_H, config.image_W)
        index, columns = torch.arange(num_units or config.num_embeddings), config.map_shape[1]
        self.register_buffer("units", torch.zeros(len(index), config.dim))
        self.register_buffer("coordinates", torch.stack((index // columns, index % columns), dim=1))
        self.register_buffer("counts", torch.zeros_like(index))
        # Of the checkpoint that it was loaded from:
        self.origin: Origin = {}  # the models that made its data
        self.step = 0  # of its training
        self.learned = Learned()

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        content = load_checkpoint(path, KIND)
        config, units = build_config(CodebookConfig, content["config"], str(path)), content["model"].get("units")
        num_units = 0 if units is None or units.ndim == 0 else len(units)
        codebook = build_model(lambda: cls(config, num_units), content, path)
        places, limits = codebook.coordinates, torch.tensor(config.map_shape)
        if (places < 0).any() or (places >= limits).any() or (codebook.counts < 0).any():
            raise UserError(f"{path}: damaged, it has units outside of its map or counts below 0; use another codebook")
        codebook.origin, codebook.step = content["trained_from"], content.get("step", 0)
        codebook.learned = Learned.saved(content)
        return codebook

    def __len__(self) -> int:
        return len(self.units)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.state_dict())

    def check_fits(self, path: Path, shape: tuple[int, ...], origin: Origin) -> None:
        """Raise `UserError` naming the file of the codebook if it is for feature maps of another shape or origin."""
        if shape != self.fmap_shape:
            shapes = f"is for feature maps of {self.fmap_shape} (C, H, W), the data set holds {shape}"
            advice = "give those that it is for, or in a config leave out 'image_C', 'image_H' and 'image_W'"
            raise UserError(f"{path}: {shapes}; {advice}")
        check_origin(path, self.origin, origin)

    @property
    def centre(self) -> torch.Tensor:
        """The unit (1, D) nearest to the mean: differences from it keep the precision that a large mean costs."""
        nearest = (self.units - self.units.mean(0)).square().sum(1).argmin(0, keepdim=True)
        return self.units.index_select(0, nearest)  # indexing would wait for the device

    def patchify(self, fmap: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) → all their patches, (B·T, D)."""
        return patchify(fmap, self.config.patch_H, self.config.patch_W).flatten(0, 1)

    def nearest(self, patches: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (N, D) → squared distances and indices of the `k` nearest units, each (N, k), nearest first."""
        centre = self.centre
        units = self.units - centre
        half_norms = units.square().sum(1) / 2
        most = SEARCH_DISTANCES.get(self.units.device.type, SEARCH_DISTANCES["cpu"])
        errors, indices = [], []
        for block in patches.split(max(1, most // max(self.units.shape))):
            scores = torch.addmm(half_norms, block - centre, units.T, alpha=-1)  # ½|u|² − p·u, least where |p − u| is
            nearest = scores.topk(k, largest=False).indices if k > 1 else scores.argmin(1, keepdim=True)
            errors.append(torch.stack([self.units[column].sub_(block).square_().sum(1) for column in nearest.T], dim=1))
            indices.append(nearest)
        return torch.cat(errors), torch.cat(indices)

    def find_bmu(self, fmap: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) → tokens (B, T) int64: the best matching unit of each patch, in raster order."""
        return self.nearest(self.patchify(fmap))[1].view(len(fmap), -1)

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) → feature maps (B, C, H, W) of the units' patches."""
        return unpatchify(self.units[tokens], *self.fmap_shape, self.config.patch_H)

    def quantize(self, fmap: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) → the same with each patch replaced by its nearest unit."""
        return self.lookup(self.find_bmu(fmap))

    def quantization_error(self, fmap: torch.Tensor) -> torch.Tensor:
        """Mean squared error per number of feature maps (B, C, H, W) after quantization. A scalar."""
        return self.nearest(self.patchify(fmap))[0].mean() / self.config.dim

    @torch.no_grad()
    def lay_out(self, patches: torch.Tensor) -> None:
        """Copy patches of the data to the units, laid out along its first two principal components.

        They are sorted by the first component and divided into one group per column of the map. Each group is sorted by
        the second component. So the map is ordered from the start.
        """
        chosen = patches[: len(self)]
        _, _, axes = torch.pca_lowrank(patches, q=min(2, *patches.shape))
        scores = (chosen - patches.mean(0)) @ axes  # (K, 2), or (K, 1) where D is 1
        order = scores[:, 0].argsort()
        for index in range(self.config.map_shape[1]):
            slots = (self.coordinates[:, 1] == index).nonzero().squeeze(1)
            members, order = order[: len(slots)].sort().values, order[len(slots) :]
            self.units[slots] = chosen[members[scores[members, -1].argsort()]]

    @torch.no_grad()
    def prune(self, keep: torch.Tensor) -> "Codebook":
        """A codebook of the units where `keep` (K,) bool is true, in their order and at their places on the map."""
        pruned = Codebook(self.config, int(keep.sum()))
        pruned.load_state_dict({name: value[keep] for name, value in self.state_dict().items()})
        return pruned.to(self.units.device)
