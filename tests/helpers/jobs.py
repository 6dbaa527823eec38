"""A job of several processes, forked from this one, so that nothing has to be imported again."""

import os
import signal
import socket
import sys
import time
import traceback

import torch

from utils.runtime import cli

SECONDS = 60  # after which a job that has not ended is killed: it hangs


def until(condition, pause=0.01):
    """Wait until `condition()` is true, at most as long as a job may take."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(pause)


def run_job(work, folder, number=2, kill=None):
    """Call `work(rank)` in `number` processes that meet as those of torchrun do.

    Returns for each its exit status and what it wrote to stderr, which is in `folder` with what it wrote to stdout.
    `kill` is called with the numbers of the processes while they run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    pids = [_fork(work, rank, number, port, folder) for rank in range(number)]
    try:
        if kill is not None:
            kill(pids)
    except BaseException:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        raise
    statuses, end = [], time.monotonic() + SECONDS
    for pid in pids:
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        statuses.append(os.waitstatus_to_exitcode(ended[1]))
    return [(status, (folder / f"{rank}.err").read_text()) for rank, status in enumerate(statuses)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _fork(work, rank, number, port, folder):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for name, descriptor in ((f"{rank}.out", 1), (f"{rank}.err", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        cli.run(lambda: work(rank))
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
