"""Cards that show a number know by it which version answered; the others of that time stay without one."""

from django.db import migrations
from django.db.models import OuterRef, Subquery


def fill(apps, schema_editor):
    cards = apps.get_model("hooks", "CardShown").objects.filter(version=None).exclude(prediction=None)
    predictions = apps.get_model("risk", "RiskPrediction").objects.filter(pk=OuterRef("prediction"))
    cards.update(version=Subquery(predictions.values("assessment__version")[:1]))


class Migration(migrations.Migration):
    dependencies = [("hooks", "0004_cards_by_version")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
