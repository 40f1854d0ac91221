"""What can go wrong in the clinic.

ClinicError
├── NotAllowed        this person may not do this (403); the message names the permission
├── NotFound          no such thing, or the viewer may not know it exists (404)
├── Conflict          the state does not allow it (409): already promoted, already claimed …
├── Invalid           what was asked is malformed (400/422); the message says what to do
└── Unavailable       broker, database, model or hospital is out of reach (503)
"""


class ClinicError(Exception):
    """Base of every error raised by `cds`."""


class NotAllowed(ClinicError):
    """This person may not do this."""


class NotFound(ClinicError):
    """No such thing, or not for this viewer."""


class Conflict(ClinicError):
    """The state does not allow it."""


class Invalid(ClinicError):
    """Malformed, with the way out."""


class Unavailable(ClinicError):
    """Something we depend on is out of reach."""
