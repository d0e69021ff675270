"""Where a disturbed run works: a Ray cluster that loses nodes, a disk that fails, a bucket behind a gate."""

import ctypes
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.integration.chaos_faults import workers
from tests.s3_server import ENVIRONMENT, S3Server

DISK_BYTES = 1 << 30
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


class Machines:
    """A Ray cluster on this machine: a head without cores and two nodes of one core."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=200 << 20)
        self.nodes = [self._add() for _ in range(2)]

    def _add(self) -> Node:
        return self._cluster.add_node(num_cpus=1, object_store_memory=200 << 20)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self._cluster.address)

    def lose_one(self, rng: random.Random) -> str:
        """Kill a node with everything on it; a new one comes."""
        place = rng.randrange(len(self.nodes))
        raylet = self.nodes[place].all_processes["raylet"][0].process.pid
        held = [process.pid for process in workers("UnitActor", raylet)]
        self._cluster.remove_node(self.nodes[place], allow_graceful=False)
        self.nodes[place] = self._add()
        return f"node {place} with process {held[0]}" if held else f"node {place}"

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


class Store(Protocol):
    """Storage of a disturbed project."""

    @property
    def root(self) -> Path:
        """Folder of the project."""

    @property
    def url(self) -> str | None:
        """Of its arrays, if they are not in the folder."""

    def mend(self) -> None:
        """What an operator does once a run has stopped."""

    def close(self) -> None:
        """Let go of it; what it held is gone."""


def obey_permissions() -> None:
    """Let processes started from now on obey permission bits, though they are root's."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl: may not drop a capability")


class Disk:
    """A disk of its own, which can be full, read-only or closed to the user at any moment."""

    url = None

    def __init__(self, where: Path) -> None:
        self._where, self.root = where, where / "project"
        self._closed: list[Path] = []
        where.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)], check=True)

    def fill(self) -> str:
        """Leave no room."""
        used = shutil.disk_usage(self._where).used
        self._remount(f"size={used}")
        return f"at {used >> 20} MiB"

    def set_read_only(self) -> str:
        """As a file system does that met an error; open files of the driver would refuse that."""
        for path in (self.root / "store.zarr", self.root / "ledger"):
            subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
            self._closed.append(path)
        return "arrays and ledgers read-only"

    def take_permission(self) -> str:
        """Nothing can be made in any folder of the arrays."""
        self._chmod(0o555)
        return "folders of the arrays"

    def mend(self) -> None:
        """Make room, mount for writing, give permission."""
        self._remount(f"size={DISK_BYTES}")
        while self._closed:
            subprocess.run(["umount", "-l", str(self._closed.pop())], check=True)
        self._chmod(0o755)

    def _chmod(self, mode: int) -> None:
        for folder, _, _ in os.walk(self.root / "store.zarr"):
            os.chmod(folder, mode)

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self._where)], check=True)

    def close(self) -> None:
        """Unmount."""
        self.mend()
        subprocess.run(["umount", "-l", str(self._where)], check=True)


class Gate:
    """A TCP port before a server: it passes everything on, late or not at all."""

    def __init__(self, port: int) -> None:
        # Least and most seconds that a request is late, and an answer.
        self.late = (0.0, 0.0)
        self._to = port
        self._ends: list[socket.socket] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        """Accept connections."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Break all connections and refuse new ones."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            # Wakes the thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        while self._ends:
            with suppress(OSError):
                self._ends.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [here, there]
                threading.Thread(target=self._serve, args=(here, there), daemon=True).start()

    def _serve(self, here: socket.socket, there: socket.socket) -> None:
        """Pass on both ways until an end closes."""
        spoke = [there]
        answers = threading.Thread(target=self._pass, args=(there, here, spoke), daemon=True)
        answers.start()
        self._pass(here, there, spoke)
        answers.join()
        for end in (here, there):
            with suppress(ValueError):
                self._ends.remove(end)
            end.close()

    def _pass(self, source: socket.socket, target: socket.socket, spoke: list[socket.socket]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                # Further parts of a request or an answer follow at once.
                if spoke[0] is not source:
                    spoke[0] = source
                    time.sleep(random.uniform(*self.late))
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class S3:
    """An S3 server behind a gate, for all runs: nodes of Ray get its address when they start."""

    def __init__(self) -> None:
        self._server = S3Server()
        self.gate = Gate(self._server.port)
        os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}"}

    def close(self) -> None:
        """End the server."""
        self.gate.shut()
        self._server.close()


class Bucket:
    """A project whose arrays lie in an object store."""

    def __init__(self, root: Path, s3: S3) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.root, self._gate = root, s3.gate
        self.url = f"s3://bucket/{root.name}"

    def stop(self) -> str:
        """The server is gone until :meth:`mend`."""
        self._gate.shut()
        return "all connections broken"

    def stop_for(self, seconds: float) -> str:
        """The server is gone and comes back."""
        self._gate.shut()
        threading.Timer(seconds, self._gate.open).start()
        return f"for {seconds:g} s"

    def slow_down(self, least: float, most: float, seconds: float) -> str:
        """For a while every request is late by some seconds, and so is its answer."""
        self._gate.late = least, most
        threading.Timer(seconds, self._hurry).start()
        return f"requests and answers late by {least:g} to {most:g} s, for {seconds:g} s"

    def _hurry(self) -> None:
        self._gate.late = 0.0, 0.0

    def mend(self) -> None:
        """Start the server."""
        self._gate.open()

    def close(self) -> None:
        """Fast again for the next run."""
        self._hurry()
        self._gate.open()
