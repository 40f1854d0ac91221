"""The chain alone needs no index: (chain, sequence), which is unique, begins with it.

By SQL and not by AlterField: SQLite would make the table anew for that, and lose the triggers that keep it.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0002_append_only")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    "DROP INDEX IF EXISTS audit_auditevent_chain_id_ce5ff5d4",
                    "CREATE INDEX audit_auditevent_chain_id_ce5ff5d4 ON audit_auditevent (chain_id)",
                )
            ],
            state_operations=[
                migrations.AlterField(
                    "auditevent",
                    "chain",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=models.PROTECT,
                        related_name="events",
                        to="audit.auditchain",
                    ),
                )
            ],
        )
    ]
