"""The database itself keeps the audit trail append-only, whoever connects to it."""

from django.db import migrations

SQLITE = [
    """CREATE TRIGGER audit_event_no_update BEFORE UPDATE ON audit_auditevent
       BEGIN SELECT RAISE(ABORT, 'audit events are never changed'); END""",
    """CREATE TRIGGER audit_event_no_delete BEFORE DELETE ON audit_auditevent
       BEGIN SELECT RAISE(ABORT, 'audit events are never deleted'); END""",
    """CREATE TRIGGER audit_chain_only_grows BEFORE UPDATE ON audit_auditchain
       WHEN NEW.number <> OLD.number OR NEW.length <= OLD.length
       BEGIN SELECT RAISE(ABORT, 'the head of an audit chain only moves forward'); END""",
    """CREATE TRIGGER audit_chain_no_delete BEFORE DELETE ON audit_auditchain
       BEGIN SELECT RAISE(ABORT, 'the head of an audit chain is never deleted'); END""",
]
SQLITE_UNDO = [
    "DROP TRIGGER IF EXISTS audit_event_no_update",
    "DROP TRIGGER IF EXISTS audit_event_no_delete",
    "DROP TRIGGER IF EXISTS audit_chain_only_grows",
    "DROP TRIGGER IF EXISTS audit_chain_no_delete",
]
POSTGRESQL = [
    """CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN RAISE EXCEPTION 'the audit trail is append-only (% on %)', TG_OP, TG_TABLE_NAME; END $$""",
    """CREATE TRIGGER audit_event_no_change BEFORE UPDATE OR DELETE ON audit_auditevent
       FOR EACH ROW EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_event_no_truncate BEFORE TRUNCATE ON audit_auditevent
       FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_chain_only_grows BEFORE UPDATE ON audit_auditchain
       FOR EACH ROW WHEN (NEW.number <> OLD.number OR NEW.length <= OLD.length)
       EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_chain_no_delete BEFORE DELETE ON audit_auditchain
       FOR EACH ROW EXECUTE FUNCTION audit_refuse()""",
    """CREATE TRIGGER audit_chain_no_truncate BEFORE TRUNCATE ON audit_auditchain
       FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
]
POSTGRESQL_UNDO = [
    "DROP TRIGGER IF EXISTS audit_event_no_change ON audit_auditevent",
    "DROP TRIGGER IF EXISTS audit_event_no_truncate ON audit_auditevent",
    "DROP TRIGGER IF EXISTS audit_chain_only_grows ON audit_auditchain",
    "DROP TRIGGER IF EXISTS audit_chain_no_delete ON audit_auditchain",
    "DROP TRIGGER IF EXISTS audit_chain_no_truncate ON audit_auditchain",
    "DROP FUNCTION IF EXISTS audit_refuse()",
]
STATEMENTS = {"sqlite": (SQLITE, SQLITE_UNDO), "postgresql": (POSTGRESQL, POSTGRESQL_UNDO)}


def guard(apps, schema_editor):
    AuditChain = apps.get_model("audit", "AuditChain")
    for number in range(16):
        AuditChain.objects.get_or_create(number=number)
    for statement in STATEMENTS[schema_editor.connection.vendor][0]:
        schema_editor.execute(statement, params=None)  # the statements hold per cent signs


def unguard(apps, schema_editor):
    for statement in STATEMENTS[schema_editor.connection.vendor][1]:
        schema_editor.execute(statement, params=None)  # the statements hold per cent signs


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]
    operations = [migrations.RunPython(guard, unguard)]
