"""What can go wrong, each with a hint that says what to do next."""

from __future__ import annotations


class CryosamError(Exception):
    """A problem the user can act on.

    Parameters
    ----------
    message : str
        One line: the field, what was expected, what was found.
    hint : str
        One line: what to do next.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


class InputError(CryosamError):
    """A value given by the user is malformed or out of range."""


class NotFoundError(CryosamError):
    """A config, object, run, tomogram or checkpoint does not exist."""


class DataError(CryosamError):
    """Stored data cannot be used: NaN, constant, too small, corrupt."""


class SeedError(CryosamError):
    """Seeds are missing, outside the volume, or contradict the settings."""


class OutputError(CryosamError):
    """Results cannot be written, or exist already."""


class DeviceError(CryosamError):
    """The requested device does not exist or has no memory left."""


def _rebuild(kind: type[CryosamError], message: str, hint: str) -> CryosamError:
    return kind(message, hint=hint)
