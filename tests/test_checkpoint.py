"""The checkpoint format: what is saved is loaded, and whatever is wrong with a file is named in one line."""

import io
import json
import math
import random
import re
import struct
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.stage import Stage
from tests.helpers.files import Touch
from tests.helpers.runs import PRUNED, WEIGHTS
from utils.core.files import UserError
from utils.runs.checkpoint import (
    build_model,
    fingerprint,
    link_checkpoint,
    load_checkpoint,
    load_weights,
    measured,
    save_checkpoint,
)


@dataclass(frozen=True)
class Config:
    width: int = 3
    name: str = "a"


def linear(seed=0, width=3):
    torch.manual_seed(seed)
    return nn.Linear(width, 2)


def save(path, seed=0, trained_from=None, **rest):
    save_checkpoint(path, "thing", Config(), linear(seed).state_dict(), trained_from or {}, **rest)
    return path


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def refuses(path, reason="", **how):
    """`load_checkpoint` names the file in one line."""
    with pytest.raises(UserError, match=re.escape(f"{path}: {reason}")) as refused:
        load_checkpoint(path, "thing", **how)
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_saved_is_loaded(tmp_path):
    optimizer = torch.optim.AdamW(linear().parameters())
    path = save(tmp_path / "deep" / "a.pt", step=7, optimizer=optimizer.state_dict(), trained_from={"b": None})
    content = load_checkpoint(path, "thing")
    assert set(content) == {
        "kind", "format_version", "config", "fingerprint", "model", "step", "optimizer", "trained_from",
    }  # fmt: skip
    assert Config(**content["config"]) == Config()
    assert content["fingerprint"] == fingerprint(linear().state_dict())
    assert (content["step"], content["trained_from"]) == (7, {"b": None})
    assert content["optimizer"] == optimizer.state_dict()
    model = linear(seed=1)
    load_weights(model, content, path)
    assert all(torch.equal(value, linear().state_dict()[name]) for name, value in model.state_dict().items())
    assert names(path.parent) == ["a.pt"]


def test_averaged_weights_are_loaded_unless_told_not_to_and_give_the_fingerprint(tmp_path):
    path = save(tmp_path / "a.pt", seed=0, ema=linear(seed=1).state_dict())
    content = load_checkpoint(path, "thing")
    assert content["fingerprint"] == fingerprint(linear(seed=1).state_dict())
    for averaged, seed in ((True, 1), (False, 0)):
        model = linear(seed=2)
        load_weights(model, content, path, averaged=averaged)
        assert torch.equal(model.weight, linear(seed).weight)


@pytest.mark.parametrize("kind", ["zip", "pickle", "pickle before a zip"])
def test_code_is_refused_and_not_run(kind, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    content = {"kind": "thing", "format_version": 1, "config": {}, "model": Touch(tmp_path / "touched")}
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with monkeypatch.context() as patched:
        if kind == "pickle before a zip":
            path.write_bytes(path.read_bytes() + save(tmp_path / "zipped.pt").read_bytes())
            assert zipfile.is_zipfile(path)
        if kind != "zip":
            patched.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
        refuses(path)
    assert not (tmp_path / "touched").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "touched").exists()  # so the file would have done it


def whole_file():
    buffer = io.BytesIO()
    content = {"kind": "thing", "format_version": 3, "config": asdict(Config()), "model": linear().state_dict()}
    torch.save(content | {"fingerprint": fingerprint(content["model"]), "trained_from": {}}, buffer)
    return buffer.getvalue()


WHOLE = whole_file()
BINARY = st.binary(max_size=60)


@given(content=BINARY | BINARY.map(b"\x80\x02".__add__) | st.integers(0, len(WHOLE) - 1).map(lambda end: WHOLE[:end]))
def test_garbage_and_a_file_cut_short_anywhere_are_named(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("garbage") / "a.pt"
    path.write_bytes(content)
    refuses(path)


def test_any_wrong_bit_is_named_or_changes_nothing(tmp_path):
    """In a file that holds all kinds of values; half of it is padding, names that nobody reads, and such."""
    model, seed = linear(), random.randrange(2**32)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    numbers = {"step": 7, "best": math.inf, "none": math.nan, "zero": -0.0, "settings": {"--lr": 1e-3, "on": True}}
    path = save(tmp_path / "a.pt", ema=linear(seed=1).state_dict(), optimizer=optimizer.state_dict(), **numbers)
    saved, whole, draw = load_checkpoint(path, "thing"), path.read_bytes(), random.Random(seed)
    changed, loaded = tmp_path / "b.pt", 0
    weights = whole.index(linear().weight.detach().numpy().tobytes())
    for place in [weights + 2, *draw.sample(range(len(whole)), 500)]:
        bit = draw.randrange(8)
        changed.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            content = load_checkpoint(changed, "thing", memory_map=place % 2 == 1)
        except UserError as error:
            assert re.fullmatch(re.escape(f"{changed}: ") + ".+", str(error)), f"seed {seed}, bit {bit} of {place}"
        else:
            assert alike(content, saved), f"seed {seed}, bit {bit} of {place}"
            loaded += 1
    assert loaded < 350


def alike(a, b):
    """Whether two values are equal to the last bit, and of the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        kinds = [(tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad) for tensor in (a, b)]
        octets = (tensor.flatten().view(torch.uint8) for tensor in (a, b))
        return kinds[0] == kinds[1] and torch.equal(*octets)
    if isinstance(a, dict):
        inside = alike(getattr(a, "__dict__", None), getattr(b, "__dict__", None))
        return inside and a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else a == b


def test_a_part_that_is_lost_or_marked_as_a_folder_is_named(tmp_path):
    """By wrong bits in the list of the parts, which no CRC-32 covers: torch would take a tensor for zeros."""
    path, lost = save(tmp_path / "a.pt"), tmp_path / "b.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert len(parts) == 8
    needed = [name for name in parts if "/." not in name]
    assert len(needed) == 5  # data.pkl, byteorder, version, and two tensors
    for name in needed:
        with zipfile.ZipFile(lost, "w") as archive:
            for other in parts.keys() - {name}:
                archive.writestr(other, parts[other])
        refuses(lost, "not a readable checkpoint (")
    whole = path.read_bytes()
    for entry in re.finditer(b"PK\x01\x02", whole):
        place = entry.start() + 38
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refuses(path, "not a readable checkpoint (")


OTHERS = [{"weight": torch.zeros(2)}, [1, 2], torch.zeros(3), 5, {"kind": "thing"}, {}]


def test_files_that_are_no_checkpoints_of_this_kind_are_named(tmp_path):
    for path in (tmp_path / "missing.pt", tmp_path):
        refuses(path, "no such checkpoint")
    path = tmp_path / "a.pt"
    for content in OTHERS:
        torch.save(content, path)
        refuses(path, "not a checkpoint of this project")
    for version in (0, 2, None, "3"):
        content = {"kind": "thing", "model": {}, "config": {}}
        torch.save(content if version is None else content | {"format_version": version}, path)
        refuses(path, f"format version {version}, this code reads 3; train again")
    with pytest.raises(UserError, match=r"a\.pt: holds a thing, expected a codebook"):
        load_checkpoint(save(path), "codebook")


def loaders(run):
    """For each kind of checkpoint of a run, its file and how a later stage reads it."""
    condition, coarse = (Codebook.load(run / name / PRUNED) for name in ("codebook_cond", "codebook_0"))
    read_stage = partial(Stage.load, coarse=condition, fine=coarse)
    ways = {"autoencoder": Autoencoder.load, "codebook_0": Codebook.load, "transformer_0": read_stage}
    return {name: (run / name / WEIGHTS, load) for name, load in ways.items()}


@pytest.mark.parametrize(("name", "part"), [("autoencoder", "fingerprint")] + [
    (name, "trained_from") for name in ("codebook_0", "transformer_0")
])  # fmt: skip
def test_every_kind_says_what_does_not_fit_or_is_missing(name, part, tiny_run, tmp_path):
    path, load = loaders(tiny_run)[name]
    good = torch.load(path, weights_only=True)
    weights = good.get("ema") or good["model"]
    assert all(torch.equal(value, weights[key]) for key, value in load(path).state_dict().items())
    first = next(iter(good["model"]))
    damages = [
        {"model": {}, "ema": None},
        {"model": {first: good["model"][first]}, "ema": None},
        {"model": {key: torch.zeros(1) for key in good["model"]}, "ema": None},
        {"config": good["config"] | {"unknown": 1}},
        {"config": {}},
    ]
    contents = [good | damage for damage in damages]
    contents += [{key: value for key, value in good.items() if key != lost} for lost in ("config", part)]
    damaged = tmp_path / "damaged.pt"
    for content in contents:
        torch.save(content, damaged)
        with pytest.raises(UserError, match=re.escape(f"{damaged}: ")):
            load(damaged)


FULL = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")  # of a full disk


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt(), SystemExit(143), FULL])
def test_a_failed_save_leaves_the_old_file_whole(failure, tmp_path, monkeypatch):
    path = save(tmp_path / "a.pt")
    before = path.read_bytes()

    def half(content, target):
        Path(target).write_bytes(WHOLE[:100])
        raise failure

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError if failure is FULL else type(failure)) as failed:
        save(path, seed=1)
    assert failure is not FULL or re.match(r"\S+/a\.pt: cannot be written .*; is the disk full\?", str(failed.value))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("has_links", [True, False])
def test_latest_is_the_newest_and_the_older_ones_stay(has_links, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("links are not supported here")

    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    for number in (1, 2, 3):
        newest = save(tmp_path / f"model_{number}.pt", seed=number)
        link_checkpoint(newest, "latest.pt")
        assert (tmp_path / "latest.pt").read_bytes() == newest.read_bytes()
    save(tmp_path / "latest.pt", seed=4)  # written alone, as by a stop
    for number in (1, 2, 3):
        content = load_checkpoint(tmp_path / f"model_{number}.pt", "thing")
        assert torch.equal(content["model"]["weight"], linear(number).weight)
    assert names(tmp_path) == ["latest.pt", "model_1.pt", "model_2.pt", "model_3.pt"]


def test_what_a_crash_left_while_linking_does_no_harm(tmp_path, monkeypatch):
    """The temporary name may be a link to an older checkpoint: a later process can have the same number."""
    old, new = save(tmp_path / "model_1.pt", seed=1), save(tmp_path / "model_2.pt", seed=2)
    before = old.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", crash)
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        link_checkpoint(old, "latest.pt")
    assert len(names(tmp_path)) == 3
    link_checkpoint(new, "latest.pt")
    assert old.read_bytes() == before
    assert (tmp_path / "latest.pt").read_bytes() == new.read_bytes()


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])


@given(shape=st.lists(st.integers(1, 4), max_size=3), dtype=DTYPES, seed=st.integers(0, 2**31), data=st.data())
def test_any_bit_changes_the_fingerprint(shape, dtype, seed, data):
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before = fingerprint({"a": values, "b": torch.ones(2)})
    changed = values.clone()
    octets = changed.view(torch.uint8) if changed.ndim else changed[None].view(torch.uint8)
    place = data.draw(st.integers(0, octets.numel() - 1))
    octets.view(-1)[place] ^= 1 if dtype == torch.bool else 1 << data.draw(st.integers(0, 7))
    assert fingerprint({"a": changed, "b": torch.ones(2)}) != before
    assert fingerprint({"b": torch.ones(2), "a": values.clone()}) == before


def test_what_was_measured_is_known_by_the_weights_and_may_be_lost_or_damaged(tmp_path):
    paths = [save(tmp_path / f"model_{seed}.pt", seed) for seed in (1, 2)]
    prints = [load_checkpoint(path, "thing")["fingerprint"] for path in paths]
    assert measured(paths[0], prints[0]) == {}
    (tmp_path / "measured.json").write_text(json.dumps({prints[0]: {"val_loss": 1.5}}))
    link_checkpoint(paths[0], "best.pt")
    assert [measured(tmp_path / "best.pt", each) for each in prints] == [{"val_loss": 1.5}, {}]
    for text in ("", "[]", f'{{"{prints[0]}": null}}', f'{{"{prints[0]}": 3}}', "no JSON"):
        (tmp_path / "measured.json").write_text(text)
        assert measured(paths[0], prints[0]) == {}


def test_a_config_that_asks_for_more_than_the_file_holds_needs_no_memory(tmp_path):
    devices = []

    def build():
        devices.append(torch.get_default_device().type)
        return nn.Linear(2048, 2048)

    small = {"model": nn.Linear(3, 4).state_dict()}
    with pytest.raises(UserError, match=r"x.pt: its weights do not fit .*weight is \(4, 3\), not \(2048, 2048\)"):
        build_model(build, small, tmp_path / "x.pt")
    assert devices == ["meta"]
