"""What can go wrong when speaking to a hospital.

    EhrError
    ├── Retriable            the same call may succeed later (time-out, 429, 503, connection lost)
    └── Permanent            the same call will fail again
        ├── BadResource      a FHIR resource that cannot be used, and why
        ├── BadUnit          a measured value whose unit is missing, unknown or of another kind
        ├── BadCodeMap       a site's table of local codes, with line and column (`ehr.code_map`)
        ├── BadInstance      a DICOM file that cannot be used, and why
        ├── OutOfTime        the time for all calls of a client together is over
        ├── TooLarge         a limit of `ehr.dicom.guard` or of the HTTP client was exceeded
        └── Refused          the server answered 4xx, or an address is not allowed
            └── SignInRefused   it was the authorisation server: nothing was asked of the FHIR server

Messages carry ids, clauses, units and limits; never a name, a note or a value of a patient.
"""


class EhrError(Exception):
    """Base of every error raised by `ehr`."""


class Retriable(EhrError):
    """The same call may succeed later."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Permanent(EhrError):
    """The same call will fail again."""


class BadResource(Permanent):
    """A FHIR resource that cannot be used."""


class BadUnit(Permanent):
    """A measured value cannot be brought to the canonical unit of its quantity."""


class BadInstance(Permanent):
    """A DICOM file that cannot be used."""


class OutOfTime(Permanent):
    """The time that a client may take for all its calls together is over; nothing more is asked."""


class TooLarge(Permanent):
    """A size limit was exceeded before anything was decoded."""


class Refused(Permanent):
    """The other side refused (`status`: its HTTP status), or the address is not one we may call."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class SignInRefused(Refused):
    """No token for us: the authorisation server refused, or answered with something else than a token."""
