"""POST /predict over real HTTP."""

import json
from typing import Any

import httpx
import pytest
from litestar import Request

from service.routes.predict import timeout_s
from service.settings import Settings
from tests.service.packages import jpeg
from tests.service.running import CLIENT, Server

RAW = {"content-type": "image/jpeg"}


def post_raw(server: Server, photo: bytes, query: str = "", **headers: str) -> httpx.Response:
    return CLIENT.post(f"{server.url}/predict{query}", content=photo, headers=RAW | headers)


def post_files(server: Server, *files: tuple[str, bytes], query: str = "") -> httpx.Response:
    return CLIENT.post(f"{server.url}/predict{query}", files=[("file", file) for file in files])


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_a_raw_photo_is_answered_with_ranked_labels(server: Server, colour: str) -> None:
    answer = post_raw(server, jpeg(colour)).json()
    assert (answer["model"], answer["version"]) == ("colours", 2)
    predictions = answer["predictions"]
    assert predictions[0]["label"] == colour
    assert predictions[0]["index"] == ["red", "green", "blue"].index(colour)
    assert predictions[0]["probability"] > predictions[1]["probability"]


def test_one_multipart_file_is_answered_as_a_raw_photo_is(server: Server) -> None:
    assert post_files(server, ("x.jpg", jpeg("blue"))).json() == post_raw(server, jpeg("blue")).json()


def test_a_part_with_too_many_headers_is_not_told_to_be_too_many_parts(server: Server) -> None:
    part = (
        b"--B\r\nContent-Disposition: form-data; name=file; filename=x\r\n" + b"X-A: b\r\n" * 9 + b"\r\nx\r\n--B--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=B"}
    problem = assert_problem(CLIENT.post(f"{server.url}/predict", content=part, headers=headers), 400, "bad_request")
    assert problem["detail"] == "The multipart body cannot be read: Maximum segment header count exceeded."


def test_more_files_than_are_taken_are_told_with_the_limit(server: Server) -> None:
    photos = [(f"{index}.jpg", jpeg("green")) for index in range(5)]
    assert len(post_files(server, *photos[:4]).json()["results"]) == 4
    problem = assert_problem(post_files(server, *photos), 400, "bad_request")
    assert problem["detail"] == (
        "The form has more than 4 parts (SOUS_MAX_FILES). Send the photos in several requests."
    )


def test_several_files_are_answered_in_order_and_a_bad_one_loses_no_other(server: Server) -> None:
    files = [("g.jpg", jpeg("green")), ("bad.txt", b"no image"), ("r.jpg", jpeg("red")), ("none.jpg", b"")]
    answer = post_files(server, *files).json()
    assert [result["file"] for result in answer["results"]] == ["g.jpg", "bad.txt", "r.jpg", "none.jpg"]
    green, text, red, empty = answer["results"]
    assert (green["predictions"][0]["label"], red["predictions"][0]["label"]) == ("green", "red")
    assert (text["error"]["code"], empty["error"]["code"]) == ("unsupported_image_type", "empty_image")
    assert "error" not in green
    assert "predictions" not in text


def test_a_photo_that_fails_only_in_the_slot_loses_no_other(server: Server) -> None:
    cut = jpeg("red", (400, 300))[:-400]
    answer = post_files(server, ("g.jpg", jpeg("green")), ("cut.jpg", cut)).json()
    assert answer["results"][0]["predictions"][0]["label"] == "green"
    assert answer["results"][1]["error"]["code"] == "undecodable_image"


def test_a_name_a_browser_encoded_comes_back_as_it_was(server: Server) -> None:
    answer = post_files(server, ('crème "b".jpg', jpeg("red")), ("x.jpg", jpeg("red"))).json()
    assert answer["results"][0]["file"] == 'crème "b".jpg'


def test_model_version_and_top_k_choose(server: Server) -> None:
    answer = post_raw(server, jpeg("red"), "?model=colours&version=1&top_k=1").json()
    assert (answer["model"], answer["version"], len(answer["predictions"])) == ("colours", 1, 1)
    assert post_raw(server, jpeg("red"), "?model=zebra").json()["model"] == "zebra"
    assert len(post_raw(server, jpeg("red")).json()["predictions"]) == 2  # the setting
    assert len(post_raw(server, jpeg("red"), "?top_k=1000").json()["predictions"]) == 3  # there are no more


def test_server_timing_names_every_stage(server: Server) -> None:
    stages = post_raw(server, jpeg("red")).headers["server-timing"].split(", ")
    times = {name: float(duration.removeprefix("dur=")) for name, duration in (stage.split(";") for stage in stages)}
    assert list(times) == ["queue", "decode", "infer", "total"]
    assert 0 < times["queue"] + times["decode"] + times["infer"] <= times["total"] + 0.03  # each is rounded


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?model=nobody", 404, "unknown_model"),
        ("?version=9", 404, "unknown_model"),
        ("?model=zebra&version=2", 404, "unknown_model"),
        ("?version=two", 400, "bad_request"),
        ("?version=" + "9" * 400, 404, "unknown_model"),
        ("?top_k=0", 400, "bad_request"),
        ("?top_k=1.5", 400, "bad_request"),
        ("?topk=1", 400, "bad_request"),
        ("?model=%ff", 404, "unknown_model"),
        ("?model=a&model=b", 404, "unknown_model"),
    ],
)
def test_a_query_that_means_nothing_is_refused(server: Server, query: str, status: int, code: str) -> None:
    assert_problem(post_raw(server, jpeg("red"), query), status, code)


PADDED_TIMEOUTS = [
    "000000001" + "0" * 320,
    "000000001" + "0" * 4300,
]  # too long for a float, an int


@pytest.mark.parametrize(("asked", "given"), [(None, 10), ("500", 0.5), ("10000", 10), ("60000", 10)])
def test_a_request_may_ask_for_less_time_and_not_for_more(asked: str | None, given: float) -> None:
    headers = [(b"x-request-timeout-ms", asked.encode())] if asked else []
    request: Request[Any, Any, Any] = Request({"type": "http", "headers": headers})  # type: ignore[typeddict-item]
    assert timeout_s(request, Settings()) == given


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "1.5", "٣", "9" * 30, *PADDED_TIMEOUTS])
def test_a_timeout_that_means_nothing_is_refused(server: Server, timeout: str) -> None:
    headers = [("content-type", "image/jpeg"), ("x-request-timeout-ms", timeout.encode())]
    response = CLIENT.post(f"{server.url}/predict", content=jpeg("red"), headers=headers)
    assert_problem(response, 400, "bad_request")


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded", "", "imag/"])
def test_a_body_of_another_type_is_refused(server: Server, kind: str) -> None:
    assert_problem(post_raw(server, jpeg("red"), **{"content-type": kind}), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--b\r\n"),
        ("multipart/form-data; boundary=", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nothing of the kind"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut short'),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nno header\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="\xff\r\n\r\n\r\n--b--\r\n'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="pic"\r\n\r\nx\r\n--b--\r\n'),
        ("multipart/form-data; boundary=\xe4\xff", b"--b--\r\n"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(server: Server, kind: str, body: bytes) -> None:
    response = CLIENT.post(f"{server.url}/predict", content=body, headers=[(b"content-type", kind.encode("latin-1"))])
    assert_problem(response, 400, "bad_request")


def test_white_space_before_a_boundary_is_any(server: Server) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + jpeg("red") + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data;\tboundary=b"}
    assert CLIENT.post(f"{server.url}/predict", content=body, headers=kind).json()["predictions"][0]["label"] == "red"


def test_more_files_than_allowed_are_refused(server: Server) -> None:
    assert_problem(post_files(server, *[("x.jpg", jpeg("red"))] * 5), 400, "bad_request")


def test_a_raw_body_above_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    assert_problem(post_raw(server, bytes(100_001)), 413, "request_too_large")


def test_a_body_of_unknown_length_is_refused_once_it_is_above_the_limit(server: Server) -> None:
    response = CLIENT.post(f"{server.url}/predict", content=iter([bytes(60_000)] * 3), headers=RAW)
    assert_problem(response, 413, "request_too_large")


def test_a_form_above_the_limit_is_refused_and_so_is_a_file_in_it(server: Server) -> None:
    assert_problem(post_files(server, ("x.jpg", bytes(300_000))), 413, "request_too_large")
    assert_problem(post_files(server, ("x.jpg", bytes(100_001))), 413, "too_many_bytes")


def test_an_empty_photo_is_refused_with_the_image_s_own_code(server: Server) -> None:
    assert_problem(post_raw(server, b""), 400, "empty_image")
    assert_problem(post_raw(server, jpeg("red", (400, 300))[:-400]), 422, "undecodable_image")


def test_the_connection_serves_on_after_a_refusal(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/predict", content=bytes(100_001), headers=RAW).status_code == 413
        assert client.post("/predict", content=jpeg("red"), headers=RAW).status_code == 200


def test_every_request_is_counted_by_status(server: Server) -> None:
    answered = server.metric('sous_requests_total{model="zebra",status="200"')
    refused = server.metric('sous_requests_total{model="zebra",status="400"')
    unknown = server.metric('sous_requests_total{model="",status="404"')
    post_raw(server, jpeg("red"), "?model=zebra")
    post_raw(server, b"", "?model=zebra")
    post_raw(server, jpeg("red"), "?model=nobody")
    assert server.metric('sous_requests_total{model="zebra",status="200"') == answered + 1
    assert server.metric('sous_requests_total{model="zebra",status="400"') == refused + 1
    assert server.metric('sous_requests_total{model="",status="404"') == unknown + 1


def test_the_schema_has_the_body_the_answers_and_the_errors(server: Server) -> None:
    operation = CLIENT.get(f"{server.url}/schema").json()["paths"]["/predict"]["post"]
    assert operation["requestBody"]["content"].keys() == {"multipart/form-data", "image/*"}
    assert {"model", "version", "top_k", "X-Request-Timeout-Ms"} == {each["name"] for each in operation["parameters"]}
    assert operation["responses"]["200"]["headers"].keys() == {"Server-Timing"}
    assert operation["responses"]["429"]["headers"].keys() == {"Retry-After"}
    assert operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"]["minItems"] == 1
    assert "Predictions" in json.dumps(operation["responses"]["200"])
