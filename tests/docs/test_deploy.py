"""deploy/ and the runbooks: each file parses, and names only what there is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line.main import COMMANDS
from duckmesh.errors import ErrorCode
from duckmesh.metrics_reference import metric_names
from duckmesh.settings import FIELDS, Settings, load_settings, variable_of
from http_shim.openapi import openapi_document

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yml"
DASHBOARD = DEPLOY / "grafana/duckmesh.json"
YAML = sorted(path for path in DEPLOY.rglob("*.y*ml"))
KUBERNETES = [path for path in YAML if path.parent.name == "kubernetes"]
RUNBOOKS = sorted((ROOT / "docs/runbooks").glob("[a-z]*.md"))
METRIC = re.compile(r"\bduckmesh_[a-z_]+")
CODE_LABEL = re.compile(r'code="([A-Z_]+)"')
RECORDED = re.compile(r"\bduckmesh:[a-z0-9_]+:[a-z0-9_]+")

each_file = pytest.mark.parametrize(
    "path", [*YAML, DASHBOARD], ids=lambda path: str(path.relative_to(ROOT))
)


def documents(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def named(path: Path, kind: str) -> list[dict[str, Any]]:
    return [each for each in documents(path) if each.get("kind") == kind]


def rules() -> Iterator[dict[str, Any]]:
    for group in documents(RULES)[0]["groups"]:
        yield from group["rules"]


@each_file
def test_every_file_parses_and_every_metric_in_it_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) if path.suffix == ".json" else documents(path)
    spoken = set(METRIC.findall(text)) - {"duckmesh_"}
    assert spoken <= metric_names(), spoken - metric_names()
    assert set(CODE_LABEL.findall(text)) <= {code.value for code in ErrorCode}


def test_there_are_scrapes_rules_alerts_and_a_dashboard() -> None:
    found = list(rules())
    assert len([each for each in found if "record" in each]) >= 5
    assert len([each for each in found if "alert" in each]) >= 8
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def test_alerts_use_recorded_levels_that_are_recorded() -> None:
    recorded = {each["record"] for each in rules() if "record" in each}
    used = {name for each in rules() for name in RECORDED.findall(each["expr"])}
    assert used <= recorded


def test_every_alert_names_a_severity_a_summary_and_a_runbook_that_is_there() -> None:
    for rule in rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert (ROOT / rule["annotations"]["runbook"]).is_file(), rule["alert"]


def test_expressions_have_their_brackets_in_pairs() -> None:
    for rule in rules():
        for opening, closing in ("()", "[]", "{}"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing), rule


def test_scrapes_and_probes_ask_paths_that_are_served() -> None:
    served = set(openapi_document()["paths"]) | {"/metrics", "/health", "/ready"}
    for path in YAML:
        for asked in re.findall(r"(?:metrics_path|path): (/[\w/]+)", path.read_text("utf-8")):
            assert asked in served, f"{path}: {asked}"


def test_manifests_give_settings_that_there_are() -> None:
    known = {variable_of(name) for name in FIELDS}
    given = set(re.findall(r"\bDUCKMESH_[A-Z_0-9]+", "".join(p.read_text("utf-8") for p in YAML)))
    assert given <= known, given - known


def test_the_settings_of_the_manifests_are_accepted_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = DEPLOY / "kubernetes/settings.yaml"
    values = named(settings, "ConfigMap")[0]["data"] | named(settings, "Secret")[0]["stringData"]
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_settings(), Settings)


@pytest.mark.parametrize("component", ["serve", "coordinate", "maintain"])
def test_each_component_has_its_autoscaler_budget_and_probes(component: str) -> None:
    path = DEPLOY / f"kubernetes/{component}.yaml"
    (deployment,) = named(path, "Deployment")
    (scaler,) = named(path, "HorizontalPodAutoscaler")
    assert named(path, "PodDisruptionBudget")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["spec"]["maxReplicas"] > scaler["spec"]["minReplicas"] >= 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == component
    assert {"readinessProbe", "livenessProbe", "resources"} <= set(container)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels


def test_every_container_runs_a_command_that_there_is() -> None:
    for path in KUBERNETES:
        for document in documents(path):
            pod = document.get("spec", {}).get("template", {}).get("spec", {})
            for container in pod.get("containers", []):
                assert container["args"][0] in COMMANDS


def test_the_collector_feeds_each_pipeline_from_what_it_defines() -> None:
    (collector,) = documents(DEPLOY / "otel/collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_a_runbook_says_signs_checks_and_acts_with_what_there_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[:3] == ["Signs", "Look", "Act"], page
    spoken = set(METRIC.findall(text))
    tables = set(re.findall(r"CREATE TABLE (\w+)", (ROOT / "migrations/schema.sql").read_text()))
    assert spoken - {"duckmesh_system", "duckmesh_now"} - tables <= metric_names(), page
    for command in re.findall(r"^duckmesh ([a-z-]+)", text, re.MULTILINE):
        assert command in COMMANDS, f"{page}: {command}"
    for codes in re.findall(r"`([A-Z]+_[A-Z_]+)`", text):
        variables = {variable_of(name) for name in FIELDS}
        assert codes in {code.value for code in ErrorCode} | variables, f"{page}: {codes}"


def test_every_runbook_is_listed() -> None:
    index = (ROOT / "docs/runbooks/README.md").read_text(encoding="utf-8")
    assert {f"({page.name})" for page in RUNBOOKS} == set(re.findall(r"\([a-z-]+\.md\)", index))
