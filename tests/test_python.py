"""The model in Python: what `Cascade` gives, and that the code of docs/using.md runs."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate_images
from models.cascade import Cascade
from models.requests import Place, Request
from tests.helpers.scripts import run_main
from utils.core.files import UserError
from utils.data.images import read_image, to_pil

PAGE = Path(__file__).parent.parent / "docs" / "using.md"


@pytest.fixture(scope="module")
def cascade(tiny_run):
    return Cascade.load(tiny_run, device="cpu", precision="fp32", batch_size=4)


@pytest.fixture(scope="module")
def files(faces):
    return sorted(faces.parent.rglob("*.png"))[:2]


def pixels(images):
    return [np.asarray(image) for image in images]


def test_samples_are_those_of_the_script(cascade, tiny_run, tmp_path):
    run_main(
        generate_images.main, "--model", tiny_run, "--device", "cpu", "--precision", "fp32", "--seed", 2,
        "--num-images", 6, "--batch-size", 4, "--temperature", 0.5, 0.6, 0.7, "--out-dir", tmp_path,
    )  # fmt: skip
    built = cascade.sample(6, seed=2, temperature=(0.5, 0.6, 0.7))
    assert [type(image) for image in built] == [Image.Image] * 6
    for image, path in zip(pixels(built), sorted((tmp_path / "images").glob("image_*")), strict=True):
        assert np.array_equal(image, np.asarray(Image.open(path)))
    tensor = cascade.sample(6, seed=2, temperature=(0.5, 0.6, 0.7), as_tensor=True)
    assert tensor.shape == (6, 3, 32, 32)
    assert tensor.abs().max() <= 1
    assert all(np.array_equal(*pair) for pair in zip(pixels(to_pil(tensor)), pixels(built), strict=True))
    fewer = cascade.sample(3, seed=2, temperature=(0.5, 0.6, 0.7))
    assert all(np.array_equal(*pair) for pair in zip(pixels(built[:3]), pixels(fewer), strict=True))


def test_images_may_be_files_pil_images_or_tensors(cascade, files):
    tensors = torch.stack([read_image(path) for path in files])
    expected = cascade.tokens(tensors)
    assert [part.shape for part in expected] == [(2, 1), (2, 4), (2, 16), (2, 64)]
    large = [Image.open(path).resize((64, 64), Image.Resampling.NEAREST) for path in files]
    for given in (files, tuple(map(str, files)), [Image.open(path) for path in files], list(tensors)):
        assert all(torch.equal(*pair) for pair in zip(cascade.tokens(given), expected, strict=True))
    image = Image.open(files[0])
    for given in (files[0], str(files[0]), image, image.convert("P"), tensors[0], tensors[:1]):
        assert cascade.tokens(given)[3].shape == (1, 64)
    assert cascade.tokens(large)[0].shape == (2, 1)
    assert np.array_equal(cascade.decode(expected[3]).detach().numpy(), cascade.decode(expected[3], 3).numpy())


def test_pictures_like_others_completed_and_with_new_detail(cascade, files):
    tokens = cascade.tokens(files)
    conditions = tokens[0].flatten().tolist()
    like = cascade.like(files, 4, seed=1, as_tensor=True)
    assert torch.equal(like, cascade.sample(4, seed=1, conditions=conditions, as_tensor=True))
    assert len(cascade.like(files)) == 2
    completed = cascade.complete(files, 1, seed=1, as_tensor=True)
    assert completed.shape == (2, 3, 32, 32)
    built, _ = cascade.generate(Request(1, init_tokens=tokens, keep_rows=1), range(4))
    assert torch.equal(completed, cascade.decode(built[-1])[:2])
    built, _ = cascade.generate(Request(1, init_tokens=tokens, from_stage=2), range(4))
    detail = cascade.detail(files, 2, 3, seed=1, as_tensor=True)
    assert torch.equal(detail, cascade.decode(built[-1])[:3])
    assert cascade.detail(files[0], 1)[0].size == (32, 32)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda model, image: model.sample(1, conditions=[99]), "unit 99"),
        (lambda model, image: model.check(Request(places=(Place(1, 99),))), "unit 99"),
        (lambda model, image: model.sample(1, labels=["cats"]), "'cats'"),
        (lambda model, image: model.sample(1, temperature=0), "stage 0: 'temperature'"),
        (lambda model, image: model.sample(1, temprature=1), "'temprature'"),
        (lambda model, image: model.complete(image, 9), "9 rows"),
        (lambda model, image: model.complete(image, -1), "-1 rows"),
        (lambda model, image: model.detail(image, 7), "stage 7"),
        (lambda model, image: model.sample(0), "0 pictures"),
        (lambda model, image: model.tokens("none.png"), "none.png"),
        (lambda model, image: model.tokens([]), "images"),
        (lambda model, image: model.tokens(torch.zeros(3, 32, 32).int()), "tensor"),
        (lambda model, image: model.tokens(torch.full((3, 32, 32), torch.nan)), "tensor"),
        (lambda model, image: model.tokens(torch.zeros(3, 8, 8)), "(3, 8, 8)"),
        (lambda model, image: model.decode(torch.zeros(1, 64).long(), 4), "level 4"),
        (lambda model, image: model.decode(torch.zeros(1, 64)), "float32"),
        (lambda model, image: Cascade.load(PAGE.parent, precision="b16"), "precision 'b16'"),
        (lambda model, image: Cascade.load(PAGE.parent, batch_size=0), "batch_size 0"),
        (lambda model, image: Cascade.load("none"), "none"),
        (lambda model, image: Cascade.load(PAGE.parent), "docs"),
        (lambda model, image: Request(labels="cats"), "'cats'"),
        (lambda model, image: model.sample(conditions=[0, 0.5]), "conditions, entry 1"),
        (lambda model, image: model.sample(labels=[7]), "labels, entry 0"),
        (lambda model, image: model.sample(seed="1"), "seed"),
        (lambda model, image: model.sample(temperature="0.8"), "temperature"),
    ],
)
def test_what_it_cannot_do_is_a_user_error(call, named, cascade, files):
    with pytest.raises(UserError, match=re.escape(named)):
        call(cascade, files[0])


def test_numbers_of_numpy_and_torch_are_those_of_python(cascade):
    expected = cascade.sample(2, seed=3, conditions=[0, 1], temperature=0.5, as_tensor=True)
    for number, units in ((np.int64(2), np.array([0, 1])), (torch.tensor(2), torch.tensor([0, 1]))):
        given = cascade.sample(number, seed=number + 1, conditions=units, temperature=np.float32(0.5), as_tensor=True)
        assert torch.equal(given, expected)


def test_the_code_of_the_page_runs(tiny_run, files, tmp_path, monkeypatch):
    """All of it, in order, beside a model and two pictures of the names that it uses."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 1
    shutil.copytree(tiny_run, tmp_path / "faces")
    shutil.copy(files[0], tmp_path / "one.png")
    shutil.copy(files[1], tmp_path / "two.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(block, names)
    assert {path.name for path in tmp_path.glob("*.png")} > {"one.png", "two.png"}
