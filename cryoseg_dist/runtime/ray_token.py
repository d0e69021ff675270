"""The lock of an embedded Ray, whose ports listen on every address of the machine."""

import os
import secrets
import sys

_drawn: dict[str, str] = {}


def draw_token() -> None:
    """Draw a token that this process and those it starts share.

    Ray runs what it is sent: without a token, whoever reaches one of its ports could run code as this user. What the
    environment says of tokens stays, and so does a Ray that was imported before, which would not look again.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = _drawn.setdefault("token", secrets.token_hex(32))


def forget_token() -> None:
    """Let go of a token that was drawn, before Ray is imported to join a cluster, which has a lock of its own or none.

    With a token of ours the cluster could not answer: it would take this driver for dead and cancel its actors.
    """
    # One that a file or the user gives is none of ours.
    if "ray" not in sys.modules and _drawn and os.environ.get("RAY_AUTH_TOKEN") == _drawn["token"]:
        os.environ.pop("RAY_AUTH_MODE", None)
        os.environ.pop("RAY_AUTH_TOKEN", None)
