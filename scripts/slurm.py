"""A SLURM cluster of one node, this machine, for as long as a command runs: to try sweeps without a cluster.

    python scripts/slurm.py python run.py -m hydra/launcher=slurm hydra.launcher.partition=all method=exact,rad_diff

Everything that it writes lies in a temporary folder. It needs root and Debian's packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "scontrol", "squeue", "sbatch")
PARTITION = "all"


def missing() -> list[str]:
    """What a cluster would need and is not there."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None] + ["root"] * (os.geteuid() != 0)


class Cluster:
    """Starts on entering, and stops with all its jobs on leaving.

    Attributes:
        environment: Variables by which SLURM's commands find it.
        folder: Where it writes.
    """

    def __init__(self) -> None:
        if absent := missing():
            raise RuntimeError(f"a cluster needs {', '.join(absent)}; apt-get install slurm-wlm munge, as root")
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))
        self.environment = os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin",
        }
        self._node = socket.gethostname().split(".")[0]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._processes) == 3:
            self.call("scancel", "--state=RUNNING")
            self.call("scancel", "--state=PENDING")
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command: str) -> str:
        """What one of SLURM's commands prints, within a quarter of a minute."""
        run = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=15)
        return run.stdout + run.stderr

    def _start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(self._settings())
        files = (f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed"))
        self._run("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        self._wait((folder / "munge.socket").exists, "munged")
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D", "-N", self._node)
        self._wait(lambda: "idle" in self.call("sinfo", "--noheader"), "slurmd")

    def _run(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("wb")
        self._processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _wait(self, ready, what: str) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                logs = "\n".join(file.read_text()[-2000:] for file in self.folder.glob("slurm*.log"))
                raise RuntimeError(f"{what} does not start:\n{logs}")
            time.sleep(0.2)

    def _settings(self) -> str:
        settings = {
            "ClusterName": "here",
            "SlurmctldHost": f"{self._node}(127.0.0.1)",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge.socket",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "SlurmctldPort": _free_port(),
            "SlurmdPort": _free_port(),
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "AccountingStorageType": "accounting_storage/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SchedulerParameters": "sched_interval=1",
            "KillWait": 2,
        }
        for name in ("slurmctld", "slurmd"):
            title = name.capitalize()
            settings |= {f"{title}PidFile": f"{self.folder}/{name}.pid", f"{title}LogFile": f"{self.folder}/{name}.log"}
        lines = [f"{name}={value}" for name, value in settings.items()]
        lines += [
            f"NodeName={self._node} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={_memory()} State=UNKNOWN",
            f"PartitionName={PARTITION} Nodes={self._node} State=UP",
        ]
        return "\n".join(lines) + "\n"


def _memory() -> int:
    """Of this machine, in MB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main() -> None:
    """Runs the command line behind the script's name."""
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        with Cluster() as cluster:
            sys.exit(subprocess.run(sys.argv[1:], env=cluster.environment).returncode)
    except (RuntimeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
