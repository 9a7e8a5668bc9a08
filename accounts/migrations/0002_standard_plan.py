from django.db import migrations


def add_plan(apps, schema_editor):
    # A user without a plan has the same limit (accounts.models.DEFAULT_QUOTA); this one is there to be assigned.
    apps.get_model("accounts", "Plan").objects.get_or_create(
        name="Standard", defaults={"quota": 5_000_000_000}
    )


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    operations = [migrations.RunPython(add_plan, migrations.RunPython.noop)]
