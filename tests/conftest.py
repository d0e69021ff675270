"""Fixtures that the whole run shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Before any test imports Ray: it draws the token of the session.
import cryoseg_dist.runtime  # noqa: F401
from tests.s3_server import ENVIRONMENT, S3Server

torch.set_num_threads(1)
os.environ.setdefault("NUMBA_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; a test that needs it is skipped, loudly, where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server on loopback; its address and credentials are in the environment."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.address}.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray session of the whole run; workers import the tests too."""
    import ray

    from cryoseg_dist.runtime.ray_start import start_ray

    top = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (top, os.environ.get("PYTHONPATH"))))
    start_ray(cpus=2)
    yield
    ray.shutdown()
