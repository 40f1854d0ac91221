"""Black-box conformance of a CDS Hooks 2.0 service: HTTP only, any base address.

`python -m tests.conformance URL --issuer ISS --key private.jwk` judges any service that has registered that
issuer; `--open` one that asks for no token. Rows are numbered by the rules they hold a service to: discovery
1-4, prefetch 5-7, request 8-11, response 12-16, feedback 17, security 18-22, time 23, launches 24-29, public
keys 30.
"""
