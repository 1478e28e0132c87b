"""In the processes of other pools, which are daemonic: multiprocessing, billiard, a Dask worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosting import PYTHON, assert_fanned_out, hosted, write_program
from scripts import each_backend

POOL = """
import multiprocessing, sys

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        pool.apply(fan_out, (sys.argv[1],))
"""

BILLIARD = """
import billiard, sys

if __name__ == "__main__":
    with billiard.get_context(sys.argv[2]).Pool(1) as pool:
        pool.apply(fan_out, (sys.argv[1],))
"""

DAEMON = """
import multiprocessing, sys

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[2]).Process(target=fan_out, args=(sys.argv[1],), daemon=True)
    process.start()
    process.join()
"""

EXECUTOR = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[2])) as pool:
        pool.submit(fan_out, sys.argv[1]).result()
"""

DASK = """
import sys

if __name__ == "__main__":
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.submit(fan_out, sys.argv[1]).result()
"""


@each_backend
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("host", [POOL, DAEMON, EXECUTOR], ids=["pool", "daemon", "executor"])
def test_child_process_fans_out(host: str, method: str, backend: str, tmp_path: Path) -> None:
    """A function that a pool of the standard library calls in a child process gets every outcome in order."""
    program = write_program(tmp_path, host, "main.py")
    with hosted(tmp_path, PYTHON, program, backend, method) as process:
        assert_fanned_out(process, backend)
        assert process.wait() == 0


@each_backend
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_billiard_pool_fans_out(method: str, backend: str, tmp_path: Path) -> None:
    """A function that a pool of billiard calls, which is what Celery uses, gets every outcome in order."""
    program = write_program(tmp_path, BILLIARD, "main.py")
    with hosted(tmp_path, PYTHON, program, backend, method) as process:
        assert_fanned_out(process, backend)
        assert process.wait() == 0


@each_backend
def test_dask_worker_fans_out(backend: str, tmp_path: Path) -> None:
    """A task that a Dask worker runs gets every outcome in order."""
    program = write_program(tmp_path, DASK, "main.py")
    with hosted(tmp_path, PYTHON, program, backend) as process:
        assert_fanned_out(process, backend)
        assert process.wait() == 0
