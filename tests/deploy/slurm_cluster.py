"""A Slurm of one node, of its own in every respect: processes, ports, keys, configuration."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "unshare")
CONFIGURATION = """\
ClusterName=cryoseg-test
SlurmctldHost={host}
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# `ray stop` ends every Ray process that it sees: the daemons, and so the jobs, live among processes of their own.
DAEMONS = """\
munged --force --foreground --key-file={folder}/munge.key --socket={folder}/munge.socket \
    --pid-file={folder}/munged.pid --log-file={folder}/munged.log --seed-file={folder}/munge.seed &
sleep 1
slurmctld -D -f {folder}/slurm.conf &
slurmd -D -f {folder}/slurm.conf -N {host} &
wait
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"absent: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "its daemons need root"
    # Containers may lack the right to it even where they are root.
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=30)
    return f"no process namespace: {done.stderr.strip()}" if done.returncode else ""


def _path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Slurm:
    """Starts with the object, ends with :meth:`close`; all in one folder."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        host = socket.gethostname().split(".")[0]
        self.folder, self.environment = folder, {**os.environ, "PATH": _path(), "SLURM_CONF": f"{folder}/slurm.conf"}
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        ports = {"controller_port": _free_port(), "daemon_port": _free_port()}
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=folder, host=host, cpus=cpus, **ports), encoding="utf-8"
        )
        self._log = (folder / "daemons.log").open("wb")
        self._daemons = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "bash",
                "-c",
                DAEMONS.format(folder=folder, host=host),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self.environment,
        )
        self._wait(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t"), 60.0, "an idle node")

    def run(self, *command: str) -> str:
        """A Slurm command's output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=30)
        return done.stdout

    def submit(self, *arguments: str | Path) -> str:
        """Submit a script; the job's number."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=30
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, job: str, seconds: float) -> dict[str, str]:
        """Wait for the end of a job."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self._wait(lambda: self.show(job).get("JobState") in over, seconds, f"the end of job {job}")
        return self.show(job)

    def _wait(self, holds: object, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():  # type: ignore[operator]
            if time.monotonic() > deadline or self._daemons.poll() is not None:
                log = (self.folder / "daemons.log").read_text(encoding="utf-8", errors="replace")
                raise TimeoutError(f"{what} did not come within {seconds:g} s\n{log[-2000:]}")
            time.sleep(0.5)

    def close(self) -> None:
        """End the daemons and with them, as their namespace goes, every job."""
        self._daemons.kill()
        self._daemons.wait(30)
        self._log.close()
