"""The bodies of POST /events that are not JSON: a list of names is counted, and another format is rejected."""

import base64
import subprocess
from collections.abc import Callable

import httpx
import pytest

from tests.http.problems import assert_problem
from tests.support.servers import AS_ADMIN, Process, RunningApp

FILE = "app/http/name_lists.py"
FORM = "application/x-www-form-urlencoded"
TYPES = ["", "text/plain", "text/plain;charset=UTF-8", "TEXT/PLAIN", "application/octet-stream", FORM]
TYPES += ["application/json", "application/json; charset=utf-8", "application/x-ndjson", "application/cloudevents+json"]
BOM = b"\xef\xbb\xbf"

LISTS = {
    b"signup": ["signup"],
    b"signup\nlogin\r\nsignup\n": ["signup", "login", "signup"],
    b"\n\n  \n404\nnull\ntrue\n": ["404", "null", "true"],
    b"<3\n-1\n": ["<3", "-1"],
    "caf\u00e9\nR&D\n50%\nexit\nWarn\nevent 1\nevents.new\n--dry-run".encode(): [
        "caf\u00e9", "R&D", "50%", "exit", "Warn", "event 1", "events.new", "--dry-run",
    ],
    b"a=1\nb=2%20": ["a=1", "b=2%20"],
    b"event:signup": ["event:signup"],
    b"name:x\nevents:y": ["name:x", "events:y"],
    BOM + b"a\n" + BOM + b"b\n" + BOM + b"\n" + BOM + BOM + b"c": ["a", "b", "c"],
    b"": [],
}  # fmt: skip
OTHER_FORMATS = {
    "a JSON string": b'"x"',
    "JSON strings": b'"x"\n"y"',
    "a number": b" 17\n",
    "a fraction": b"-1.5e3",
    "null": b"null",
    "true": b"true",
    "XML": b"<?xml version='1.0'?>\n<events/>",
    "an element": b"<event>x</event>",
    "HTML": b"<!doctype html>",
    "YAML": b"---\nevents: [a]",
    "a YAML list": b"- signup\n- login",
    "a YAML map": b"events:\n  - a",
    "a YAML map of names": b"event: signup",
    "CSV": b"event,by\nsignup,3",
    "CSV with semicolons": b"eventName;by\nsignup;3",
    "base64": base64.b64encode(b'[{"event": "a"}]'),
    "base64 without padding": base64.b64encode(b'{"signup": 3}').rstrip(b"="),
    "base64 in lines": base64.encodebytes(b'[{"event": "a"}, {"event": "b"}, {"event": "c"}, {"event": "d"}, 1]'),
}
FORMS = {"one field": b"event=signup", "fields": b"event=signup&by=3", "an encoded name": b"sign%20up"}
OTHER_TYPES = [
    "multipart/form-data; boundary=x",
    "application/xml",
    "text/xml",
    "image/svg+xml",
    "text/csv",
    "text/html",
]
OTHER_TYPES += ["application/yaml", "text/yaml", "application/x-yaml", "application/protobuf", "x", "image/png"]


async def post(client: httpx.AsyncClient, body: bytes, content_type: str) -> httpx.Response:
    return await client.post("/events", content=body, headers={"Content-Type": content_type} if content_type else {})


@pytest.mark.fails_on_mutant(
    "a name is a form", FILE, "is_one and media_type == _FORM_TYPE and _FORM", "media_type == _FORM_TYPE and _FORM"
)
@pytest.mark.fails_on_mutant("a name is YAML", FILE, ":(\\s|$)", ":")
@pytest.mark.fails_on_mutant("a name is base64", FILE, "bool(_JSON_BATCH.match(", "bool((")
@pytest.mark.fails_on_mutant("byte order marks are kept", FILE, 'line.lstrip("\\ufeff")', "line")
async def test_a_list_of_names_is_counted_with_each_type_of_a_list(client: httpx.AsyncClient) -> None:
    for body, names in LISTS.items():
        for content_type in TYPES:
            response = await post(client, body, content_type)
            assert response.status_code == 200, (body, content_type, response.text)
            assert response.json()["accepted"] == len(names)
            assert set(response.json()["counts"]) == set(names)


@pytest.mark.fails_on_mutant("other formats are names", FILE, "if _OTHER_FORMAT.match(first) or", "if")
@pytest.mark.fails_on_mutant("base64 is a name", FILE, "or _is_base64_batch(first)", "")
@pytest.mark.fails_on_mutant("JSON is a name", FILE, " or (is_one and _is_json(first))", "")
@pytest.mark.fails_on_mutant("a form is a name", FILE, "if is_one and media_type == _FORM_TYPE", "if not is_one")
async def test_another_format_is_rejected_by_its_content(empty_app: httpx.AsyncClient) -> None:
    for body in OTHER_FORMATS.values():
        for content_type in TYPES:
            for sent in (body, b"\n" + BOM + body):
                assert_problem(await post(empty_app, sent, content_type), 422, "no")
    for body in FORMS.values():
        assert_problem(await post(empty_app, body, FORM), 422, "no")


@pytest.mark.fails_on_mutant("any type is a list", FILE, "if media_type not in _TYPES and", "if False and")
async def test_a_list_of_another_type_is_rejected_by_its_type(empty_app: httpx.AsyncClient) -> None:
    for content_type in OTHER_TYPES:
        assert_problem(await post(empty_app, b"signup\nlogin", content_type), 415, "no")


async def test_json_is_counted_with_any_type(client: httpx.AsyncClient) -> None:
    for content_type in (*TYPES, *OTHER_TYPES):
        for body in (b'[{"event":"a"}]', b'{"a":1}', b'{"event":"a"}\n' + BOM + b'{"event":"a"}', b'{"event":"a"}'):
            for sent in (body, BOM + body):
                response = await post(client, sent, content_type)
                assert response.json().get("counts", {}).keys() == {"a"}, (content_type, sent, response.text)


@pytest.mark.fails_on_mutant(
    "a hit keeps its mark", "app/http/parsing.py", "        text = text.removeprefix(BOM_UTF8)\n", "        pass\n"
)
@pytest.mark.fails_on_mutant(
    "a mark is a body", "app/http/parsing.py", "body.removeprefix(BOM_UTF8).strip()", "body.strip()"
)
@pytest.mark.fails_on_mutant(
    "an import keeps its mark",
    "app/export_import.py",
    "readline(LINE_BYTES_MAX).removeprefix(BOM_UTF8)",
    "readline(LINE_BYTES_MAX)",
)
async def test_a_byte_order_mark_is_ignored_on_each_route_with_a_body(
    serve: Callable[..., object], client: httpx.AsyncClient
) -> None:
    served: RunningApp
    async with serve() as served, served.client() as fast:
        for each in (fast, client):
            for body, count in ((BOM + b'{"by":5}', 5), (BOM, 6), (BOM + b" \n", 7)):
                assert (await each.post("/event/a", content=body)).json()["count"] == count
    corrected = await client.put("/event/a", content=BOM + b'{"count":9}', headers=AS_ADMIN)
    assert corrected.json()["after"]["count"] == 9
    lines = (await client.get("/export", headers=AS_ADMIN)).content.splitlines()
    imported = await client.post("/import", content=b"\n".join(BOM + line for line in lines), headers=AS_ADMIN)
    assert imported.status_code == 200, imported.text


def test_curl_counts_names_with_its_default_type(process: Callable[..., Process]) -> None:
    server = process(TALLY_STORE="memory://")
    for arguments in (["-d", "signup"], ["--data-binary", "@-"]):
        command = ["curl", "-sS", *arguments, f"{server.url}/events"]
        subprocess.run(command, input=b"signup\nlogin\n", capture_output=True, check=True, timeout=20)
    assert server.get("/events") == {"login": 1, "signup": 2}
