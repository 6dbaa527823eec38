"""Serve a page to play with a model: its condition map to click on, samples as they are written, a picture to go on.

    python -m scripts.playground out/faces

MODEL is the folder of a run, or of an exported model. The page is served on this machine alone unless --host or --share
says otherwise; its pictures lie in a temporary folder and go when the page is closed. Stop it with Ctrl-C.
"""

import utils.runtime.threads  # noqa: F401

import time
from dataclasses import dataclass
from pathlib import Path

from models.cascade import Cascade
from playground.page_request import BATCH, Model
from utils.core.options import PRECISIONS, option, parse_options
from utils.runtime import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    model: Path = option("folder of a run, or of an exported model", positional=True)
    port: int = option("port to listen at", 7860, low=1, high=65535)
    host: str = option("address to listen at; 0.0.0.0 lets the whole network in", "127.0.0.1")
    share: bool = option(
        "also make a public link, through a server of Gradio's: whoever has it can use the model", False
    )
    device: str = option("auto (cuda, mps or cpu), or a torch device", "auto")
    precision: str = option("precision of matrix products; auto: bf16 where it is native", "auto", choices=PRECISIONS)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Options, __doc__, argv)
    cli.need("requirements-extra.txt", "gradio")
    from playground.server import check_port, serve

    check_port(options.host, options.port)
    cascade = Cascade.load(options.model, device=options.device, precision=options.precision, batch_size=BATCH)
    model = Model(cascade=cascade, path=options.model, device=options.device, precision=options.precision)
    try:
        with serve(model, options.host, options.port, share=options.share) as (address, public, _):
            also = f", and for everybody at {public}" if public else ""
            print(f"{options.model} is at {address}{also}; stop with Ctrl-C", flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:  # how a server is stopped, so no error
        print()


if __name__ == "__main__":
    cli.run(main)
