"""The chain of steps: stages of a recipe, what is skipped and what runs again, and how a signal ends it.

A stub stands for Python: it notes each command, and leaves the results of that step.
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUB = (
    f"#!{sys.executable} -ISs"
    + r"""
import os, signal, sys, time, zlib
from pathlib import Path

words = sys.argv[1:]
launcher = []
if words[:2] == ["-m", "torch.distributed.run"]:
    first = next(number for number, word in enumerate(words) if word.endswith(".py"))
    launcher, words = [*words[2:first], os.environ["OMP_NUM_THREADS"], "threads:"], words[first:]
if words[0] == "-c":
    sys.exit()
if words[:2] == ["-m", "utils.index"]:
    dataset = Path(words[2])
    lost = [name for name in dataset.read_text().split() if not (dataset.parent / name).is_file()]
    if lost:
        print(f"error: {dataset.parent / lost[0]}: no such file", file=sys.stderr)
        sys.exit(2)
    print(f"{zlib.crc32(dataset.read_bytes()):x}")
    sys.exit()

is_module = words[0] == "-m"
script = words[1] if is_module else Path(words[0]).name
if script == "pip":
    sys.exit()
out = Path(words[words.index("--out-dir") + 1] if "--out-dir" in words else words[2])
name = script if is_module else f"prune_{out.name}" if script == "prune_codebook.py" else out.name
with open(os.environ["CALLS"], "a") as file:
    print(*launcher, script, *words[1 + is_module :], file=file)

results = {
    "generate_fmap_dataset.py": ["dataset.json", "a.npy"],
    "prune_codebook.py": ["models_checkpoint/pruned_codebook.pt"],
    "train_quantized_transformer.py": ["models_checkpoint/best.pt", "models_checkpoint/latest.pt"],
    "generate_images.py": ["tokens.npz", "images/recon_model_Cond.png"],
    "scripts.demo_data": ["dataset.json"],
    "scripts.evaluate": ["evaluation/evaluation.json"],
    "scripts.report": ["report.html"],
}.get(script, ["models_checkpoint/latest.pt"])
for result in results if name != os.environ.get("FORGETFUL") else []:
    (out / result).parent.mkdir(parents=True, exist_ok=True)
    (out / result).write_text("a.npy" if script == "generate_fmap_dataset.py" and result == "dataset.json" else "")

if name == os.environ.get("SLOW"):
    received = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: received.append(number))
    print("terminal:", sys.stderr.isatty(), file=sys.stderr)
    Path(os.environ["STARTED"]).write_text(f"{os.getpid()}\n")
    until = time.monotonic() + 60  # where a test fails, this process ends too
    is_ending = False
    while time.monotonic() < until:
        time.sleep(0.01)
        if not is_ending and (received or Path(os.environ["STARTED"] + ".end").exists()):
            is_ending, until = True, time.monotonic() + 0.3  # time for a second signal
    Path(os.environ["STARTED"]).write_text(" ".join(map(str, received)))
    status = 7 if received else 0
    sys.exit(min(status, 1) if launcher else status)
"""
)


class Chain:
    """A copy of the scripts and of a recipe with so many stages, a data set, and the stub."""

    def __init__(self, folder, number=1, is_complete=True):
        self.folder, self.out, self.calls = folder, folder / "out", folder / "calls"
        self.started, self.dataset = folder / "started", folder / "data/dataset.json"
        for name in ("scripts", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        self.recipe = shutil.copytree(folder / "configs/tiny-32", folder / "configs/mine")
        for path in self.recipe.glob("*_[0-9].json"):
            path.unlink()
        for level in range(number):
            for kind in ("codebook", "transformer"):
                source = folder / f"configs/tiny-32/{kind}_{min(level, 2)}.json"
                shutil.copy(source, self.recipe / f"{kind}_{level}.json")
        (self.recipe / "generate.json").write_text(json.dumps({str(level): {} for level in range(number)}))
        if number == 4 and is_complete:
            with (self.recipe / "recipe.sh").open("a") as file:
                file.write('TRANSFORMER_3="--max-step 7"\n')
        (folder / "python").write_text(STUB)
        (folder / "python").chmod(0o755)
        self.dataset.parent.mkdir()
        self.dataset.write_text("a.png")
        (self.dataset.parent / "a.png").touch()
        paths = {"PYTHON": folder / "python", "CALLS": self.calls, "STARTED": self.started}
        self.environment = os.environ | {key: str(path) for key, path in paths.items()}
        self.environment.pop("OMP_NUM_THREADS", None)  # which the chain chooses
        self.command = ["bash", str(folder / "scripts/train_cascade.sh"), "mine", str(self.dataset), str(self.out)]

    def run(self, *arguments, **environment):
        """Run the chain to its end; return status, output, errors and the commands of the stub."""
        self.calls.unlink(missing_ok=True)
        found = subprocess.run(
            [*self.command, *arguments], env=self.environment | environment, capture_output=True, text=True
        )
        return found.returncode, found.stdout, found.stderr, self.commands

    @property
    def commands(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def ended(self):
        """Run the chain, which must succeed; return its output and the scripts that it ran."""
        status, output, errors, commands = self.run()
        assert status == 0, errors
        return output, [command.split()[0] for command in commands]

    def start(self, slow, *more, before=(), **options):
        """Start the chain, as the leader of a session, and wait for its step `slow`, which lasts until a signal."""

        def preexec():
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # in the background some are ignored
                signal.signal(number, signal.SIG_DFL)

        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        command, environment = [*before, *self.command, *more], self.environment | {"SLOW": slow}
        process = subprocess.Popen(command, env=environment, preexec_fn=preexec, **pipes | options)
        while process.poll() is None and not self.child:
            time.sleep(0.01)
        return process

    @property
    def child(self):
        """The number of the process of the slow step."""
        text = self.started.read_text() if self.started.exists() else ""
        return int(text) if text.endswith("\n") else None

    @property
    def received(self):
        """The signals that the slow step was sent; it must have ended."""
        text = self.started.read_text()
        assert not text.endswith("\n")
        return [int(word) for word in text.split()]


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


def flag(command, name):
    words = command.split()
    return words[words.index(name) + 1]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_recipe_of_any_number_of_stages_is_chained(number, tmp_path):
    chain = Chain(tmp_path, number)
    status, _, errors, commands = chain.run()
    assert status == 0, errors
    out, names = tmp_path / "out", ["codebook_cond", *(f"codebook_{level}" for level in range(number))]
    folders = [Path(flag(command, "--out-dir")).relative_to(out).as_posix() for command in commands]
    trained = [f"transformer_{level}" for level in range(number)]
    books = [name for name in names for _ in ("trained", "pruned")]
    assert folders == ["autoencoder", "feature_maps", *books, "decoder", *trained, "generated"]
    for level, command in enumerate(commands[-1 - number : -1]):
        assert ("--train-base-model" in command) == (level == 0)
        for name, book in (("--lr-codebook-path", names[level]), ("--hr-codebook-path", names[level + 1])):
            assert flag(command, name) == f"{out}/{book}/models_checkpoint/pruned_codebook.pt"
        if level:
            assert flag(command, "--previous-path") == f"{out}/transformer_{level - 1}/models_checkpoint/best.pt"
    assert number < 4 or flag(commands[-2], "--max-step") == "7"
    assert len(json.loads((out / "generate.json").read_text())) == number


@pytest.mark.parametrize(("number", "named"), [(0, "has no transformer_0.json"), (4, "does not set TRANSFORMER_3")])
def test_an_incomplete_recipe_is_refused_in_one_line(number, named, tmp_path):
    status, _, errors, commands = Chain(tmp_path, number, is_complete=False).run()
    assert status == 2
    assert named in errors.splitlines()[-1]
    assert commands == []


def test_full_128_runs_as_before_and_names_the_recipe_to_use(chain):
    shutil.rmtree(chain.folder / "configs/full-128")
    chain.recipe.rename(chain.folder / "configs/full-128")
    chain.command[2] = "full-128"
    status, _, errors, commands = chain.run()
    assert (status, len(commands)) == (0, 9)
    assert errors.splitlines()[0].startswith("full-128 keeps the sizes of an old example")
    assert "gpu-128" in errors.splitlines()[0]


def test_help_is_shown(chain):
    found = subprocess.run([*chain.command[:2], "--help"], capture_output=True, text=True)
    assert found.returncode == 0
    assert {"--overwrite", "--verify"} <= set(found.stdout.split())


def test_a_dry_run_is_left_to_its_script(chain):
    words = [*chain.command[:2], "--dry-run", *chain.command[2:4], "--device", "cpu"]
    found = subprocess.run(words, env=chain.environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert chain.commands == [f"scripts.dry_run {chain.recipe} {chain.dataset} --device cpu"]
    assert not chain.out.exists()


def test_a_dry_run_of_nothing_shows_the_usage(chain):
    found = subprocess.run([*chain.command[:2], "--dry-run", "mine"], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("usage:")


def test_flags_reach_every_step_and_change_no_key(chain):
    flags = ["--overwrite", "--verify"]
    status, _, errors, commands = chain.run(*flags)
    assert status == 0, errors
    assert all(command.split()[-2:] == flags for command in commands)
    assert chain.ended()[1] == []


@pytest.mark.parametrize(
    ("flags", "launcher"),
    [
        (["--nproc", "2"], ["--nproc-per-node", "2", "--standalone"]),
        (
            ["--nproc", "4", "--nnodes", "3", "--rdzv-endpoint", "first:29400"],
            [
                "--nproc-per-node",
                "4",
                "--nnodes",
                "3",
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                "first:29400",
                "--rdzv-id",
            ],
        ),
    ],
)
def test_every_step_runs_in_several_processes_and_nothing_runs_again_with_another_number(flags, launcher, chain):
    status, _, errors, commands = chain.run(*flags, "--device", "cpu")
    assert status == 0, errors
    threads = max(1, os.cpu_count() // int(flags[1]))
    for command in commands:
        words = command.split()
        assert words[: len(launcher)] == launcher
        assert words[words.index("threads:") - 1] == str(threads)
        assert words[-2:] == ["--device", "cpu"]
    assert [command.split("threads: ")[1].split()[0] for command in commands][-1] == "generate_images.py"
    assert chain.ended()[1] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nproc", "none"], "error: --nproc none: give a number from 1 on"),
        (["--nproc"], "error: --nproc : give a number from 1 on"),
        (["--dry-run", "--nproc", "2"], "error: --dry-run: tries each step in one process; leave out --nproc"),
        (["--nnodes", "2"], "error: --nnodes 2: add --rdzv-endpoint HOST:PORT, an address of one of the machines"),
    ],
)
def test_processes_that_cannot_be_are_refused(flags, said, chain):
    status, _, errors, commands = chain.run(*flags)
    assert (status, errors.splitlines(), commands) == (2, [said], [])


LAST = ["generate_images.py"]
BOOKS = ["train_codebook.py", "prune_codebook.py"] * 2
AFTER_MAPS = [*BOOKS, "train_autoencoder.py", "train_quantized_transformer.py", *LAST]


@pytest.mark.parametrize(
    ("result", "step", "script"),
    [
        ("autoencoder/models_checkpoint/latest.pt", "autoencoder", "train_autoencoder.py"),
        ("feature_maps/dataset.json", "feature_maps", "generate_fmap_dataset.py"),
        ("codebook_cond/models_checkpoint/latest.pt", "codebook_cond", "train_codebook.py"),
        ("codebook_0/models_checkpoint/pruned_codebook.pt", "prune_codebook_0", "prune_codebook.py"),
        ("transformer_0/models_checkpoint/best.pt", "transformer_0", "train_quantized_transformer.py"),
        ("transformer_0/models_checkpoint/latest.pt", "transformer_0", "train_quantized_transformer.py"),
        ("generated/tokens.npz", "generate", "generate_images.py"),
        ("generated/images/recon_model_Cond.png", "generate", "generate_images.py"),
    ],
)
def test_a_step_whose_result_is_gone_runs_again(result, step, script, chain):
    chain.ended()
    assert chain.ended()[1] == []
    (chain.out / result).unlink()
    output, scripts = chain.ended()
    assert scripts == [script]
    assert f"{chain.out / result} is gone: {step} runs again" in output.splitlines()
    assert not list((chain.out / ".done").glob("*.new"))


def test_a_step_that_leaves_no_result_is_an_error_and_not_done(chain):
    status, _, errors, _ = chain.run(FORGETFUL="transformer_0")
    assert status == 2
    assert re.fullmatch(r"error: transformer_0 has ended without \S+/best.pt; .*", errors.splitlines()[-1])
    assert chain.ended()[1] == ["train_quantized_transformer.py", *LAST]


def test_feature_maps_of_which_one_is_gone_are_made_again(chain):
    chain.ended()
    (chain.out / "feature_maps/a.npy").unlink()
    output, scripts = chain.ended()
    assert scripts == ["generate_fmap_dataset.py"]  # the same maps, so what was made of them stays
    line = f"{chain.out}/feature_maps/dataset.json or a file of it is gone: feature_maps runs again"
    assert line in output.splitlines()


def test_other_feature_maps_make_all_that_is_made_of_them_anew(chain):
    chain.ended()
    path = chain.out / "feature_maps/dataset.json"
    path.write_text("b.npy")
    (path.parent / "b.npy").touch()
    assert chain.ended()[1] == AFTER_MAPS


def test_other_images_make_all_anew(chain):
    chain.ended()
    chain.dataset.write_text("b.png")
    assert chain.run()[0] == 2  # there is no such image
    (chain.dataset.parent / "b.png").touch()
    assert chain.ended()[1] == ["train_autoencoder.py", "generate_fmap_dataset.py", *AFTER_MAPS]


def test_the_config_of_the_generation_follows_the_recipe_until_it_is_edited(chain):
    recipe, copy = chain.recipe / "generate.json", chain.out / "generate.json"
    chain.ended()
    recipe.write_text('{"0": {"temperature": 0.5}}')
    assert chain.ended()[1] == LAST
    assert copy.read_text() == recipe.read_text()
    copy.write_text('{"0": {"temperature": 0.9}}')
    for expected in (LAST, []):
        output, scripts = chain.ended()
        assert scripts == expected
        assert [line for line in output.splitlines() if "edited" in line and str(copy) in line and "remove" in line]
        assert "0.9" in copy.read_text()
    recipe.write_text('{"0": {"temperature": 0.7}}')
    assert chain.ended()[1] == []
    copy.unlink()
    output, scripts = chain.ended()
    assert (scripts, copy.read_text()) == (LAST, recipe.read_text())
    assert "edited" not in output


@pytest.mark.parametrize("differs", [False, True])
def test_a_config_of_which_nothing_is_remembered_is_kept_where_it_differs(differs, chain):
    recipe, copy = chain.recipe / "generate.json", chain.out / "generate.json"
    copy.parent.mkdir()
    copy.write_text('{"0": {"temperature": 0.9}}' if differs else recipe.read_text())
    kept = copy.read_text()
    output, _ = chain.ended()
    assert ("edited" in output, copy.read_text()) == (differs, kept)
    recipe.write_text('{"0": {"temperature": 0.7}}')
    output, _ = chain.ended()
    assert (copy.read_text() == kept) == differs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_reaches_the_step_once_and_the_chain_ends_with_it(number, send, chain):
    process = chain.start("codebook_cond")
    send(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, chain.received) == (7, [number])
    assert errors.splitlines() == ["terminal: False"]
    assert chain.commands[-1].startswith("train_codebook.py")
    assert {path.name for path in (chain.out / ".done").iterdir()} == {"generate.json", "autoencoder", "feature_maps"}


def test_a_signal_to_several_processes_ends_the_chain_with_its_number(chain):
    """torchrun ends with 1, whatever the signal."""
    process = chain.start("codebook_cond", "--nproc", "2")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert (process.returncode, chain.received) == (143, [signal.SIGTERM])


def test_a_second_signal_is_passed_on_too_but_not_a_second_hangup(chain):
    process = chain.start("autoencoder")
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.05)
    process.communicate(timeout=20)
    assert chain.received == [signal.SIGHUP, signal.SIGINT, signal.SIGINT]


def test_under_nohup_a_hangup_is_ignored(chain):
    process = chain.start("codebook_cond", before=["nohup"], stdin=subprocess.DEVNULL)
    os.killpg(process.pid, signal.SIGHUP)
    os.kill(chain.child, signal.SIGHUP)
    Path(f"{chain.started}.end").touch()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert chain.received == []


def test_a_signal_after_the_last_word_of_a_step_ends_the_chain(chain):
    """The step ends well in spite of the signal, so it is done, and the chain does not go on."""
    (chain.folder / "python").write_text(STUB.replace("7 if received else 0", "0"))
    process = chain.start("autoencoder")
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert (chain.out / ".done/autoencoder").exists()
    assert len(chain.commands) == 1


def test_a_signal_between_two_commands_ends_a_script(tmp_path):
    script = f"source {ROOT}/scripts/signals.sh; attended true; kill -TERM $$; attended touch {tmp_path}/more"
    found = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (143, "")
    assert not (tmp_path / "more").exists()


def terminal_of(chain, slow):
    """Start the chain on a terminal that it controls; return the process and our end of the terminal."""
    ours, theirs = pty.openpty()
    opened, modes = os.ttyname(theirs), termios.tcgetattr(theirs)
    modes[3] |= termios.TOSTOP  # the strictest one: what is not in the foreground must not write
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    # The leader of a session gets the first terminal that it opens.
    command = ["bash", "-c", f'exec "$@" < {opened} > {opened} 2>&1', "bash"]
    process = chain.start(slow, before=command, stdin=None, stdout=None, stderr=None)
    os.close(theirs)
    return process, ours


def everything(terminal):
    """All that was written to a terminal, until its last process closes it."""
    text = b""
    try:
        while part := os.read(terminal, 1 << 16):
            text += part
    except OSError:  # EIO, on Linux
        pass
    os.close(terminal)
    return text.decode()


def test_ctrl_c_on_a_terminal_reaches_the_step_once(chain):
    process, terminal = terminal_of(chain, "codebook_cond")
    os.write(terminal, b"\x03")
    text = everything(terminal)
    assert process.wait(timeout=20) == 7, text
    assert chain.received == [signal.SIGINT]
    assert "terminal: True" in text  # so progress bars are drawn
    lines = [line for line in text.replace("^C", "").splitlines() if line]
    assert [line for line in lines if not line.startswith(("== ", "terminal: ")) and " took " not in line] == []


def test_a_terminal_that_is_lost_ends_the_step(chain):
    process, terminal = terminal_of(chain, "codebook_cond")
    os.close(terminal)
    assert process.wait(timeout=20) == 7
    assert chain.received == [signal.SIGHUP]


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_ctrl_z_pauses_the_step_too(chain):
    process, terminal = terminal_of(chain, "codebook_cond")
    os.write(terminal, b"\x1a")
    while {state_of(process.pid), state_of(chain.child)} != {"T"}:
        time.sleep(0.01)
    process.send_signal(signal.SIGCONT)
    while state_of(chain.child) == "T":
        time.sleep(0.01)
    os.write(terminal, b"\x03")
    text = everything(terminal)
    assert process.wait(timeout=20) == 7, text
    assert chain.received == [signal.SIGINT]
