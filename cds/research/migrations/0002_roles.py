"""Who exports cannot re-link: admins get the one permission, approvers the other."""

from django.db import migrations

ROLES = {
    "admin": ("export", "Can export de-identified research copies"),
    "approver": ("relink", "Can tell whose pseudonym in a research copy it is"),
}


def extend_roles(apps, schema_editor):
    Group = apps.get_model("auth", "Group")
    Permission = apps.get_model("auth", "Permission")
    ContentType = apps.get_model("contenttypes", "ContentType")
    kind, _ = ContentType.objects.get_or_create(app_label="research", model="researchexport")
    for role, (codename, name) in ROLES.items():
        group, _ = Group.objects.get_or_create(name=role)
        permission, _ = Permission.objects.get_or_create(
            content_type=kind, codename=codename, defaults={"name": name}
        )
        group.permissions.add(permission)


class Migration(migrations.Migration):
    dependencies = [
        ("research", "0001_initial"),
        ("patients", "0003_roles"),
    ]
    operations = [migrations.RunPython(extend_roles, migrations.RunPython.noop)]
