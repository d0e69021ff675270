"""The command line, as results say it of themselves."""

import sys


def command_line() -> list[str]:
    """The command under the name that users type, however it was started."""
    return ["cryoseg", *sys.argv[1:]]
