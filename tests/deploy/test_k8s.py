"""The manifests as `kubectl kustomize` renders them: by the schemas of Kubernetes, and by what they are for."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from perf.replica import METRIC

OVERLAYS = Path(__file__).parents[2] / "deploy/k8s/overlays"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())
OLDEST = "1.25"  # the first with every version used here and none of the beta ones

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl; deploy/suite-packages brings one")


@cache
def rendered(overlay: str) -> dict[str, Any]:
    command = ["kubectl", "kustomize", str(OVERLAYS / overlay)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {document["kind"]: document for document in yaml.safe_load_all(out)}


def pod(overlay: str) -> dict[str, Any]:
    template: dict[str, Any] = rendered(overlay)["Deployment"]["spec"]["template"]
    return template


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("overlay", NAMES)
def test_every_overlay_meets_the_schemas(overlay: str, version: str) -> None:
    for document in rendered(overlay).values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = {**rendered("single")["Deployment"], "spec": {"replicas": "one"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


@pytest.mark.parametrize("overlay", NAMES)
def test_every_selector_finds_the_pods(overlay: str) -> None:
    labels = pod(overlay)["metadata"]["labels"].items()
    spec = {kind: document.get("spec", {}) for kind, document in rendered(overlay).items()}
    spread = [part["labelSelector"] for part in pod(overlay)["spec"]["topologySpreadConstraints"]]
    selectors = [
        spec["Service"]["selector"],
        spec["Deployment"]["selector"]["matchLabels"],
        spec["PodDisruptionBudget"]["selector"]["matchLabels"],
        spec["NetworkPolicy"]["podSelector"]["matchLabels"],
        *(part["matchLabels"] for part in spread),
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)


def test_replicas_are_fixed_where_nothing_scales_and_left_to_the_autoscaler_where_it_does() -> None:
    replicas = {name: rendered(name)["Deployment"]["spec"].get("replicas") for name in NAMES}
    assert replicas == {"single": 1, "balanced": 5, "scaled": None, "scaled-queue": None}
    for name in NAMES:
        assert ("HorizontalPodAutoscaler" in rendered(name)) == (replicas[name] is None)


@pytest.mark.parametrize("overlay", ["scaled", "scaled-queue"])
def test_the_autoscaler_scales_the_deployment(overlay: str) -> None:
    target = rendered(overlay)["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = rendered(overlay)["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }


def test_probes_ask_the_routes_they_are_for() -> None:
    [container] = pod("single")["spec"]["containers"]
    routes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert routes == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }


def test_the_pod_has_no_privilege_and_nothing_to_write_to_but_tmp() -> None:
    spec = pod("single")["spec"]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_a_pod_has_time_to_drain_before_it_is_killed() -> None:
    spec = pod("single")["spec"]
    delay_ms = int({entry["name"]: entry["value"] for entry in spec["containers"][0]["env"]}["SOUS_DRAIN_DELAY_MS"])
    request_s = 10  # SOUS_REQUEST_TIMEOUT_MS by default
    assert spec["terminationGracePeriodSeconds"] > delay_ms / 1000 + request_s


def test_a_cpu_request_is_set_since_the_autoscaler_divides_by_it() -> None:
    resources = pod("scaled")["spec"]["containers"][0]["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"] == "1"
    assert set(resources["limits"]) == {"cpu", "memory"}
    assert resources["requests"]["memory"] == "384Mi"  # what a replica takes with all three models, and room


@pytest.mark.parametrize("overlay", NAMES)
def test_prometheus_is_told_where_the_metrics_are(overlay: str) -> None:
    annotations = pod(overlay)["metadata"]["annotations"]
    [port] = pod(overlay)["spec"]["containers"][0]["ports"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == (
        str(port["containerPort"]),
        "/metrics",
    )


@pytest.mark.parametrize("overlay", NAMES)
def test_one_pod_at_a_time_may_go_and_pods_spread_over_nodes_and_zones(overlay: str) -> None:
    assert rendered(overlay)["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    spread = {part["topologyKey"]: part for part in pod(overlay)["spec"]["topologySpreadConstraints"]}
    assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(part["maxSkew"] == 1 for part in spread.values())


@pytest.mark.parametrize("overlay", NAMES)
def test_only_http_comes_in_and_nothing_goes_out(overlay: str) -> None:
    spec = rendered(overlay)["NetworkPolicy"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert [port["port"] for rule in spec["ingress"] for port in rule["ports"]] == ["http"]
    assert not spec.get("egress")
    assert pod(overlay)["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_queue_variant_follows_a_metric_that_the_service_has() -> None:
    [metric] = rendered("scaled-queue")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    rule = (OVERLAYS / "scaled-queue/adapter-rule.yaml").read_text()
    named = metric["pods"]["metric"]["name"]
    assert named in rule
    assert METRIC in rule
