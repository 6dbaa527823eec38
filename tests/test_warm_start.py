"""Weights that begin from those of another data set: none of its images is a test image, and everything says so."""

import json
import shutil
from functools import cache

import pytest
import torch

import generate_fmap_dataset
import prune_codebook
from scripts import evaluate, make_dataset, report
from tests.helpers.features import quick_features
from tests.helpers.runs import BOUNDS, FRACTIONS, MAINS, PRUNED, WEIGHTS, latest
from tests.helpers.scripts import TINY, run_main
from utils.core.provenance import same_images
from utils.data.dataset import ImageDataset
from utils.data.dataset_json import write_dataset
from utils.data.images import image_files
from utils.data.records import read_packed
from utils.data.split import Bounds, Learned

NO_TEST = pytest.approx((BOUNDS.test, BOUNDS.test))


def records_of(path):
    return [*read_packed(path, ("image_fpath",))]


@pytest.fixture(scope="module")
def large(faces, tmp_path_factory):
    """The faces at 64 pixels, in the order of their files. A PNG is named after its pixels, so all names are others."""
    out = tmp_path_factory.mktemp("large")
    argv = ("--out-dir", out, "--image-size", 64, "--num-workers", 0)
    run_main(make_dataset.main, faces.parent / "images", *argv)
    return out / "dataset.json"


@pytest.fixture(scope="module")
def fewer(faces, tmp_path_factory):
    """All faces but one."""
    path = shutil.copytree(faces.parent, tmp_path_factory.mktemp("fewer") / "data") / "dataset.json"
    write_dataset(path, records_of(faces)[1:])
    return path


@pytest.fixture(scope="module")
def encode(tiny_run, tmp_path_factory):
    """A function: the feature maps of images by the autoencoder of the tiny run."""

    @cache
    def call(images):
        out = tmp_path_factory.mktemp("maps")
        argv = ("--model-path", tiny_run / "autoencoder" / WEIGHTS, "--device", "cpu", "--out-dir", out)
        run_main(generate_fmap_dataset.main, "--dataset-path", images, *argv)
        return out / "dataset.json"

    return call


@pytest.fixture(scope="module")
def enlarged(large, tiny_run, tmp_path_factory):
    """A run of an autoencoder that began from that of the tiny run and goes on with the faces at 64 pixels."""
    run = tmp_path_factory.mktemp("enlarged")
    argv = ("--device", "cpu", "--batch-size", 12, *FRACTIONS, "--max-step", 1, "--dataset-path", large)
    argv += ("--config-path", TINY / "autoencoder.json", "--out-dir", run / "autoencoder")
    run_main(MAINS["autoencoder"], *argv, "--model-path", tiny_run / "autoencoder" / WEIGHTS)
    return run


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """A function: the content of an evaluation."""
    quick_features(monkeypatch)

    def call(run, images):
        out = tmp_path / "evaluation"
        run_main(evaluate.main, run, "--dataset-path", images, "--device", "cpu", "--out-dir", out)
        return json.loads((out / "evaluation.json").read_text())

    return call


def test_pictures_that_were_learned_from_at_another_size_are_no_test_images(enlarged, large, faces):
    sources = {path.name: number for number, path in enumerate(image_files(faces.parent / "images")[0])}
    small, larger = ImageDataset(faces), ImageDataset(large)
    split = larger.split(BOUNDS)
    learned = {sources[small.path(index).name] for index in small.split(BOUNDS).training}
    assert learned & {*split.test.tolist()}  # by the hash alone, the danger is real
    content = latest(enlarged / "autoencoder")
    after = larger.split(Bounds.saved(content))
    assert len(after.test) == 0 and {*after.validation} == {*split.validation, *split.test}


def test_the_evaluation_measures_on_validation_images_and_says_so(enlarged, large, evaluated, tmp_path):
    content = evaluated(enlarged, large)
    assert str(enlarged / "autoencoder" / WEIGHTS) in content["no_test"]
    assert content["num_held_out"] == len(ImageDataset(large).split(Bounds(BOUNDS.test, BOUNDS.test)).validation)
    table = (tmp_path / "evaluation/table.md").read_text()
    run = shutil.copytree(enlarged, tmp_path / "run")
    shutil.copytree(tmp_path / "evaluation", run / "evaluation")
    run_main(report.main, run)
    for text in (table, (run / "report.html").read_text()):
        assert content["no_test"] in text and "test images" not in text


def further(name, tiny_run, images):
    """What trains a model of the tiny run further, and the file with the weights to begin from."""
    weights = {"codebook_1": "--codebook-path", "autoencoder": "--encoder-path"}.get(name, "--model-path")
    more = ("--hr-codebook-path", tiny_run / "codebook_2" / PRUNED) if name == "autoencoder" else ()
    path = tiny_run / name / WEIGHTS
    return (weights, path, *more, "--max-step", 1, "--dataset-path", images), path


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1", "transformer_1"])
def test_weights_of_another_data_set_leave_no_test_image(name, train, encode, fewer, tiny_run, tmp_path):
    """Of the decoder alone too; and a resume keeps it."""
    images = fewer if name == "autoencoder" else encode(fewer)
    flags, path = further(name, tiny_run, images)
    after = train(name, "run", *flags)
    assert (after["bounds"], after["data"]["images"]) == (NO_TEST, ImageDataset(fewer).fingerprint["images"])
    flags = flags if name == "autoencoder" else ("--dataset-path", images)
    again = train(name, "run", *flags, "--max-step", 2, "--resume")
    assert again["step"] == 2 and again["bounds"] == NO_TEST
    if name == "codebook_1":
        argv = ("--dataset-path", images, "--codebook-path", path, "--device", "cpu", *FRACTIONS, "--keep", 8)
        run_main(prune_codebook.main, *argv, "--out-dir", tmp_path / "pruned")  # counts by other maps
        assert torch.load(tmp_path / "pruned" / PRUNED, weights_only=True)["bounds"] == NO_TEST


@pytest.mark.parametrize("name", ["autoencoder", "codebook_1"])
def test_weights_of_the_same_pictures_keep_the_test_images(name, train, encode, faces, tiny_run, tmp_path):
    """In another order, with other labels, and encoded without mirror images."""
    same = shutil.copytree(faces.parent, tmp_path / "data") / "dataset.json"
    write_dataset(same, [record | {"labels": ["other"]} for record in records_of(faces)[::-1]])
    flags, _ = further(name, tiny_run, same if name == "autoencoder" else encode(same))
    assert train(name, "run", *flags)["bounds"] == pytest.approx(BOUNDS)


def test_the_evaluation_compares_the_data_of_all_steps(tiny_run, faces, fewer, encode, evaluated, train, tmp_path):
    run, whole = shutil.copytree(tiny_run, tmp_path / "copy"), Bounds(BOUNDS.test, BOUNDS.test)
    (run / "generate.json").unlink()
    for name, step in (("decoder", "autoencoder"), ("transformer_1", "transformer_1")):
        shutil.rmtree(run / name, ignore_errors=True)
        train(step, f"copy/{name}", *further(step, tiny_run, fewer if name == "decoder" else encode(fewer))[0])
        content = evaluated(run, faces)
        file = run / name / "models_checkpoint" / ("best.pt" if name == "transformer_1" else "latest.pt")
        assert str(file) in content["no_test"]
        assert content["num_held_out"] == len(ImageDataset(faces).split(whole).validation)
        assert [row["name"] for row in content["bits"]] == ["condition", "stage 0", "stage 1", "stage 2"]
        shutil.rmtree(run / name)


def test_the_identity_is_that_of_pictures_and_of_what_splits_them(faces, tmp_path):
    before, records = ImageDataset(faces).fingerprint, records_of(faces)

    def images_of(changed):
        write_dataset(tmp_path / "dataset.json", changed)
        return {"images": read_packed(tmp_path / "dataset.json", ("image_fpath",)).images}

    def moved(key):
        return [record | {"image_fpath": f"far/{record['image_fpath']}", **key(record)} for record in records[::-1]]

    assert same_images(before, images_of(moved(lambda record: {"image_key": record["image_fpath"]})))
    for changed in (
        records[:-1],
        [*records, records[0]],
        [record | {"group": str(number // 2)} for number, record in enumerate(records)],
        moved(lambda _: {}),
        [records[0] | {"checksum": records[1]["checksum"]}, *records[1:]],
        [{key: value for key, value in record.items() if key != "checksum"} for record in records],
    ):
        assert same_images(before, images_of(changed)) is False
    assert same_images(before, {"index": "another"}) is None and same_images(None, before) is None
    assert Learned(BOUNDS, before).among({"images": "another"}) == (1, 1)
    assert Learned(BOUNDS, None).among(before) == BOUNDS
