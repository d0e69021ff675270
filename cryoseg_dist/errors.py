"""Every error that this package raises on purpose."""

from collections.abc import Iterable


class CryosegError(Exception):
    """Base of all errors raised on purpose.

    The message reads ``where: expected X, got Y. Remedy.``
    """


class BadInputError(CryosegError):
    """Something a user brought (a file, a column, an array) cannot be used.

    A unit of work that raises it is set aside with its reason and is not retried.
    """

    def __init__(self, where: str, expected: str, got: str, remedy: str = "") -> None:
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy
        super().__init__(f"{where}: expected {expected}, got {got}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type["BadInputError"], tuple[str, str, str, str]]:
        return type(self), (self.where, self.expected, self.got, self.remedy)


class SettingsError(CryosegError):
    """One or more settings are unknown or impossible; all of them are listed."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type["SettingsError"], tuple[tuple[str, ...]]]:
        return type(self), (self.faults,)


class StageFailedError(CryosegError):
    """A stage cannot go on: too few usable units, or an engine that is gone."""
