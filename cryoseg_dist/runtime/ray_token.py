"""The lock of an embedded Ray, whose ports listen on every address of the machine."""

import os
import secrets
import sys


def draw_token() -> None:
    """Draw a token that this process and those it starts share.

    Ray runs what it is sent: without a token, whoever reaches one of its ports could run code as this user. What the
    environment says of tokens stays, and so does a Ray that was imported before, which would not look again.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
