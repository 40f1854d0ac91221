from django.apps import AppConfig


class HooksConfig(AppConfig):
    name = "cds.hooks"
    label = "hooks"

    def ready(self) -> None:
        """Django tells of a connection taken from the pool in this way only."""
        from django.db.backends.signals import connection_created

        from cds.hooks import limiting

        connection_created.connect(limiting.apply_limit, dispatch_uid="hook statement limit")
