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

    @property
    def found(self) -> str:
        """What was found, to stand inside another sentence."""
        return f"{self.got} instead of {self.expected}"

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


class StoreUnavailableError(CryosegError):
    """The storage of a project refuses: it is full, read-only, closed to this user, or away.

    Attributes
    ----------
    full : bool
        Waiting does not help.
    waited : float
        Seconds for which it refused before it was given up.
    """

    def __init__(self, where: str, got: str, remedy: str, full: bool = False, waited: float = 0.0) -> None:
        self.where, self.got, self.remedy, self.full, self.waited = where, got, remedy, full, waited
        super().__init__(f"{where}: expected a storage that reads and writes, got {got}. {remedy}")

    def __reduce__(self) -> tuple[type["StoreUnavailableError"], tuple[str, str, str, bool, float]]:
        return type(self), (self.where, self.got, self.remedy, self.full, self.waited)


class DamagedDataError(CryosegError):
    """Part of an array of the project is lost or is not what was written.

    Attributes
    ----------
    array : str
    start, stop : tuple of int
        One shard of it.
    """

    def __init__(self, array: str, start: tuple[int, ...], stop: tuple[int, ...], got: str) -> None:
        self.array, self.start, self.stop, self.got = array, start, stop, got
        super().__init__(
            f"{array}, {list(start)} to {list(stop)}: expected the values that were written, got {got}. "
            "`cryoseg verify PROJECT --mend` takes it back; the same command then computes it again."
        )

    def __reduce__(self) -> tuple[type["DamagedDataError"], tuple[str, tuple[int, ...], tuple[int, ...], str]]:
        return type(self), (self.array, self.start, self.stop, self.got)
