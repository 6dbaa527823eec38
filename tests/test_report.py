"""The report: what it shows of a run, that it needs no other file and trusts no name, and what it refuses."""

import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest

from models.codebook import Codebook
from reporting import page as page_module
from reporting.page import LIMIT, make_page
from reporting.pictures import QUALITIES
from reporting.run import read_run, read_step
from scripts import report
from tests.helpers.files import edited
from tests.helpers.reports import HOSTILE, change_attempt
from tests.helpers.scripts import CODEBOOKS, TINY, expect_error
from utils.core.files import UserError
from utils.runs.folders import OutputFolder, RunFolder


class Page(HTMLParser):
    """The tags of a page and its text, as a browser takes them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self.styles = [("html", {})], "", [], ""
        self.feed(text)
        self.plots = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data):
        tag = self.tags[-1][0]
        if tag == "script":
            self.scripts[-1] += data
        elif tag == "style":
            self.styles += data
        else:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(reported):
    return reported[0]


@pytest.fixture(scope="module")
def text(reported):
    return reported[1].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture
def small(monkeypatch):
    """Pages with the smallest pictures alone, which are made quickly."""
    monkeypatch.setattr(page_module, "QUALITIES", QUALITIES[-1:])


@pytest.fixture
def copy(run, small, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def rows_of(run, step):
    return [json.loads(line) for line in RunFolder(run).step(step).metrics.read_text().splitlines()]


def test_every_step_has_its_place_and_every_link_its_target(page):
    identities = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(identities) == len(set(identities))
    steps = {"autoencoder", "feature_maps", *CODEBOOKS, "transformer_0", "transformer_1", "transformer_2"}
    sections = {"summary", "samples", "cascade", "animation", "evaluation"}
    sections |= {"levels", "novelty", "times", "commands", "use"}
    assert steps | sections <= set(identities)
    assert {link["href"][1:] for link in page.all("a")} <= set(identities)


def test_the_page_needs_no_other_and_is_small(text, page):
    assert len(text.encode()) < LIMIT
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    policy = next(tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    assert "unsafe-eval" not in policy


def test_no_name_becomes_markup(text, page):
    assert len(page.scripts) == 3
    assert page.text.count(HOSTILE) >= 3  # in the commands, and in what is missing
    assert "Zürich/IMG 1.HEIC" in page.text and "images/b.png" not in page.text  # a person knows it by that name
    assert "<b>run&" in page.text
    assert "<script>alert" not in text


def test_curves_are_the_metrics(run, page):
    for step in ("autoencoder", *CODEBOOKS, "transformer_0", "transformer_2"):
        rows = rows_of(run, step)
        data = {trace["name"]: trace for trace in page.plots[f"curve-{step}"]["data"]}
        training = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
        validation = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row and "train_loss" not in row]
        assert training
        assert validation
        assert list(zip(data["training"]["x"], data["training"]["y"], strict=True)) == training
        assert list(zip(data["validation"]["x"], data["validation"]["y"], strict=True)) == validation


def test_the_atlas_shows_how_often_each_unit_is_used(run, page):
    for name in CODEBOOKS:
        book = Codebook.load(RunFolder(run).step(name).pruned)
        figure = page.plots[f"atlas-{name}"]
        cells = figure["data"][0]["text"]
        assert sum(cell is not None for row in cells for cell in row) == len(book)
        for unit, (row, column) in enumerate(book.coordinates.tolist()):
            assert cells[row][column].startswith(f"unit {unit}<br>used {int(book.counts[unit]):,} times, ")
        assert figure["layout"]["images"][0]["source"].startswith("data:image/webp;base64,")


def test_numbers_come_from_the_evaluation_or_else_from_the_metrics(run, page, copy):
    """The other run has lost its evaluation and its best stage, and its metrics have lines that are damaged."""
    for shown in ("21.7", "18.9", "0.8765", "0.0123 0.0111 to 0.0135", "37.5 %", "17.2", "14.7 13.5 to 15.9"):
        assert shown in re.sub(r"\s+", " ", page.text), shown
    folder = RunFolder(copy)
    shutil.rmtree(copy / "evaluation")
    with folder.step("transformer_2").metrics.open("a") as file:
        file.write('{"step": 10, "image_bits": 98765.4}\n')
    rows = read_step(folder.autoencoder).rows
    with folder.autoencoder.metrics.open("ab") as file:
        file.write(b'{"step": 1, "train_loss": "low"}\n{"train_loss": 1.0}\n[]\n\xff\xfe\n{"step": 2, "tr')
    assert read_run(folder).steps["autoencoder"].rows == rows and len(rows) > 1
    other = Page(make_page(folder))
    psnr = [row["val_psnr"] for row in rows if "val_psnr" in row][-1]
    quantized = rows_of(run, "codebook_2")[-2]["psnr_after_quantization"]
    assert f"from {psnr:.1f} to {quantized:.1f} dB" in other.text
    assert "98765 bits" in other.text and "0.8765" not in other.text


def attempts_of(folder, *changes):
    """A step whose manifest.json holds an attempt for each of these changes of the values of one."""
    attempt = {
        "script": "train.py", "arguments": {"resume": False}, "config": None, "versions": {}, "device": "cpu",
        "threads": 1, "begin": "2026-01-01T10:00:00+00:00", "end": "2026-01-01T10:30:00+00:00", "outcome": "finished",
    }  # fmt: skip
    step = OutputFolder(folder)
    step.record.write_text(json.dumps({"attempts": [attempt | change for change in changes]}))
    return step


def test_times_of_attempts_are_added_up_and_earlier_runs_left_out(tmp_path):
    resume, prune = {"arguments": {"resume": True}}, {"script": "prune.py", "arguments": {}}
    step = attempts_of(
        tmp_path,
        resume,
        {"begin": "2026-01-01T11:00:00+00:00", "end": "2026-01-01T11:00:10.500+00:00"},
        prune,
        prune | {"begin": "2026-01-01T10:29:59+00:00"},
        resume | {"begin": "2026-01-02T09:00:00+00:00", "end": "2026-01-02T09:01:00+00:00", "outcome": "running"},
    )
    jobs = read_step(step).jobs
    seconds = {script: (len(job.attempts), job.seconds) for script, job in jobs.items()}
    assert seconds == {"train.py": (2, 70.5), "prune.py": (1, 1)}
    assert jobs["train.py"].last.command == "python train.py --resume"
    assert read_step(attempts_of(tmp_path, resume, resume)).jobs["train.py"].seconds == 3600
    anew = attempts_of(tmp_path, resume, resume, resume | {"goes_on": False}, {"goes_on": True})
    assert read_step(anew).jobs["train.py"].seconds == 3600  # without those that --overwrite threw away


def test_a_run_that_has_only_begun_has_its_page_and_the_command_that_goes_on(tiny_run, small, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(tiny_run / "autoencoder", begun / "autoencoder")
    assert "train_cascade" not in Page(make_page(RunFolder(begun))).text  # made step by step, for all that is known
    (begun / "generate.json").write_text("{}")  # or by the chain
    arguments = read_run(RunFolder(begun)).job("autoencoder").last.arguments
    recipe, dataset, out = map(os.path.relpath, (TINY, arguments["dataset_path"], begun))
    text = make_page(RunFolder(begun))
    assert f"python -m scripts.train_cascade {recipe}/ {dataset} {out} --device cpu" in Page(text).text
    assert re.search(rf"(?<![\w.]){tmp_path}", text) is None  # which would tell others about the machine
    (begun / "recipe").mkdir()  # or by auto, within its hours
    planned = {"hours": 1.5, "dataset": "my pictures", "reasons": [], "notes": [], "outlook": []}
    (begun / "recipe/auto.json").write_text(json.dumps(planned))
    command = f"python -m scripts.train_cascade auto 'my pictures' {out} --hours 1.5 --device cpu"
    assert command in Page(make_page(RunFolder(begun))).text
    shutil.rmtree(begun / "autoencoder/images")
    (begun / "autoencoder/metrics.jsonl").unlink()
    assert "Autoencoder" in Page(make_page(RunFolder(begun))).text


def test_pictures_shrink_until_the_page_fits(run, monkeypatch):
    monkeypatch.setattr(page_module, "QUALITIES", QUALITIES[-2:])  # the others are larger
    text = make_page(RunFolder(run))
    smaller = make_page(RunFolder(run), len(text.encode()))
    assert len(smaller) < len(text)
    assert smaller.count("<img ") == text.count("<img ") > 20
    monkeypatch.setattr(page_module, "QUALITIES", QUALITIES[-1:])
    with pytest.raises(UserError):
        make_page(RunFolder(run), 1_000_000)


def damage(path, content):
    return lambda run: (run / path).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (damage("codebook_0/manifest.json", b"{..."), "codebook_0/manifest.json"),
        (lambda run: change_attempt(RunFolder(run).autoencoder, begin="2026-99-25"), "'begin'"),
        (damage("generate.json", b"{"), "generate.json"),
        (damage("evaluation/pairs.png", b"no picture"), "pairs.png"),
        (damage("generated/images/image_00001.png", b"\x89PNG\r\n"), "image_00001.png"),
        (damage("generated/images/filling_in.webp", b"RIFF"), "filling_in.webp"),
        (damage("codebook_1/models_checkpoint/pruned_codebook.pt", b"PK"), "pruned_codebook.pt"),
    ],
)
def test_what_is_damaged_is_named(change, named, copy, capsys):
    change(copy)
    assert named in expect_error(capsys, report.main, [copy])
    assert not (copy / "report.html").exists()


def test_an_evaluation_of_another_version_counts_as_none(copy):
    assert read_run(RunFolder(copy)).evaluation is not None
    with edited(copy / "evaluation/evaluation.json") as content:
        del content["distances"][1]["kernel_low"]
    assert read_run(RunFolder(copy)).evaluation is None
