"""A real Slurm on this machine: a controller, several nodes, and GPUs that are only files.

It needs root and Debian's slurm-wlm and munge. All of its files are in one folder, except for a
link in /etc/slurm: the executor's job step forgets SLURM_CONF.
"""

import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

ETC = Path("/etc/slurm")
DAEMONS = ("munged", "slurmctld", "slurmd")


def absent() -> str | None:
    """Return why Slurm cannot run on this machine, or None."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in DAEMONS if not find(name)]
    if missing:
        return f"no {', '.join(missing)} (apt-get install slurm-wlm munge)"
    if (ETC / "slurm.conf").exists() and not (ETC / "slurm.conf").is_symlink():
        return f"{ETC} belongs to another Slurm"
    return None


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


class Slurm:
    """A cluster of `nodes` nodes with `gpus` GPUs each."""

    def __init__(
        self, folder: Path, nodes: int = 2, gpus: int = 2, cpus: int = 4, mem_mb: int = 64_000
    ):
        self.folder, self.nodes, self.gpus = folder, nodes, gpus
        for name in ("munge", "state", "log", "dev"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        for name in ("munge", "state"):
            (folder / name).chmod(0o711)
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "munge/key").chmod(0o400)
        for gpu in range(gpus):
            os.mknod(folder / f"dev/nvidia{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        self.conf = folder / "slurm.conf"
        self.conf.write_text(self._configuration(cpus, mem_mb))
        names = f"node[1-{nodes}]"
        (folder / "gres.conf").write_text(
            f"NodeName={names} Name=gpu Type=fake File={folder}/dev/nvidia[0-{gpus - 1}]\n"
        )
        os.environ["SLURM_CONF"] = str(self.conf)

    def _configuration(self, cpus: int, mem_mb: int) -> str:
        here = self.folder
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": "localhost(127.0.0.1)",
            "SlurmctldPort": 17101,
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "CryptoType": "crypto/munge",
            "AuthInfo": f"socket={here}/munge/socket",
            "StateSaveLocation": here / "state",
            "SlurmdSpoolDir": here / "%n",
            "SlurmctldPidFile": here / "slurmctld.pid",
            "SlurmdPidFile": here / "%n.pid",
            "SlurmctldLogFile": here / "log/slurmctld",
            "SlurmdLogFile": here / "log/%n",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "MpiDefault": "none",
            # no cgroups in a container; a node may claim more cores than the machine has
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SlurmdParameters": "config_overrides",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0,bf_interval=2",
            # without accounting, squeue is asked for the state of jobs that have ended
            "MinJobAge": 3600,
            "AccountingStorageType": "accounting_storage/none",
            "KillWait": 2,
            "ReturnToService": 2,
            "PropagateResourceLimits": "NONE",
            "GresTypes": "gpu",
            "NodeName": (
                f"node[1-{self.nodes}] NodeHostname=localhost NodeAddr=127.0.0.1"
                f" Port=[17111-{17110 + self.nodes}] CPUs={cpus} RealMemory={mem_mb}"
                f" Gres=gpu:fake:{self.gpus} State=UNKNOWN"
            ),
            "PartitionName": f"main Nodes=node[1-{self.nodes}] Default=YES State=UP",
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def __enter__(self) -> "Slurm":
        ETC.mkdir(exist_ok=True)
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).unlink(missing_ok=True)
            (ETC / name).symlink_to(self.folder / name)
        munge = self.folder / "munge"
        self._daemon(
            "munged",
            *(f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid"),
            *(f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--force"),
        )
        self.start_controller()
        for node in range(1, self.nodes + 1):
            (self.folder / f"node{node}").mkdir()
            self._daemon("slurmd", "-N", f"node{node}", "-f", str(self.conf))
        deadline = time.monotonic() + 60
        while self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() != str(self.nodes):
            assert time.monotonic() < deadline, self.ask("sinfo", "-N", "-l")
            time.sleep(0.2)
        return self

    def __exit__(self, *error: object) -> None:
        self.ask("scancel", "--user=root")
        for file in [*self.folder.glob("*.pid"), self.folder / "munge/pid"]:
            _end(file, signal.SIGTERM)
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).unlink(missing_ok=True)

    def start_controller(self) -> None:
        self._daemon("slurmctld", "-f", str(self.conf))

    def kill_controller(self) -> None:
        _end(self.folder / "slurmctld.pid", signal.SIGKILL)

    def jobs(self) -> list[dict[str, str]]:
        """Return the controller's record of every job; empty while the controller does not run."""
        text = self.ask("scontrol", "show", "job", "--details", "--oneliner")
        return [
            dict(word.split("=", 1) for word in line.split() if "=" in word)
            for line in text.splitlines()
            if line.startswith("JobId=")
        ]

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout

    def _daemon(self, name: str, *args: str) -> None:
        program = find(name)
        assert program
        done = subprocess.run([program, *args], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def _end(pid_file: Path, how: signal.Signals) -> None:
    """Send a signal to the process of a pid file and wait for its end."""
    if not pid_file.exists() or not pid_file.read_text(encoding="utf-8").strip():
        return
    pid = int(pid_file.read_text(encoding="utf-8"))
    try:
        os.kill(pid, how)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pid_file.unlink(missing_ok=True)
