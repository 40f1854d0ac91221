"""The three roles as groups with their permissions, so that a fresh installation has them."""

from django.db import migrations

ROLES = {
    "clinician": [
        ("patients", "patient", "view_patient", "Can view patient"),
        ("patients", "patient", "run_score", "Can ask for a fresh score"),
        ("patients", "patient", "respond", "Can acknowledge, override or snooze a score"),
    ],
    "admin": [
        ("registry", "modelversion", "view_modelversion", "Can view model version"),
        ("registry", "modelversion", "train", "Can start retraining runs"),
        ("registry", "modelversion", "request_promotion", "Can ask for a model to be promoted"),
        ("audit", "auditevent", "view_auditevent", "Can view audit event"),
    ],
    "approver": [
        ("registry", "modelversion", "view_modelversion", "Can view model version"),
        ("registry", "modelversion", "approve", "Can approve a promotion asked for by somebody else"),
    ],
}


def make_roles(apps, schema_editor):
    Group = apps.get_model("auth", "Group")
    Permission = apps.get_model("auth", "Permission")
    ContentType = apps.get_model("contenttypes", "ContentType")
    for role, permissions in ROLES.items():
        group, _ = Group.objects.get_or_create(name=role)
        for app_label, model, codename, name in permissions:
            kind, _ = ContentType.objects.get_or_create(app_label=app_label, model=model)
            permission, _ = Permission.objects.get_or_create(
                content_type=kind, codename=codename, defaults={"name": name}
            )
            group.permissions.add(permission)


class Migration(migrations.Migration):
    # Not on registry, which lies above: its permissions are made here by name when they are not there yet.
    dependencies = [
        ("patients", "0002_imported_records_and_permissions"),
        ("audit", "0001_initial"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [migrations.RunPython(make_roles, migrations.RunPython.noop)]
