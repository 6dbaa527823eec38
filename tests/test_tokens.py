"""The tokens of a data set: what they are, and when they are computed anew."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models import tokens
from models.codebook import Codebook, CodebookConfig
from models.tokens import load_tokens, token_path
from tests.helpers.codebooks import build
from tests.helpers.files import map_folder
from utils.data.dataset import FeatureMapDataset

CPU = torch.device("cpu")
SQUARE = {"image_W": 4, "patch_W": 2}
COARSE = build(**SQUARE, patch_H=4, num_embeddings=6)
FINE = build(**SQUARE, num_embeddings=7)


def write_maps(folder, fmaps, autoencoder="decoder0"):
    return FeatureMapDataset(map_folder(folder, fmaps.numpy(), {"autoencoder": autoencoder}))


@pytest.fixture
def fmaps():
    return torch.randn(70, 2, 4, 4, generator=torch.Generator().manual_seed(0))  # more than one batch


@pytest.fixture
def dataset(fmaps, tmp_path):
    return write_maps(tmp_path, fmaps)


@pytest.fixture
def quantized(monkeypatch):
    """The codebooks of each pass over the maps."""
    passes, original = [], tokens.quantize
    monkeypatch.setattr(tokens, "quantize", lambda maps, books, at: passes.append(books) or original(maps, books, at))
    return passes


def check(result, fmaps, coarse=COARSE, fine=FINE):
    everything = np.arange(len(fmaps))
    assert len(result) == len(fmaps)
    assert torch.equal(result[everything][0], coarse.find_bmu(fmaps))
    assert torch.equal(result[everything][1], fine.find_bmu(fmaps))


def test_tokens_are_the_best_units_of_each_map(dataset, fmaps):
    result = load_tokens(dataset, COARSE, FINE, CPU)
    check(result, fmaps)
    assert (result.coarse.dtype, result.fine.dtype) == (np.uint16, np.uint16)
    coarse, fine = result[np.array([69, 3])]
    assert (coarse.dtype, fine.dtype) == (torch.int64, torch.int64)
    assert torch.equal(fine, FINE.find_bmu(fmaps[[69, 3]]))


def test_the_last_unit_of_the_largest_codebook_is_stored(tmp_path):
    large = Codebook(CodebookConfig(0.1, 1, 2, 1, 1, 1, 2**14, 10))
    large.units[-1] = 100
    small = Codebook(CodebookConfig(0.1, 1, 2, 1, 1, 2, 2, 10))
    result = load_tokens(write_maps(tmp_path, torch.tensor([[[[99.0, 98.0]]]])), small, large, CPU)
    assert result[np.array([0])][1].tolist() == [[2**14 - 1, 2**14 - 1]]


def test_maps_are_read_once_for_both_codebooks_and_never_again(dataset, fmaps, quantized, monkeypatch):
    load_tokens(dataset, COARSE, FINE, CPU)
    assert quantized == [[COARSE, FINE]]
    for number in range(70):
        path = dataset.path(number)
        before = path.stat()
        path.write_bytes(bytes(before.st_size))  # no map any more, and nobody looks
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "lock", lambda *_, **__: pytest.fail("a data set may be read-only"))
        result = load_tokens(dataset, COARSE, FINE, CPU)
        check(result, fmaps)
    assert len(quantized) == 1
    paths = [token_path(dataset, codebook) for codebook in (COARSE, FINE)]
    assert sorted(paths) == sorted((dataset.folder / "tokens").glob("*.pt"))
    assert COARSE.fingerprint in paths[0].name
    assert paths[1].stat().st_size < 4096 + result.fine.nbytes
    if (maps := Path("/proc/self/maps")).exists():
        mapped = maps.read_text()
        assert all(str(path) in mapped for path in paths)


def test_other_maps_are_quantized_anew(dataset, fmaps, quantized):
    load_tokens(dataset, COARSE, FINE, CPU)
    fmaps[5] += 3
    np.save(dataset.path(5), fmaps[5].numpy())
    check(load_tokens(FeatureMapDataset(dataset.index), COARSE, FINE, CPU), fmaps)
    assert len(quantized) == 2
    fewer = fmaps[:60]
    check(load_tokens(write_maps(dataset.folder, fewer), COARSE, FINE, CPU), fewer)
    check(load_tokens(write_maps(dataset.folder, fewer, "decoder1"), COARSE, FINE, CPU), fewer)
    assert len(quantized) == 4


def test_a_damaged_file_or_one_of_other_data_is_computed_again(dataset, fmaps, quantized, caplog):
    load_tokens(dataset, COARSE, FINE, CPU)
    coarse, fine = (token_path(dataset, codebook) for codebook in (COARSE, FINE))
    coarse.write_bytes(coarse.read_bytes()[:100])
    check(load_tokens(dataset, COARSE, FINE, CPU), fmaps)
    assert f"{coarse}: not " in caplog.text
    other = build(**SQUARE, num_embeddings=7, seed=5)
    shutil.copy(fine, token_path(dataset, other))
    check(load_tokens(dataset, COARSE, other, CPU), fmaps, COARSE, other)
    assert quantized == [[COARSE, FINE], [COARSE], [other]]
