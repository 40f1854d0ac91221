"""What the hooks' tests stand on: an EHR that may call, an active model, signed calls."""

from tests.cds.hooks.conftest import call, hook_client, version  # noqa: F401  (fixtures)
