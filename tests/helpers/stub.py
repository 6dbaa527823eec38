"""Stands for the Python of the steps: it notes each command, and leaves the results of that step.

`tests/helpers/chain.py` calls it in its own process, or makes a program of this file.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

OWN = shutil.ignore_patterns("manifest.json", "*.log")
RESULTS = {
    "generate_fmap_dataset.py": [],
    "prune_codebook.py": ["models_checkpoint/pruned_codebook.pt"],
    "train_quantized_transformer.py": ["models_checkpoint/best.pt", "models_checkpoint/latest.pt"],
    "generate_images.py": ["tokens.npz", "images/recon_model_Cond.png"],
    "scripts.demo_data": ["dataset.json"],
    "scripts.train_cascade": ["generated/manifest.json"],
    "scripts.evaluate": ["evaluation/evaluation.json"],
    "scripts.report": ["report.html"],
}


def main(words, environment):
    """Do as the script of these words does; return its status."""
    launcher = []
    if words[:2] == ["-m", "torch.distributed.run"]:
        first = next(number for number, word in enumerate(words) if word.endswith(".py"))
        launcher, words = [*words[2:first], environment["OMP_NUM_THREADS"], "threads:"], words[first:]
    is_module = words[0] == "-m"
    script = words[1] if is_module else Path(words[0]).name
    if "-c" in words[:1] or script == "pip":
        return 0
    if "--out-dir" in words:
        out = Path(words[words.index("--out-dir") + 1])
    else:
        out = Path(words[4] if script == "scripts.train_cascade" else words[2])
    name = script if is_module else f"prune_{out.name}" if script == "prune_codebook.py" else out.name
    with Path(environment["CALLS"]).open("a") as file:
        print(*launcher, script, *words[1 + is_module :], file=file)
    results = RESULTS.get(script, ["models_checkpoint/latest.pt"])
    for result in results if name != environment.get("FORGETFUL") else []:
        (out / result).parent.mkdir(parents=True, exist_ok=True)
        (out / result).write_text("")
    if script == "generate_fmap_dataset.py":
        copied = {"dirs_exist_ok": True, "copy_function": shutil.copy, "ignore": OWN}  # with new times
        shutil.copytree(environment["MAPS"], out, **copied)
    if name == environment.get("SLOW"):
        return last_until_a_signal(Path(environment["STARTED"]), launcher)
    return 7 if name == environment.get("FAILING") else 0


def last_until_a_signal(started, launcher):
    """Receive signals until the last one came 0.3 s ago, or a file was written; note which, and each at once."""
    received = []

    def receive(number, _):
        received.append(number)
        with Path(f"{started}.signals").open("a") as file:
            file.write("x")

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, receive)
    print("terminal:", sys.stderr.isatty(), file=sys.stderr)
    started.write_text(f"{os.getpid()}\n")
    before, end = 0, time.monotonic() + 60  # where a test fails, this process ends too
    while time.monotonic() < end:
        time.sleep(0.01)
        events = len(received) + Path(f"{started}.end").exists()
        if events > before:
            before, end = events, time.monotonic() + 0.3
    started.write_text(" ".join(map(str, received)))
    status = 7 if received else 0
    return min(status, 1) if launcher else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
