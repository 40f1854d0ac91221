from django.db import migrations


class Migration(migrations.Migration):
    """The column stays for the release before this one, which may still be running; nothing of this one reads it."""

    dependencies = [
        ("hooks", "0012_cards_note_what_they_suggested"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[migrations.RemoveField(model_name="hookclient", name="clock_ahead_s")]
        ),
    ]
