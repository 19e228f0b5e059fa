"""The error trees: every error has a status and a code of its own, and all become problem details alike."""

import logging

import pytest
from litestar.exceptions import HTTPException, ValidationException

from service.errors import ServiceError
from service.image import ImageError
from service.routes import describe


def leaves(root: type[Exception]) -> list[type[Exception]]:
    below = [leaf for child in root.__subclasses__() for leaf in leaves(child)]
    return below or [root]


ALL = leaves(ServiceError) + leaves(ImageError)


def test_every_error_is_the_sender_s_or_a_matter_of_time() -> None:
    assert len(ALL) >= 14
    for error in ALL:
        assert error.status in {400, 404, 413, 415, 422, 429, 499, 503, 504}, error


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in ALL]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").islower() for code in codes)


def test_the_framework_s_errors_are_described_with_what_it_found() -> None:
    error = ValidationException("Validation failed", extra=[{"key": "top_k", "message": "not a number"}])
    assert describe(error).detail == "top_k: not a number"
    assert describe(HTTPException(status_code=418, detail="short and stout")).detail == "short and stout"


def test_a_fault_of_ours_is_logged_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        problem = describe(KeyError("/secret/path"))
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "secret" not in problem.detail
    assert "KeyError" in caplog.text
