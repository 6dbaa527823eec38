"""What the scripts share at the command line: argument groups, device, logging, and one place for errors."""

import argparse
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from utils.files import UserError

log = logging.getLogger("cascade")
VAL_FRACTION = 0.05  # share of images held out, unless a person says otherwise


def run(main: Callable[[], None]) -> None:
    """Call `main`; an expected error becomes one line on stderr and exit status 2, Ctrl-C and SIGTERM 130 and 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep_memory()
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def positive_int(text: str) -> int:
    """Argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def natural_int(text: str) -> int:
    """Argparse type: a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return value


def natural_float(text: str) -> float:
    """Argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def positive_float(text: str) -> float:
    """Argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """Argparse type: a number from 0 up to, but not including, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def recipe_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, with the flags that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (cuda, mps or cpu), or a torch device [auto]")
    parser.add_argument("--out-dir", type=Path, required=True, help="folder to write to")
    return parser


def add_training_flags(parser: argparse.ArgumentParser, lr_step: int) -> None:
    """The flags of all three trainers."""
    group = parser.add_argument_group("training")
    group.add_argument("--dataset-path", type=Path, required=True, help="dataset.json to train on")
    group.add_argument("-c", "--config-path", type=Path, required=True, help="JSON config of the model")
    group.add_argument("--batch-size", type=positive_int, default=8, help="images at once [8]")
    group.add_argument("--checkpoint-step", type=positive_int, default=1000, help="steps between checkpoints [1000]")
    group.add_argument("--keep-checkpoint", type=positive_int, help="newest checkpoints to keep, beside best.pt [all]")
    group.add_argument("--lr-step", type=positive_int, default=lr_step, help=f"steps to halve the rate [{lr_step}]")
    group.add_argument("--max-epoch", type=positive_int, default=1000, help="stop after so many epochs [1000]")
    group.add_argument("--max-step", type=positive_int, help="stop after so many steps [no limit]")
    group.add_argument("--resume", action="store_true", help="go on, exactly, with what --out-dir holds")
    group.add_argument("--seed", type=int, default=0, help="seed of every random choice [0]")
    group.add_argument("--num-workers", type=natural_int, help="processes that load data [0 on a CPU, else up to 4]")
    group.add_argument("--log-step", type=positive_int, default=50, help="steps between log lines [50]")
    group.add_argument("--tensorboard", action="store_true", help="write numbers and pictures for TensorBoard as well")
    group.add_argument("--val-fraction", type=fraction, default=VAL_FRACTION, help="share of images held out [0.05]")


def add_gradient_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the two trainers that follow a gradient."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--model-path", type=Path, help="start from the weights of this checkpoint")
    group.add_argument("--load-optim", action="store_true", help="and from its optimizer state")
    add_speed_flags(group)
    group.add_argument("--warmup-step", type=natural_int, default=100, help="steps of linear warm-up [100]")
    group.add_argument("--lr-schedule", choices=["step", "cosine"], default="step", help="of the learning rate [step]")
    group.add_argument(
        "--grad-accum-step", type=positive_int, default=1, help="batches whose gradients a step adds up [1]"
    )
    group.add_argument("--grad-clip", type=positive_float, default=1.0, help="largest norm of the gradient [1.0]")
    group.add_argument(
        "--ema-decay", type=fraction, default=0.999, help="decay of the averaged weights, 0: off [0.999]"
    )


def add_speed_flags(parser: argparse._ActionsContainer) -> None:
    """The flags of what runs a large model."""
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="[auto: bf16 if native]")
    parser.add_argument("--compile", action="store_true", help="compile the model with torch.compile")


def check_start(args: argparse.Namespace, weights: str) -> None:
    """Refuse `--resume` together with `--<weights>`, and `--load-optim` without it: each asks for another start."""
    given = getattr(args, weights.replace("-", "_"))
    if args.resume and given is not None:
        raise UserError(f"--resume goes on with what --out-dir holds: leave out --{weights} {given}, or --resume")
    if getattr(args, "load_optim", False) and given is None:
        raise UserError(f"--load-optim needs --{weights}, the checkpoint that holds the optimizer state")


def choose_device(name: str) -> torch.device:
    """`auto` is the first there is of cuda, mps and cpu; any other name is a torch device that must be there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): try --device auto") from None
    return device


def keep_memory() -> None:
    """Keep freed memory for the next tensors; at each free glibc would hand it back and the kernel clear it anew."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(m_mmap_threshold, 2**25)  # the most that it takes
        libc.mallopt(m_trim_threshold, 2**30)


def choose_workers(asked: int | None, device: torch.device) -> int:
    """Loading processes: as asked, else none beside a model on the CPU, whose cores they would take."""
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(4, os.cpu_count() or 1)


def start_log(args: argparse.Namespace, name: str) -> None:
    """Log to stdout and to `<out_dir>/<name>.log`; the first line is the arguments as JSON."""
    args.out_dir.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(sys.stdout), logging.FileHandler(args.out_dir / f"{name}.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    log.info("arguments %s", json.dumps(vars(args), default=str))
