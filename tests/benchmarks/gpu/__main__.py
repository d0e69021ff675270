"""The GPU paths on one card: limits of the card, correctness of each kernel, then rates.

``python -m tests.benchmarks.gpu [PART ...] --seconds 240`` needs CUDA, torch, Triton and this package alone. Each figure is printed as it is
taken; a part that fails says so and the rest goes on. With ``OUT`` set, figures are written to ``$OUT/gpu.json`` as well.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.gpu.card import machine
from tests.benchmarks.gpu.correctness import check
from tests.benchmarks.gpu.measuring import FIGURES, STARTED
from tests.benchmarks.gpu.scoring import estep, own, products, second_pass
from tests.benchmarks.gpu.segmenting import picks, unet
from tests.benchmarks.gpu.summing import fold, insertion, path


def main() -> int:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no part after that")
    parser.add_argument("--micrograph", type=Path, help="a micrograph (.npy, 1.5 A, particles of 130 A) to pick")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: expected a CUDA device, got none. Run it where torch sees one.", file=sys.stderr)
        return 2
    parts: dict[str, Callable[[], None]] = {
        "machine": machine,
        "check": check,
        "insertion": insertion,
        "path": path,
        "fold": fold,
        "own": own,
        "estep": estep,
        "products": products,
        "slices": second_pass,
        "picks": lambda: picks(arguments.micrograph),
        "unet": unet,
        "compiled": lambda: unet(compiled=True),
    }
    for name in arguments.parts or parts:
        if time.perf_counter() - STARTED > arguments.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        began = time.perf_counter()
        try:
            parts[name]()
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
        if "OUT" in os.environ:
            (Path(os.environ["OUT"]) / "gpu.json").write_text(json.dumps(FIGURES, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
