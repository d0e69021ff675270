"""Feed a reader of foreign files with what libFuzzer makes of good ones: any bytes are read or refused in words.

``pip install atheris`` beside the project, then ``python -m tests.fuzz.fuzz_formats mrc --seconds 300``. It ends with
the number of inputs, or with the first one that raised something else, took more than a GiB, or took longer than 10 s.
"""

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

import atheris

# What parses the bytes in Python, beside our own readers.
PARSERS = {"tiff": ["tifffile"], "star": ["starfile"], "coordinates.star": ["starfile"]}
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("format")
parser.add_argument("--seconds", type=int, default=300)
parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()))
parser.add_argument("--longest", type=int, default=4096, help="bytes of an input, at most")
choice = parser.parse_args()

with atheris.instrument_imports(include=["cryoseg_dist.formats", *PARSERS.get(choice.format, [])]):
    from tests.fuzz.readers import FORMATS, attempt

MOST_BYTES = 1 << 30
MOST_SECONDS = 10


def limit_memory() -> None:
    """What a reader may take beyond what the libraries hold already."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES, held + MOST_BYTES))


def main() -> None:
    """Fuzz one format."""
    if choice.format not in FORMATS:
        parser.error(f"expected one of {', '.join(FORMATS)}, got {choice.format}")
    form = FORMATS[choice.format]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder, corpus = Path(name), Path(name) / "corpus"
        corpus.mkdir()
        for i, seed in enumerate(form.seeds(folder)):
            (corpus / f"seed{i}").write_bytes(seed)
        path = folder / f"input{form.suffix}"
        counts = {"inputs": 0, "read": 0}

        def one(data: bytes) -> None:
            path.write_bytes(data)
            counts["inputs"] += 1
            counts["read"] += attempt(form, path)

        limit_memory()
        atheris.Setup(
            [
                sys.argv[0], str(corpus), f"-max_total_time={choice.seconds}", f"-max_len={choice.longest}",
                f"-timeout={MOST_SECONDS}", "-rss_limit_mb=0", "-print_final_stats=1",
                f"-artifact_prefix={choice.findings}/{choice.format}-",
            ],
            one,
        )  # fmt: skip
        # libFuzzer ends the process itself.
        atheris.Fuzz()


if __name__ == "__main__":
    main()
