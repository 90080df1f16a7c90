"""The example of a Kubernetes work pool's template: what can be checked of it without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from prefect.utilities.templating import apply_values, find_placeholders

FILE = Path(__file__).resolve().parents[2] / "docs" / "operations" / "kubernetes-job.yaml"


def test_every_placeholder_is_a_variable_and_becomes_its_value() -> None:
    template: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(FILE.read_text(encoding="utf-8"))))
    assert set(template) == {"variables", "job_configuration"}
    variables = template["variables"]["properties"]
    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    assert used == set(variables), "Prefect resolves each, and refuses none"
    values = {name: about["default"] for name, about in variables.items()} | {"command": "prefect flow-run execute"}
    made: Any = apply_values(template["job_configuration"], values)
    job = made["job_manifest"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "the only policies of a Job are this and OnFailure"
    assert pod["containers"][0]["args"] == "prefect flow-run execute"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_no_secret_is_in_it() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "secretRef" in text
    assert "SECRET_ACCESS_KEY" not in text
