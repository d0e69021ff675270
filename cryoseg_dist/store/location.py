"""Where the arrays of a project lie: a folder, or a prefix of an object store.

A shard is one object, and a PUT shows it whole or not at all, as does the end of a multipart upload: what a rename does in a
folder. Credentials come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on) and are never kept.
"""

import os
import re
import warnings
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import zarr

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.store.faults import storage_faults

# A request is tried again for so long, at growing intervals; then the storage counts as away.
RETRY_SECONDS, LONGEST_WAIT, MOST_RETRIES = 120.0, 15.0, 100
# A request that takes longer has hung, and is tried again within the time for retries.
REQUEST_SECONDS = 30.0
# Rust's pipeline opens its own connections; it says so once a store.
warnings.filterwarnings("ignore", message="Successfully reconstructed a store", category=RuntimeWarning)


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a folder."""
    return "://" in location


def check_url(url: str) -> str:
    """A URL of arrays, without a trailing slash.

    Raises
    ------
    BadInputError
        Another scheme, no bucket or prefix, or credentials in it.
    """
    parts = urlsplit(url)
    # The text may hold a password: it is not repeated.
    if parts.username or parts.password or parts.query:
        remedy = "Set AWS_ACCESS_KEY_ID and so on."
        raise BadInputError("engine.store", "a URL without credentials", "one with them", remedy)
    bucket = re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}", parts.netloc)
    if parts.scheme != "s3" or not bucket or not parts.path.strip("/"):
        raise BadInputError("engine.store", "s3://BUCKET/PREFIX", repr(url[:80]))
    return url.rstrip("/")


def object_store(url: str) -> Any:
    """A prefix of an object store, whose requests are tried again."""
    # Takes a while to load and is needed for URLs alone.
    from obstore.store import S3Store

    backoff: Any = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=LONGEST_WAIT), "base": 2}
    retries: Any = {"max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS), "backoff": backoff}
    limits: Any = {
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "connect_timeout": timedelta(seconds=10),
        # Only where the user names such an endpoint.
        "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
    }
    return S3Store.from_url(url, retry_config=retries, client_options=limits)


def open_location(location: str) -> Any:
    """What zarr reads and writes at a folder or a URL."""
    if not is_url(location):
        return location
    from zarr.storage import ObjectStore

    return ObjectStore(object_store(location))


def open_group(location: str) -> Any:
    """The group of arrays at a location.

    Raises
    ------
    FileNotFoundError
        There is none.
    StoreUnavailableError
        The storage refuses.
    """
    with storage_faults(location):
        return zarr.open_group(open_location(location), mode="r+", use_consolidated=False, zarr_format=3)


def create_group(location: str, attributes: dict[str, Any]) -> None:
    """Make a group for arrays.

    Raises
    ------
    StoreUnavailableError
        The storage refuses.
    """
    with storage_faults(location):
        zarr.create_group(open_location(location), attributes=attributes)
