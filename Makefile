# Shortcuts for developers; each line is what you would type.
.PHONY: demo test lint types walls bench

demo:
	.venv/bin/python manage.py demo

test:
	.venv/bin/python -m pytest

lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

types:
	.venv/bin/mypy

walls:
	.venv/bin/lint-imports

bench:
	.venv/bin/python -m benchmarks
