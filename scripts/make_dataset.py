"""Turn a folder of images into a data set: RGB PNGs of one size and a dataset.json that names them.

Reads AVIF, BMP, GIF (first frame), HEIC, JPEG, PNG, TIFF and WebP at any depth; the names of all folders that an image
lies in, below the given one, become its labels. Images with the same pixels are written once, with the labels of all of
them; unreadable ones are skipped and listed in OUT_DIR/skipped.txt, files of other endings in OUT_DIR/ignored.txt. The
same command again goes on where it died, or brings the data set up to date. HEIC, --group-by near, and a warning about
near-duplicates, need `pip install -r requirements-extra.txt`.

    python -m scripts.make_dataset photos --out-dir data/photos --image-size 128
"""

import utils.runtime.threads  # noqa: F401

import argparse
import hashlib
import io
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageColor

from scripts import groups, near_duplicates
from utils.core.files import UserError, remove_unnamed, write_file
from utils.core.lock import lock
from utils.core.options import MOST_WORKERS, option, parse_options
from utils.core.provenance import check, same_key
from utils.core.size import Size
from utils.data.checksums import checksum, is_whole
from utils.data.dataset_json import write_dataset
from utils.data.images import CHECKER, TRANSPARENT, WHITE, Background, fit_to, image_files, open_rgb
from utils.data.journal import Journal
from utils.data.records import read_dataset
from utils.data.shards import DESCRIBED, HEIF_SUFFIXES, SUFFIXES, write_shard
from utils.runs.folders import OutputFolder
from utils.runtime.cli import run
from utils.runtime.parent import watch_parent
from utils.runtime.progress import progress

MOST_ENDINGS = 8  # that are printed of files that are ignored
Item = TypeVar("Item")
SIZE_MEANING = "width and height of the PNGs: 96x64, or 64 for a square"


def colour(text: str) -> Background:
    """Argparse type: what PIL.ImageColor understands (white, #ffffff, rgb(255,255,255), …), R,G,B, or the checker."""
    if text == CHECKER:
        return CHECKER
    try:
        value = ImageColor.getrgb(f"rgb({text})" if text[:1].isdigit() else text)
    except ValueError:
        value = ()
    if len(value) != 3 or max(value) > 255:
        raise argparse.ArgumentTypeError(f"{text} is not an opaque colour: give a name, #rrggbb, R,G,B or {CHECKER}")
    return value


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    out_dir: Path = option("folder to write to")
    num_workers: int | None = option("worker processes; 0: none", None, unset="all cores", low=0, high=MOST_WORKERS)
    overwrite: bool = option("replace a data set that --out-dir holds of other settings", False)


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    folder: Path = option("folder of images, at any depth", positional=True)
    image_size: Size = option(SIZE_MEANING, Size(128, 128), convert=Size.parse)
    fit: str = option(
        "for images of another shape: `crop` their centre, `pad` them with the background, or `stretch` them",
        "crop",
        choices=("crop", "pad", "stretch"),
    )
    background: Background = option(
        "colour under transparency and padding, or `checker` to see them", WHITE, convert=colour, shown="white"
    )
    shards: int | None = option(
        "write tar files of as many images, in the layout of WebDataset, in the place of a file for each image",
        None,
        unset="a file for each image",
        low=1,
    )
    group_by: str | None = option(
        "what keeps images on one side of the split: `folder` (their own), `near` (near-duplicates of one another), or "
        "a regular expression that is searched in their paths; its capture groups, or else its match, name the group",
        None,
        unset="no groups",
    )


def read_fitted(options: Options, path: Path) -> Image.Image:
    """The image file as the options want it; `info[TRANSPARENT]` is that of `open_rgb`."""
    image = open_rgb(path, options.background)
    fitted = fit_to(image, options.image_size, options.fit, options.background)
    fitted.info[TRANSPARENT] = image.info[TRANSPARENT]
    return fitted


def write_images(
    items: Sequence[Item],
    read: Callable[[Item], Image.Image],
    describe: Callable[[Item], dict],
    out_dir: Path,
    num_workers: int | None,
    settings: dict,
    limit: int | None = None,
    hash_image: Callable[[Image.Image], str] | None = None,
    review: Callable[[list[dict], list[dict]], None] = lambda records, entries: None,
    per_shard: int | None = None,
) -> str:
    """Write the RGB image `read(item)` of each item to `out_dir`, then the `dataset.json`; return a summary.

    `read` runs in `num_workers` processes (None: one for each core) and raises `UserError` for an item to skip. Records
    hold what `describe` says, and also the `labels` of duplicates that are dropped; they keep the order of `items` and
    stop at the first `limit` distinct images. A PNG is named after its pixels, so the number of processes does not
    matter, an image keeps its name (and without a group its side of the split) when others are added, and the data set
    of an earlier run stays whole until the new one replaces it. What a run with the same `settings` has written before
    it died is not read again. Before the index is written, `review` is called with the records, to which it may add and
    which it may drop, and with their entries in the journal. With `per_shard` so many images each then move to tar
    files.
    """
    folder, total = OutputFolder(out_dir), min(limit or len(items), len(items))
    records, entries, skipped, num_duplicates = {}, [], [], 0
    journal = Journal(folder.unfinished, settings | ({"is_hashed": True} if hash_image else {}))
    convert = partial(_convert, read, hash_image, out_dir)
    with closing(_written(items, convert, journal, num_workers)) as parts, progress(total=total, unit="image") as bar:
        for item, entry, error in parts:
            if error:
                skipped.append(error)
                bar.write(f"skipped {error}", file=sys.stderr)
                continue
            [(name, _, expected)] = entry["places"]
            record = {"image_fpath": name, "checksum": expected, **describe(item)}
            if (known := records.setdefault(name, record)) is not record:
                num_duplicates += 1
                known["labels"] += [label for label in record["labels"] if label not in known["labels"]]
                continue
            entries.append(entry)
            bar.update()
            if len(records) == limit:
                break
    report = write_list(out_dir / "skipped.txt", skipped)
    if not records:
        folder.unfinished.unlink()
        raise UserError(f"none of the {len(items)} images can be read; see {report}")
    written = list(records.values())
    review(written, entries)
    write_index(folder, written if per_shard is None else write_shards(written, out_dir, per_shard), settings)
    counts = f"{len(written)} images written, {num_duplicates} duplicates dropped"
    return f"{counts}, {len(skipped)} unreadable files skipped"


def _written(
    items: Sequence[Item], convert: Callable[[Item], tuple[dict, str]], journal: Journal, num_workers: int | None
) -> Iterator[tuple[Item, dict, str]]:
    """Each item, in order, with its entry or its error; what the journal does not have is made, and added to it."""
    keys = list(map(_key, items))
    done = {key: entry for key in keys if (entry := journal.find(key))}
    missing = [item for item, key in zip(items, keys, strict=True) if key not in done]
    with _mapped(convert, missing, num_workers) as results:
        for item, key in zip(items, keys, strict=True):
            entry, error = (done[key], "") if key in done else next(results)
            if entry and key not in done:
                journal.add({key: entry})
            yield item, entry, error


def write_index(folder: OutputFolder, records: list[dict], settings: dict) -> None:
    write_dataset(folder.dataset, records, settings)
    names = {record["image_fpath"] for record in records}
    remove_unnamed(folder.path, f"images/??/{'[0-9a-f]' * 24}.png", names)
    remove_unnamed(folder.path, f"shards/[0-9]*_{'[0-9a-f]' * 12}.tar", names)
    folder.unfinished.unlink()


def write_list(path: Path, lines: Sequence[str]) -> Path:
    """Write lines for a person to read, or remove those of an earlier run where there are none; return the path."""
    if lines:
        write_file(path, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    else:
        path.unlink(missing_ok=True)
    return path


def write_shards(records: list[dict], out_dir: Path, per_shard: int) -> list[dict]:
    """Copy images to tar files, each with a JSON of what is known of it; return the records of these copies."""
    copies = []
    for number, start in enumerate(progress(range(0, len(records), per_shard), unit="shard", desc="packing")):
        part, files = records[start : start + per_shard], {}
        for record in part:
            name = record["image_fpath"]
            files[name] = (out_dir / name).read_bytes()
            more = {key: record[key] for key in DESCRIBED if key in record}
            files[f"{name.removesuffix('.png')}.json"] = json.dumps(more).encode()
        path, entries = write_shard(out_dir / "shards", number, files)
        shard = {"image_fpath": f"shards/{path.name}"}
        copies += [record | shard | entries[record["image_fpath"]]._asdict() for record in part]
    return copies


def _key(item: object) -> str:
    """The name of an item in the journal; that of a file changes when the file does."""
    status = item.stat() if isinstance(item, Path) and item.exists() else None
    return f"{item} {status.st_size} {status.st_mtime_ns}" if status else str(item)


def _begin_worker() -> None:
    """A process that reads images leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_parent(getattr(signal, "SIGKILL", signal.SIGTERM))


def _convert(
    read: Callable[[Item], Image.Image], hash_image: Callable[[Image.Image], str] | None, out_dir: Path, item: Item
) -> tuple[dict, str]:
    """Write one image; return its entry in the journal and no error, or the error alone.

    The entry holds the path relative to `out_dir` with the checksum, whether the image was transparent in part, and the
    hash, if there is one to compute.
    """
    try:
        image = read(item)
    except UserError as error:
        return {}, str(error)
    digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=12).hexdigest()
    name, file = f"images/{digest[:2]}/{digest}.png", io.BytesIO()
    image.save(file, format="PNG")
    expected = checksum(file.getvalue())
    if not is_whole(out_dir / name, expected):  # one that is there keeps its time, by which later steps know it
        write_file(out_dir / name, file.getvalue(), durable=False)
    entry = {"places": [(name, None, expected)], TRANSPARENT: image.info.get(TRANSPARENT, False)}
    return entry | ({"hash": hash_image(image)} if hash_image else {}), ""


def is_made(path: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `path` is a data set of these settings; raises `UserError` if it is of others and not to be replaced."""
    before = read_dataset(path, ())[1] if path.exists() else None
    if before is None or (overwrite and not same_key(before, settings)):
        return False
    check(path, before, settings, "give another --out-dir, or --overwrite to replace it")
    return True


@contextmanager
def _mapped(function: Callable, items: Sequence[Item], num_workers: int | None) -> Iterator[Iterator]:
    """`map`, in order, in processes. At the end it finishes what has begun and drops the rest."""
    if num_workers == 0:
        yield map(function, items)
        return
    # Ctrl-C reaches every process of the terminal; only the parent acts on it, so no file is left half written.
    executor = ProcessPoolExecutor(num_workers, initializer=_begin_worker)
    try:
        # Small chunks, because after Ctrl-C the current one and the next one still run to their end.
        yield executor.map(function, items, chunksize=4)
    except BrokenProcessPool:
        raise UserError("a worker process was killed, perhaps for memory; lower --num-workers") from None
    finally:
        executor.shutdown(cancel_futures=True)


def count_ignored(others: Sequence[Path]) -> str:
    """How many files are not of an image's ending, and how many there are of each; how to read HEIC, if some are."""
    counts = Counter(path.suffix.lower() or "without an ending" for path in others)
    first = counts.most_common(MOST_ENDINGS)
    parts = [f"{ending} {number}" for ending, number in first]
    parts += [f"others {len(others) - sum(dict(first).values())}"] if len(counts) > MOST_ENDINGS else []
    advice = "; HEIC needs pillow-heif: run pip install -r requirements-extra.txt, then this command again"
    return f"{len(others)} files ignored: {', '.join(parts)}{advice if counts.keys() & {*HEIF_SUFFIXES} else ''}"


def review(options: Options, records: list[dict], entries: list[dict]) -> None:
    """Group the records; print what their number, their transparency and their near-duplicates do to a model."""
    hashes = [entry["hash"] for entry in entries if "hash" in entry]
    groups.review(options.group_by, options.out_dir, records, hashes)
    if number := sum(entry.get(TRANSPARENT, False) for entry in entries):
        under = {WHITE: "white", CHECKER: "a checker"}.get(options.background, f"the colour {options.background}")
        advice = f"; --background COLOUR or {CHECKER} changes that" if options.background == WHITE else ""
        pasted = f"{number} images are transparent in part; they are pasted onto {under}{advice}"
        print(f"{pasted}; transparency is not generated")
    groups.warn_of_few(len(records))


def main(argv: list[str] | None = None) -> None:
    make_dataset(parse_options(Options, __doc__, argv))


def make_dataset(options: Options) -> None:
    """Write a data set of the images in a folder; raises `UserError` if there are none, or another set is there."""
    if not options.folder.is_dir():
        reason = "is a file" if options.folder.exists() else "no such folder"
        raise UserError(f"{options.folder}: {reason}; give a folder of images")
    source, target = options.folder.resolve(), options.out_dir.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        paths = f"--out-dir {options.out_dir} and {options.folder}"
        raise UserError(f"{paths} lie inside one another; choose another --out-dir")
    files, others = image_files(options.folder)
    if not files:
        ignored = f"; {count_ignored(others)}" if others else ""
        raise UserError(f"{options.folder}: holds no images ({', '.join(SUFFIXES)}){ignored}")

    group = groups.by_path(options.group_by, options.folder, files)

    def describe(path: Path) -> dict:
        original = groups.inside(options.folder, path)
        record = {"labels": original.split("/")[:-1], "original_path": original}
        return record | ({"group": name} if (name := group(path)) else {})

    given = {name: getattr(options, name) for name in ("image_size", "fit", "background", "group_by", "shards")}
    given["image_size"] = options.image_size.plain
    settings = {"folder": str(source)} | {name: value for name, value in given.items() if value is not None}
    path = options.out_dir / "dataset.json"
    with lock(options.out_dir):
        is_made(path, settings, options.overwrite)
        ignored = write_list(options.out_dir / "ignored.txt", list(map(str, others)))
        if others:
            print(f"{count_ignored(others)}; all are listed in {ignored}")
        summary = write_images(
            files,
            partial(read_fitted, options),
            describe,
            options.out_dir,
            options.num_workers,
            settings,
            hash_image=near_duplicates.hash_image if near_duplicates.is_installed() else None,
            review=partial(review, options),
            per_shard=options.shards,
        )
    print(f"{path}: {summary}, {len(others)} files of other endings ignored")


if __name__ == "__main__":
    run(main)
