"""Holding real answers against what `/openapi.json` says of them."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

from web import openapi

DOCUMENT = openapi.describe(server="http://127.0.0.1:8000", version="0")


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """What is wrong with a value by a schema of the document; none: it is as described."""
    whole = {**schema, "components": DOCUMENT["components"]}
    checker = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [f"{'/'.join(map(str, one.absolute_path))}: {one.message}" for one in checker.iter_errors(value)]


def answer_faults(path: str, method: str, response: Any) -> list[str]:
    """What is wrong with an answer: its status, its content type, its body. `path` as the document has it."""
    answers = DOCUMENT["paths"][path][method]["responses"]
    said = answers.get(str(response.status_code))
    if said is None:
        return [f"{method} {path} is not described as answering {response.status_code}"]
    if "$ref" in said:
        said = DOCUMENT["components"]["responses"][said["$ref"].rpartition("/")[2]]
    content = said.get("content")
    if content is None:
        return ["a body that is not described"] if response.content and response.status_code == 200 else []
    kind = response["Content-Type"].partition(";")[0]
    if kind not in content:
        return [f"content type {kind} is not described"]
    return faults(response.json(), content[kind]["schema"]) if "json" in kind else []


def body_faults(name: str, value: Any) -> list[str]:
    """What is wrong with a body by one of the named shapes."""
    return faults(value, {"$ref": f"#/components/schemas/{name}"})
