import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.som import statistics as map_statistics
from models.som.statistics import decoded_psnr, take_census
from tests.helpers.codebooks import build, generator, slow_distances, slow_patches
from tests.helpers.transformers import seeds
from utils.data.dataset import FeatureMapDataset
from utils.data.images import read_image
from utils.data.split import Bounds


def slow_statistics(codebook, fmap):
    patches = slow_patches(fmap, codebook.config)
    places, counts, torn, error = codebook.coordinates.tolist(), [0] * len(codebook), 0, 0.0
    for one in patches:
        distances = (codebook.units.double() - one).square().sum(1).tolist()
        first, second = sorted(range(len(codebook)), key=distances.__getitem__)[:2]
        counts[first] += 1
        error += distances[first]
        torn += max(abs(a - b) for a, b in zip(places[first], places[second], strict=True)) > 1
    use = [count / len(patches) for count in counts if count]
    return counts, {
        "quantization_error": error / patches.numel(),
        "share_of_variance": error / float((patches - patches.mean(0)).square().sum()),
        "topographic_error": torn / len(patches),
        "units_used": len(use),
        "units": len(codebook),
        "entropy_bits": -sum(share * math.log2(share) for share in use),
        "perplexity": math.exp(-sum(share * math.log(share) for share in use)),
    }


@given(seed=seeds, units=st.integers(2, 30), batch=st.integers(1, 7))
@settings(max_examples=30)
def test_statistics_equal_a_slow_count_whatever_the_batch_size(seed, units, batch):
    codebook = build(torch.randn(units, 12, generator=generator(seed)))
    fmap = 1 + torch.randn(7, 2, 4, 6, generator=generator(seed + 1))
    counts, expected = slow_statistics(codebook, fmap)
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    census = take_census(codebook, fmap.split(batch))
    assert all(value.equal(before[name]) for name, value in codebook.state_dict().items())
    result = census.statistics(codebook)
    ranked = sorted(range(units), key=lambda unit: -counts[unit])
    assert result.pop("most_used") == [[unit, counts[unit]] for unit in ranked[:3]]
    assert result.pop("least_used") == [[unit, counts[unit]] for unit in ranked[::-1][:3]]
    assert result == pytest.approx(expected, rel=1e-4)
    assert census.counts.tolist() == counts
    assert codebook.quantization_error(fmap).item() == pytest.approx(expected["quantization_error"], rel=1e-4)


@pytest.fixture
def measured(tiny_run):
    """A data set of feature maps, its autoencoder, and a codebook over them."""
    load = tiny_run / "autoencoder/models_checkpoint/latest.pt", tiny_run / "codebook_1/models_checkpoint/latest.pt"
    return FeatureMapDataset(tiny_run / "feature_maps/dataset.json"), Autoencoder.load(load[0]), Codebook.load(load[1])


def test_decoded_psnr_equals_that_of_images_one_by_one(measured, monkeypatch):
    monkeypatch.setattr(map_statistics, "BATCH", 3)
    dataset, autoencoder, codebook = measured
    held_out = dataset.split(Bounds(0.2, 0.2)).validation
    errors = {"before": [], "after": []}
    for index in held_out:
        if not dataset.flipped[index]:
            fmap = dataset[[index]]
            tokens = slow_distances(slow_patches(fmap, codebook.config), codebook.units).argmin(1)[None]
            image = read_image(dataset.folder / dataset.records[index]["image_path"])
            for name, given_map in (("before", fmap), ("after", codebook.lookup(tokens))):
                with torch.no_grad():
                    errors[name].append(float((autoencoder.decode(given_map)[0] - image).square().double().mean()))
    assert len(errors["before"]) > 3
    expected = {f"psnr_{name}_quantization": 10 * math.log10(4 / (sum(e) / len(e))) for name, e in errors.items()}
    assert decoded_psnr(autoencoder, codebook, dataset, held_out) == pytest.approx(expected, rel=1e-4)
    assert expected["psnr_before_quantization"] > expected["psnr_after_quantization"]
