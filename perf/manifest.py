"""HorizontalPodAutoscaler manifests (autoscaling/v2) read into the rule of `perf.hpa`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from perf.hpa import DOWN, UP, Hpa, Policy, Rules


class ManifestError(ValueError):
    """A manifest that is no HorizontalPodAutoscaler of autoscaling/v2 with one metric."""


def read_hpa(path: Path) -> Hpa:
    """The HorizontalPodAutoscaler in `path`.

    Raises:
        ManifestError: no such file, or something else in it.
    """
    try:
        return from_manifest(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ManifestError) as error:
        raise ManifestError(f"{path}: {error}") from error


def from_manifest(manifest: Mapping[str, Any]) -> Hpa:
    """The rule of one manifest, its defaults filled in as Kubernetes does.

    Raises:
        ManifestError: another kind, or not exactly one metric of type Resource (utilisation) or Pods (average value).
    """
    try:
        if (manifest["apiVersion"], manifest["kind"]) != ("autoscaling/v2", "HorizontalPodAutoscaler"):
            raise ManifestError("no HorizontalPodAutoscaler of autoscaling/v2")
        spec = manifest["spec"]
        [metric] = spec["metrics"]
        behavior = spec.get("behavior", {})
        up, down = _rules(behavior.get("scaleUp", {}), UP), _rules(behavior.get("scaleDown", {}), DOWN)
        return Hpa(*_target(metric), spec.get("minReplicas", 1), spec["maxReplicas"], up=up, down=down)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(
            f"unusable HorizontalPodAutoscaler ({error!r}); one metric and maxReplicas are needed"
        ) from error


def _target(metric: Mapping[str, Any]) -> tuple[str, float]:
    if metric["type"] == "Resource":
        return metric["resource"]["name"], float(metric["resource"]["target"]["averageUtilization"])
    if metric["type"] == "Pods":
        return metric["pods"]["metric"]["name"], _quantity(str(metric["pods"]["target"]["averageValue"]))
    raise ManifestError(f"metric type {metric['type']} is not supported; use Resource or Pods")


def _quantity(text: str) -> float:
    """A Kubernetes quantity: 8, 500m, 2k."""
    scale = {"m": 0.001, "k": 1000.0}.get(text[-1])
    return float(text[:-1]) * scale if scale else float(text)


def _rules(given: Mapping[str, Any], default: Rules) -> Rules:
    policies = tuple(Policy(p["type"], p["value"], p["periodSeconds"]) for p in given.get("policies", []))
    return Rules(
        policies or default.policies,
        given.get("stabilizationWindowSeconds", default.window_s),
        given.get("selectPolicy", default.select),
    )
