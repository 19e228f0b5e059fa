"""Probes, metrics, the models' evidence, the page; and what every route does with what it does not know."""

import pytest

from tests.service.packages import COLOURS, jpeg
from tests.service.running import CLIENT, Server


def test_probes_answer(server: Server) -> None:
    assert CLIENT.get(f"{server.url}/health/live").json() == {"status": "live"}
    assert CLIENT.get(f"{server.url}/health/ready").json() == {"status": "ready"}
    for probe in ("live", "ready"):
        response = CLIENT.head(f"{server.url}/health/{probe}")
        assert (response.status_code, response.content) == (200, b"")


def test_models_lists_the_default_version_of_each_and_which_there_are(server: Server) -> None:
    answer = CLIENT.get(f"{server.url}/models").json()
    assert answer["default"] == "colours"
    assert [(model["name"], model["version"]) for model in answer["models"]] == [("colours", 2), ("zebra", 1)]
    assert [model["versions"] for model in answer["models"]] == [[1, 2], [1]]
    assert answer["models"][0]["labels"] == list(COLOURS)
    assert answer["models"][0]["preprocessing"]["height"] == 24


def test_a_model_shows_contract_plan_and_evidence_of_every_version(server: Server) -> None:
    answer = CLIENT.get(f"{server.url}/models/colours").json()
    assert (answer["name"], answer["default_version"]) == ("colours", 2)
    assert [version["version"] for version in answer["versions"]] == [1, 2]
    first = answer["versions"][0]
    assert first["plan"].keys() == {"slots", "intra_op_threads", "max_batch_size", "origin", "image_ms"}
    assert first["report"]["files"].keys() == {"model.onnx", "golden.npz"}
    assert first["metadata"]["evaluation"] == {"photos": 8, "agreement": 1.0}
    assert first["golden_drift"] < 1e-3


def test_metrics_are_prometheus_text_and_count_stages_and_batches(server: Server) -> None:
    runs = server.metric('sous_batch_images_count{model="zebra"')
    CLIENT.post(f"{server.url}/predict?model=zebra", content=jpeg("red"), headers={"content-type": "image/jpeg"})
    response = CLIENT.get(f"{server.url}/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert server.metric('sous_batch_images_count{model="zebra"') == runs + 1
    for stage in ("queue", "decode", "infer"):
        assert server.metric(f'sous_stage_seconds_count{{model="zebra",stage="{stage}"') > 0
    assert server.metric("sous_queue_images") == 0


def test_the_page_has_a_form_with_a_button_for_each_model(server: Server) -> None:
    response = CLIENT.get(server.url)
    assert response.headers["content-type"].startswith("text/html")
    for model in ("colours", "zebra"):
        assert f'formaction="/predict?model={model}"' in response.text


def test_the_schema_names_every_route_and_the_problems_it_may_answer(server: Server) -> None:
    paths = CLIENT.get(f"{server.url}/schema").json()["paths"]
    answers = {path: each["responses"] for path, methods in paths.items() for each in methods.values()}
    problems = {path: {int(status) for status in each if status != "200"} for path, each in answers.items()}
    assert problems == {
        "/predict": {400, 404, 413, 415, 422, 429, 503, 504},
        "/models": {503},
        "/models/{name}": {400, 404, 503},
        "/health/live": set(),
        "/health/ready": {503},
        "/metrics": set(),
    }
    kinds = {
        kind for each in answers.values() for status, one in each.items() if status != "200" for kind in one["content"]
    }
    assert kinds == {"application/problem+json"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/models/nobody", 404, "unknown_model"),
        ("GET", "/models/a/b", 404, "not_found"),
        ("GET", "/%ff%00", 404, "not_found"),
        ("GET", "/schema/nothing", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("PUT", "/predict", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("PATCH", "/models", 405, "method_not_allowed"),
    ],
)
def test_what_no_route_takes_is_a_problem(server: Server, method: str, path: str, status: int, code: str) -> None:
    response = CLIENT.request(method, server.url + path)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert (response.json()["status"], response.json()["code"]) == (status, code)
    if status == 405:
        assert response.headers["allow"]
