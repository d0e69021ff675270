"""A real S3 API server on loopback, in a process of its own, that can be stopped and started."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "open-sesame-key",
    "AWS_SECRET_ACCESS_KEY": "open-sesame-secret",
    "AWS_REGION": "us-east-1",
}


class S3Server:
    """Moto's server with one bucket; it holds its objects in memory."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/bucket", method="PUT")).close()

    def objects(self) -> str:
        """The bucket's listing."""
        with urllib.request.urlopen(f"{self.address}/bucket?list-type=2&max-keys=1000") as answer:
            return answer.read().decode()

    def pause(self) -> None:
        """Answer nothing for a while."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server."""
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
