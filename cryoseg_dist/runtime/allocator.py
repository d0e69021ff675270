"""Memory that was used once is used again.

The C library gives large arrays back to the system when they are freed, and heaps of threads with them; the next array of that size then
comes page by page, each cleared by the kernel. Where slabs and batches of one size follow one another that takes as long as the work.
"""

import ctypes
import os

# Numbers of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# The most that the C library takes for a threshold, and what may stay unused at the top of its heap.
_LARGE, _UNUSED = 32 << 20, 256 << 20


def keep_freed_memory() -> None:
    """Keep freed arrays of up to 32 MiB, in one heap, and ask for large pages for larger ones.

    Call once, at the start of a process, before it makes tensors and threads. Does nothing where the C library is another.
    """
    # Torch reads this when it first allocates; processes that are started from here inherit it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _UNUSED)):
            mallopt(option, value)
