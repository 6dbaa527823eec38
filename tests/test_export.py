"""Exported models: the same pictures, what the folder holds, and what is refused."""

import ast
import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import generate_images
from models.cascade import Cascade
from models.requests import Request
from reporting.card import make_card
from scripts import evaluate, export, report
from tests.helpers.deaths import dying
from tests.helpers.features import quick_features
from tests.helpers.files import edited
from tests.helpers.labels import teach_labels
from tests.helpers.reports import EVALUATION
from tests.helpers.scripts import expect_error, expect_exit, run_main
from utils.core.files import UserError
from utils.core.replace_set import replace_set
from utils.data.dataset import ImageDataset
from utils.runs.checkpoint import fingerprints_of
from utils.runs.exported import DTYPES, ModelConfig
from utils.runs.folders import CONFIG, ExportedFolder, RunFolder

CODEBOOKS = [f"codebook_{level}.safetensors" for level in ("cond", 0, 1, 2)]
ROUNDED = ["autoencoder.safetensors", *(f"transformer_{number}.safetensors" for number in range(3))]
NAMES = {*CODEBOOKS, *ROUNDED, CONFIG, "generate.json", "README.md", "samples.png", ".lock"}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(export, "SAMPLES", 4)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """A function: the folder with the model in a dtype; to be read only."""
    folders = {}

    def make(dtype="float32"):
        if dtype not in folders:
            folders[dtype] = tmp_path_factory.mktemp("exported") / "faces"
            run_main(export.main, tiny_run, folders[dtype], "--dtype", dtype, "--device", "cpu")
        return folders[dtype]

    return make


@pytest.fixture
def copied(exported, tmp_path):
    """A copy to damage."""
    return shutil.copytree(exported(), tmp_path / "copied")


@pytest.fixture
def run(run_with_images, write_json):
    """A copy of the run, with its images and an evaluation."""
    settings = json.loads((run_with_images / "generate.json").read_text())
    models = fingerprints_of(RunFolder(run_with_images))
    write_json(run_with_images / "evaluation/evaluation.json", EVALUATION | {"settings": settings, "models": models})
    return run_with_images


def test_float32_gives_the_pictures_of_the_run_byte_for_byte(exported, tiny_run, tmp_path):
    """Also where the files are named one by one."""
    files = ("--decoder-path", "autoencoder/models_checkpoint/latest.pt"), ("--decoder-path", "autoencoder.safetensors")
    pictures = []
    for folder, (flag, decoder) in zip((tiny_run, exported()), files, strict=True):
        for model in (["--model", folder], [flag, folder / decoder, "--config-path", folder / "generate.json"]):
            out = tmp_path / str(len(pictures))
            settings = ("--device", "cpu", "--num-images", 3, "--batch-size", 3, "--out-dir", out)
            run_main(generate_images.main, *model, *settings)
            pictures.append({path.name: path.read_bytes() for path in (out / "images").iterdir()})
    assert len(pictures[0]) == 7
    assert all(each == pictures[0] for each in pictures)


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_labels_and_what_they_are_drawn_from_are_exported(dtype, precision, run, tmp_path):
    teach_labels(run, ("cat", "n*ght"), [[3, 0, 0, 2], [1, 1, 0, 1], [4, 2, 2, 2]])
    run_main(export.main, run, tmp_path / "faces", "--device", "cpu", "--dtype", dtype)
    before, after = (Cascade.load(path, device="cpu", precision=precision) for path in (run, tmp_path / "faces"))
    assert torch.equal(before.stages[0].label.weight, after.stages[0].label.weight)
    for labels in (("n*ght+cat",), ()):
        written = [model.generate(Request(labels=labels), range(4))[0] for model in (before, after)]
        assert all(map(torch.equal, *written))
    assert after.labels_of(Request(), range(99)) == before.labels_of(Request(), range(99))
    assert set(after.labels_of(Request(), range(99))) == {"cat", "cat+n*ght", ""}
    card = (tmp_path / "faces/README.md").read_text()
    assert "It knows these labels, each of a share of the training images: cat (50.0%), n\\*ght (12.5%)." in card
    assert "cascade.sample(4, labels='cat')" in card


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_exported_model_holds_all_of_the_run_and_nothing_else(dtype, exported, tiny_run, faces):
    out = exported(dtype)
    assert {path.name for path in out.iterdir()} == NAMES
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {(out / CONFIG).stat().st_mode & 0o777}
    original, model = (Cascade.load(path, device="cpu", precision="fp32") for path in (tiny_run, out))
    for before, after in zip(original.codebooks, model.codebooks, strict=True):
        assert before.fingerprint == after.fingerprint  # units, places and counts
        assert after.units.dtype == torch.float32
    assert [stage.fingerprint for stage in model.stages] == [stage.fingerprint for stage in original.stages]
    assert model.decoder.origin == original.decoder.origin
    assert model.decoder.flip and original.decoder.flip
    for name in ROUNDED:
        for key, value in load_file(out / name).items():
            assert value.dtype == DTYPES[dtype]
            assert torch.equal(value, load_file(exported() / name)[key].to(value.dtype))
    assert Image.open(out / "samples.png").size == (2 * 34 + 2, 2 * 34 + 2)
    config = json.loads((out / CONFIG).read_text())
    assert set(config["parts"]) == {*CODEBOOKS, *ROUNDED}
    # All have learned from the same pictures, and a warm start must know.
    assert {part["data"]["images"] for part in config["parts"].values()} == {ImageDataset(faces).fingerprint["images"]}
    assert config["image_size"] == [32, 32]
    folder = RunFolder.open(out)  # told from a run by its config
    assert (type(folder), type(RunFolder.open(Path(tiny_run))), folder.num_stages) == (ExportedFolder, RunFolder, 3)
    assert [step.codebook.name for step in folder.codebooks] == CODEBOOKS
    assert all(step.best.is_file() for step in folder.transformers)


def test_it_is_evaluated_but_is_no_run(exported, faces, tmp_path, monkeypatch, capsys):
    quick_features(monkeypatch)
    out = shutil.copytree(exported(), tmp_path / "faces")
    flags = ("--dataset-path", faces, "--num-images", 4, "--num-training", 8)
    run_main(evaluate.main, out, "--device", "cpu", *flags)
    results = json.loads((out / "evaluation/evaluation.json").read_text())
    assert [row["name"] for row in results["distances"]][-1] == "samples"
    assert any("an exported model has no feature maps" in line for line in results["missing"])
    assert [(row["name"], row["test_bits"]) for row in results["levels"]] == [(f"stage {n}", None) for n in range(3)]
    assert "holds no step of a run" in expect_error(capsys, report.main, [out])
    line = expect_error(capsys, export.main, [out, tmp_path / "again"])
    assert f"{out}: is an exported model; export the run that it is from" in line


@pytest.mark.parametrize("name", ["it's two $(words)", 'say "so"', "two\nlines ü"])
def test_a_name_is_quoted_in_the_card(name, tiny_run, exported):
    config = ModelConfig.load(exported() / CONFIG)
    card = make_card(RunFolder(Path(tiny_run)), Cascade.load(exported(), device="cpu"), config, name, None)
    assert ast.literal_eval(re.search(r"Cascade\.load\((.*)\)", card)[1]) == name
    block = re.search(r"```bash\n(.*?)```", card, re.DOTALL)[1]
    assert shlex.split(block)[3] == name
    assert f"# {' '.join(name.split())}\n" in card


def test_the_code_of_the_card_runs(exported, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (exported() / "README.md").read_text(), re.DOTALL)[1]
    shutil.copytree(exported(), tmp_path / "faces")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(list(tmp_path.glob("*.png"))) == 16


def test_a_model_is_replaced_only_on_demand_and_as_a_whole(tiny_run, copied, monkeypatch, capsys):
    (copied / ".git").mkdir()
    for name in ("transformer_3.safetensors", "mine.safetensors"):  # of a model with more stages, and of a person
        (copied / name).write_bytes(b"weights")
    change(copied / CONFIG, lambda content: content["parts"].update({"transformer_3.safetensors": {}}))
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    arguments = (tiny_run, copied, "--device", "cpu", "--dtype", "bfloat16")
    assert f"{copied}: holds a model; give another folder, or --overwrite" in expect_error(
        capsys, export.main, arguments
    )
    with monkeypatch.context() as patch:
        patch.setattr(export, "make_card", dying(export.make_card, 0))
        assert expect_exit(export.main, (*arguments, "--overwrite")) == 130
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before
    run_main(export.main, *arguments, "--overwrite")
    assert {path.name for path in copied.iterdir()} == {*NAMES, ".git", "mine.safetensors"}
    assert json.loads((copied / CONFIG).read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(("name", "at"), [("copied", 0), ("copied", 3), ("copied", 11), ("new", 3)])
def test_a_model_whose_move_was_interrupted_is_put_in_place_by_the_next_start(
    name, at, tiny_run, copied, monkeypatch, capsys
):
    """Whether it replaces another one or is the first; then there is nothing left to do."""
    whole = {path.name: path.read_bytes() for path in copied.iterdir() if path.name != "README.md"}  # has the name
    arguments = (tiny_run, copied.with_name(name), "--device", "cpu")
    original = Path.replace
    moved = dying(original, at)

    def replace(path, to):
        return (original if Path(to).parent.name == ".next" else moved)(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        assert expect_exit(export.main, (*arguments, "--overwrite")) == 130
    for _ in range(2):
        (arguments[1] / ".next").mkdir(exist_ok=True)  # the second time as one leaves that died while it removed it
        run_main(export.main, *arguments)
        assert capsys.readouterr().out == f"{arguments[1]}: holds this model already: nothing to do\n"
        assert {path.name for path in arguments[1].iterdir()} == NAMES
        assert {path.name: path.read_bytes() for path in arguments[1].iterdir()}.items() >= whole.items()
    content(lambda before: before[:-100])(arguments[1])
    assert f"{arguments[1] / STAGE}: not readable" in expect_error(capsys, export.main, arguments)


@pytest.mark.parametrize("content", [{"names": ["../a"], "old": []}, {"names": [], "old": []}, {"old": [1]}, "x"])
def test_the_marker_of_a_set_touches_nothing_outside_of_its_folder(content, tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "out/.next").mkdir(parents=True)
    (tmp_path / "out/.next/.whole").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"\.whole: "):
        replace_set(tmp_path / "out")
    assert (tmp_path / "a").exists()


def test_what_is_no_target_stays_as_it_is(tiny_run, run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}
    assert "holds other files" in expect_error(capsys, export.main, [tiny_run, run, "--overwrite"])
    assert {path: path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()} == before
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / CONFIG).write_text('{"model_type": "bert"}')
    assert "is not of a model that scripts.export wrote" in expect_error(
        capsys, export.main, [tiny_run, tmp_path / "hub", "--overwrite"]
    )


def test_a_run_that_is_not_whole_is_not_exported(run, tmp_path, capsys):
    (run / "transformer_1/models_checkpoint/best.pt").unlink()
    line = expect_error(capsys, export.main, [run, tmp_path / "out"])
    assert "transformer_1/models_checkpoint/best.pt: no such checkpoint" in line
    (run / "generate.json").unlink()
    assert f"{run}: holds no generate.json" in expect_error(capsys, export.main, [run, tmp_path / "out"])
    assert f"{tmp_path / 'none'}: no such folder" in expect_error(capsys, export.main, [tmp_path / "none", "out"])
    assert not (tmp_path / "out").exists()


def test_weights_that_have_no_number_in_a_dtype_are_named():
    state = {"large": torch.tensor([1e6]), "counts": torch.tensor([10**6])}
    assert torch.equal(export.rounded(state, torch.bfloat16, Path("a.pt"))["counts"], state["counts"])
    with pytest.raises(UserError, match=r"a\.pt: large holds weights that are no numbers as torch\.float16"):
        export.rounded(state, torch.float16, Path("a.pt"))


def change(path, edit):
    with edited(path) as content:
        edit(content)


STAGE = "transformer_1.safetensors"


def config(edit):
    """A damage to config.json, by a function of its content and of what it says of a stage."""
    return lambda folder: change(folder / CONFIG, lambda content: edit(content, content["parts"][STAGE]))


def content(data, name=STAGE):
    """A damage to a whole file: other bytes, or a function of them; without, none."""

    def damage(folder):
        before = (folder / name).read_bytes()
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data(before) if callable(data) else data)

    return damage


def weights(edit, *, is_sealed=False):
    """A damage to a file of weights; `is_sealed` also changes the fingerprint, so that only a shape is wrong."""

    def damage(folder):
        state = load_file(folder / STAGE)
        edit(state)
        save_file(state, folder / STAGE)
        if is_sealed:
            config(lambda _, part: part.update(weights=export.fingerprint(state)))(folder)

    return damage


BIAS = "transformer.head.bias"
PICKLE = pickle.dumps({"kind": "transformer"})
EIGHT_BITS = torch.zeros(2).to(torch.float8_e4m3fn)
DAMAGE = [
    (config(lambda whole, _: whole.update(format_version=2)), f"{CONFIG}: format version 2, this code reads 1"),
    (config(lambda whole, _: whole.pop("format")), f"{CONFIG}: is not of a model that scripts.export wrote"),
    (config(lambda _, part: part.update(kind="codebook")), "holds a codebook, expected a transformer"),
    (
        config(lambda _, part: part["config"]["transformer"].update(num_dec_layers=10**30)),
        "'num_dec_layers' is 1000000000000000000000000000000, expected at least 1 and at most 1024",
    ),
    (
        config(lambda _, part: part.update(trained_from={"lr_codebook": "0" * 16})),
        f"{STAGE}: was made with another lr_codebook",
    ),
    (
        lambda folder: change(folder / "generate.json", lambda stages: stages["1"].update(model_path=f"../x/{STAGE}")),
        f"generate.json: '../x/{STAGE}' is not a file of this model",
    ),
    (content(None), f"{STAGE}: no such checkpoint"),
    (content(lambda before: before[:-100]), f"{STAGE}: not readable"),
    (content(PICKLE), f"{STAGE}: not readable"),
    (
        weights(lambda state: state.update({BIAS: EIGHT_BITS})),
        f"{STAGE}: {BIAS} is of torch.float8_e4m3fn, expected one of float32",
    ),
    (weights(lambda state: state[BIAS].add_(1)), f"{STAGE}: damaged, it does not hold what was exported"),
    (weights(lambda state: state[BIAS].fill_(torch.nan)), f"{STAGE}: holds NaN or infinity in {BIAS}"),
    (
        weights(lambda state: state.update({BIAS: state[BIAS][:-1].clone()}), is_sealed=True),
        f"{STAGE}: its weights do not fit this config",
    ),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_model_gets_one_line(damage, expected, copied, tmp_path, capsys):
    damage(copied)
    line = expect_error(
        capsys, generate_images.main, ["--model", copied, "--device", "cpu", "--out-dir", tmp_path / "out"]
    )
    assert expected in line
    assert str(copied) in line
    assert not (tmp_path / "out").exists()
