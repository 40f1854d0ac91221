"""Admins write model cards, in a fresh installation and in one that is updated."""

from django.db import migrations


def extend_admins(apps, schema_editor):
    Group = apps.get_model("auth", "Group")
    Permission = apps.get_model("auth", "Permission")
    ContentType = apps.get_model("contenttypes", "ContentType")
    kind, _ = ContentType.objects.get_or_create(app_label="registry", model="modelversion")
    permission, _ = Permission.objects.get_or_create(
        content_type=kind, codename="edit_card", defaults={"name": "Can write a model's card"}
    )
    admins, _ = Group.objects.get_or_create(name="admin")
    admins.permissions.add(permission)


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0002_model_card"),
        ("patients", "0003_roles"),
    ]
    operations = [migrations.RunPython(extend_admins, migrations.RunPython.noop)]
