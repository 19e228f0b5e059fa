from pathlib import Path

import pytest

from perf.hpa import DOWN, UP, Hpa, Policy, Rules
from perf.manifest import ManifestError, from_manifest, read_hpa

K8S = Path(__file__).parents[2] / "deploy/k8s/overlays"


def manifest(**spec: object) -> dict[str, object]:
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 40}}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "spec": {"maxReplicas": 5, "metrics": [cpu], **spec},
    }


def test_what_a_manifest_leaves_out_has_the_defaults_of_kubernetes() -> None:
    assert from_manifest(manifest()) == Hpa("cpu", 40, 1, 5, up=UP, down=DOWN)


def test_behavior_is_read_in_both_directions() -> None:
    policies = [{"type": "Pods", "value": 2, "periodSeconds": 30}]
    down = {"policies": policies, "stabilizationWindowSeconds": 60, "selectPolicy": "Min"}
    hpa = from_manifest(manifest(behavior={"scaleDown": down, "scaleUp": {"selectPolicy": "Disabled"}}))
    assert hpa.down == Rules((Policy("Pods", 2, 30),), 60, "Min")
    assert hpa.up == Rules(UP.policies, 0, "Disabled")


@pytest.mark.parametrize(("quantity", "value"), [("8", 8.0), (8, 8.0), ("500m", 0.5), ("2k", 2000.0)])
def test_a_pods_metric_is_a_quantity(quantity: object, value: float) -> None:
    pods = {
        "metric": {"name": "sous_queue_images"},
        "target": {"type": "AverageValue", "averageValue": quantity},
    }
    hpa = from_manifest(manifest(metrics=[{"type": "Pods", "pods": pods}]))
    assert (hpa.metric, hpa.target) == ("sous_queue_images", value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "Deployment", "apiVersion": "apps/v1"},
        manifest(metrics=[]),
        manifest(metrics=[{"type": "External"}]),
        {key: value for key, value in manifest().items() if key != "spec"},
        [],
        None,
    ],
)
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(ManifestError):
        from_manifest(wrong)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nothing\.yaml"):
        read_hpa(tmp_path / "nothing.yaml")


def test_the_deployed_autoscalers_have_the_figures_of_the_study() -> None:
    cpu, queue = read_hpa(K8S / "scaled/hpa.yaml"), read_hpa(K8S / "scaled-queue/hpa.yaml")
    assert (cpu.metric, cpu.target, cpu.min_replicas, cpu.max_replicas) == ("cpu", 40, 1, 5)
    assert (queue.metric, queue.min_replicas, queue.max_replicas) == ("sous_queue_images", 1, 5)
