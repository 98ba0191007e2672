"""Errors for people: what happened, and what to do next."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or mishap that a person can mend: one sentence on what happened, one on what to do next.

    The command line prints it and exits with code 2; the page shows it.
    """

    def __init__(self, what: str, fix: str):
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix


class Unavailable(UserError):
    """What was asked for cannot be had now, through no mistake made on this machine: the app starts without it.

    `adapter` is the source of the adapter that it is about; "" when base or server are missing.
    """

    def __init__(self, what: str, fix: str, adapter: str = ""):
        super().__init__(what, fix)
        self.adapter = adapter
