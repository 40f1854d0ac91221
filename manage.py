#!/usr/bin/env python
"""Tessera's command line: `manage.py demo`, `ingest`, `retrain`, … (`manage.py help` lists all)."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cds.settings")
    if sys.argv[1:2] == ["demo"]:
        from cds.demo.environment import settle  # its data directory must be known before the settings load

        settle(sys.argv[2:])
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
