import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('hooks', '0002_origins_and_prefetch_read'),
        ('patients', '0004_bulk_exports'),
    ]

    operations = [
        migrations.AddField('hookclient', 'fhir_servers', models.JSONField(default=list)),
        migrations.DeleteModel('PrefetchRead'),  # what it held is read again at the next call
        migrations.CreateModel(
            name='PrefetchRead',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('service', models.CharField(max_length=120)),
                ('version', models.UUIDField()),
                ('digest', models.CharField(max_length=64)),
                ('length', models.PositiveIntegerField()),
                ('missing', models.JSONField(default=list)),
                ('revision', models.PositiveBigIntegerField()),
                ('patient', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='prefetches_read', to='patients.patient')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('patient', 'service'), name='prefetch_read_once_per_service')],
            },
        ),
        migrations.AddField('cardshown', 'patient', models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='patients.patient')),
        migrations.AddField('cardshown', 'outcome', models.CharField(blank=True, default='', max_length=80), preserve_default=False),
        migrations.AddField('cardshown', 'user', models.CharField(blank=True, default='', max_length=90), preserve_default=False),
        migrations.AddField('cardshown', 'indicator', models.CharField(blank=True, default='', max_length=10), preserve_default=False),
        migrations.AddField('cardshown', 'category', models.CharField(blank=True, default='', max_length=10), preserve_default=False),
        migrations.AddIndex(
            model_name='cardshown',
            index=models.Index(condition=models.Q(('indicator__in', ['warning', 'critical'])), fields=['patient', 'user', '-shown_at'], name='card_alerts'),
        ),
    ]
