"""Checks of error responses."""

import httpx

from app.http.problem_kinds import PROBLEM_KINDS


def detail_of(response: httpx.Response, status: int) -> str:
    """Check an error response and its headers, and return the detail."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.json()["status"] == status
    return response.json()["detail"]


def assert_problem(response: httpx.Response, status: int, counted: str | None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"]
    _assert_body(response, counted)


def assert_client_error(response: httpx.Response, *, counted: str | None) -> None:
    assert 400 <= response.status_code < 500, response.text
    _assert_body(response, counted)


def _assert_body(response: httpx.Response, counted: str | None) -> None:
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["detail"]
    (kind,) = [kind for kind in PROBLEM_KINDS if kind.code == problem["code"]]
    assert (problem["type"], problem["title"]) == (kind.type, kind.title)
    assert problem["status"] == kind.status
    assert problem.get("counted") == counted
