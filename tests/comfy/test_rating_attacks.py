"""The routes of rating against what other pages, other users and broken clients send to a real server.

It runs for several users; names of data sets, ids and sizes are looked at before anything is read or written.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import newest_only
from rating_requests import TAB, Answer, Client, graph
from serving import PACK, Server, running_server

pytestmark = newest_only

DATASET = "my%20taste"
PAIR, RATING, GUIDELINE = (f"/chats/{DATASET}/{name}" for name in ("pair", "rating", "guideline"))
LAN = "192.168.1.5:8188"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(place) -> Iterator[Server]:
    with running_server(place, "--multi-user", models=False) as running:
        for index in range(12):
            running.run(graph(index))
        yield running


@pytest.fixture(scope="module")
def users(server) -> dict[str, str]:
    """Two users' ids by their names."""
    client = Client(server.port)
    return {name: client.post("/users", {"username": name}).content for name in ("anna", "bert")}


@pytest.fixture(scope="module")
def anna(server, users) -> Client:
    return Client(server.port, comfy_user=users["anna"])


@pytest.fixture(scope="module")
def bert(server, users) -> Client:
    return Client(server.port, comfy_user=users["bert"])


@pytest.fixture
def vote(anna) -> dict:
    """A vote that would be taken."""
    pair = anna.get(f"{PAIR}?tab={TAB}").content["pair"]
    return {"rating": "00000000000000ff", "left": pair["left"], "right": pair["right"], "choice": "left"} | {
        "seconds": 1.0,
        "repeat": False,
    }


@pytest.fixture
def nothing_changes(place) -> Iterator[None]:
    """No file that the server could write is another, or new, after the test; locks are empty and say nothing."""

    def files() -> dict[Path, bytes]:
        found = [path for name in ("output", "user", "input", "temp") for path in (place / "base" / name).rglob("*")]
        found += [*(place / "base").glob("*")]
        told = [path for path in found if path.is_file() and not path.name.endswith((".lock", ".log"))]
        return {path: path.read_bytes() for path in told}

    before = files()
    yield
    assert files() == before


TRAVERSALS = [
    "..",
    "../my taste",
    "%2e%2e",
    "..%2f..%2fmy%20taste",
    "%2e%2e%2fmy%20taste",
    "..%5cmy%20taste",
    "my%20taste%2f..",
    "my%20taste%00",
    "%00",
    "my%20taste%0a",
    "..%252f",
    "%c0%ae%c0%ae",
    "%ff%fe",
    "%u002e%u002e",
    "/etc",
    "%2fetc",
    "C:",
    "con",
    "my%20taste%20",
    "my taste.",
    ".hidden",
    "~root",
    "x" * 65,
    "x" * 4000,
    "%F0%9F%90%88",
    "my%20taste;x",
    "my%20taste%3Fx",
    "*",
    "${HOME}",
]


@pytest.mark.parametrize("name", TRAVERSALS, ids=lambda name: name[:24])
@pytest.mark.usefixtures("nothing_changes")
def test_a_data_set_s_name_never_leads_elsewhere(anna, vote, name):
    for prefix in ("", "/api"):
        for answer in (
            anna.get(f"{prefix}/chats/{name.replace(' ', '%20')}/pair?tab={TAB}"),
            anna.post(f"{prefix}/chats/{name.replace(' ', '%20')}/rating", vote),
            anna.post(f"{prefix}/chats/{name.replace(' ', '%20')}/guideline", {"guideline": "x"}),
        ):
            assert answer.status in (400, 404, 405), (answer.status, answer.body)
            answer.assert_no_traceback()


@pytest.mark.parametrize(
    "value", ["../x", "..%2Fx", "%00", "x", "", "0" * 15, "0" * 17, "0" * 8000, "0123456789ABCDEF", "%F0%9F%90%88"]
)
@pytest.mark.usefixtures("nothing_changes")
def test_windows_and_pairs_in_the_query_are_ids(anna, value):
    if value:
        answer = anna.get(f"{PAIR}?tab={value}")
        assert answer.status == 400
        answer.assert_no_traceback()
    answer = anna.get(f"{PAIR}?tab={TAB}&avoid={value}-{TAB}")
    assert answer.status == 400
    answer.assert_no_traceback()


def test_many_pairs_to_avoid_are_too_many(anna):
    pairs = ",".join(f"{number:016x}-{number + 1:016x}" for number in range(201))
    anna.get(f"{PAIR}?tab={TAB}&avoid={pairs}").assert_a_sentence(400)
    assert anna.get(f"{PAIR}?tab={TAB}&avoid={pairs[:3400].rsplit(',', 1)[0]}").status == 200


NO_ADDRESSES = ("http://[::1", f"http://{LAN}, https://evil.example", f"http://{LAN}.evil.example")
ORIGINS = {
    "another site": {"origin": "https://evil.example"},
    "another site at a LAN host": {"origin": "https://evil.example", "host": LAN},
    "null at a LAN host": {"origin": "null", "host": LAN},
    "null": {"origin": "null"},
    "empty": {"origin": ""},
    "another port": {"origin": "http://192.168.1.5:9000", "host": LAN},
    "no port": {"origin": "http://192.168.1.5", "host": LAN},
    "a name that begins like it": {"origin": "http://192.168.1.5.evil.example:8188", "host": LAN},
    "a name that ends like it": {"origin": f"http://evil{LAN}", "host": LAN},
    "a user before it": {"origin": f"http://{LAN}@evil.example", "host": LAN},
    **{f"no address: {origin}": {"origin": origin, "host": LAN} for origin in NO_ADDRESSES},
    "a file": {"origin": "file://", "host": LAN},
    "cross-site": {"sec_fetch_site": "cross-site", "host": LAN},
    "cross-site in capitals": {"sec_fetch_site": "Cross-Site", "host": LAN},
    "no host": {"origin": "https://evil.example", "host": ""},
}


@pytest.mark.parametrize("headers", ORIGINS.values(), ids=ORIGINS)
@pytest.mark.usefixtures("nothing_changes")
def test_other_sites_pages_are_refused(anna, vote, headers):
    answers = (
        anna.get("/chats/datasets", **headers),
        anna.get(f"{PAIR}?tab={TAB}", **headers),
        anna.post(RATING, vote, **headers),
        anna.post(GUIDELINE, {"guideline": "x"}, **headers),
    )
    for answer in answers:
        # An origin that is no address never comes so far: ComfyUI's own look at it ends in an error of the server's.
        assert answer.status == 403 or (answer.status == 500 and headers["origin"] in NO_ADDRESSES)
        answer.assert_no_traceback()


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": f"http://{LAN}", "host": LAN},
        {"origin": "https://comfy.example", "host": "comfy.example"},
        {"origin": "https://comfy.example", "host": "comfy.example:443"},
        {"origin": "HTTP://Comfy.Example:8188", "host": "comfy.example:8188"},
        {"sec_fetch_site": "same-origin", "host": LAN},
    ],
    ids=str,
)
def test_the_server_s_own_page_is_answered_wherever_it_is(anna, headers):
    assert anna.get("/chats/datasets", **headers).status == 200


CONTENT_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/json",
    None,
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES, ids=str)
@pytest.mark.usefixtures("nothing_changes")
def test_only_json_is_taken(anna, vote, content_type):
    """What a form on another page can send is of these kinds, and needs no permission of the browser's."""
    for path, content in ((RATING, vote), (GUIDELINE, {"guideline": "x"})):
        anna.post(path, content, content_type=content_type).assert_a_sentence(415)


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "deep lists": b"[" * 16000,
    "deep objects": b'{"rating":' * 1600,
    "no UTF-8": b'{"undo": "\xff\xfe"}',
    "UTF-16": '{"undo": "x"}'.encode("utf-16"),
    "NaN": b'{"seconds": NaN}',
    "a long number": b'{"seconds": ' + b"9" * 15000 + b"}",
    "two objects": b"{}{}",
    "an empty object": b"{}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.usefixtures("nothing_changes")
def test_bodies_that_are_no_object_are_refused(anna, body):
    for path in (RATING, GUIDELINE):
        anna.post(path, body).assert_a_sentence(400)


def too_large() -> dict[str, tuple[bytes, dict[str, str]]]:
    body = json.dumps({"guideline": "x", "more": "y" * 20_000}).encode()
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return {
        "stated": (body, {}),
        "a hundred megabytes stated": (body, {"content_length": "100000000"}),
        "in chunks": (chunk, {"transfer_encoding": "chunked"}),
    }


@pytest.mark.parametrize("case", too_large().values(), ids=too_large())
@pytest.mark.usefixtures("nothing_changes")
def test_bodies_of_more_than_16_kib_are_refused(anna, case):
    body, headers = case
    with contextlib.suppress(ConnectionError):  # the server may close before it has read all of it
        anna.post(GUIDELINE, body, **headers).assert_a_sentence(413)


@pytest.mark.usefixtures("nothing_changes")
def test_compressed_bodies_are_refused(anna):
    """Fifty megabytes come as fifty kilobytes; and some that are no compression at all."""
    for body in (gzip.compress(b'{"more": "' + b"y" * 50_000_000 + b'"}'), b"no gzip at all"):
        with contextlib.suppress(ConnectionError):
            anna.post(GUIDELINE, body, content_encoding="gzip").assert_a_sentence(415)


@pytest.mark.usefixtures("nothing_changes")
def test_a_chunk_that_breaks_after_the_headers_is_not_waited_for(anna, server):
    """aiohttp says nothing of it."""
    path = f"POST {GUIDELINE} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nComfy-User: {anna.headers['comfy_user']}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"{path}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        time.sleep(0.2)
        connection.sendall(b"zz\r\nno chunk\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


FIELDS = [
    ("rating", [None, 7, "", "x", "../../x", "0" * 17, "00000000000000FF", ["0"], {"a": 1}, True]),
    ("left", [None, 7, "", "../../../etc/passwd", "0" * 17, [], True, "\ud800"]),
    ("right", [None, 7, "", "..\\..\\x", "images/x", {}]),
    ("choice", [None, "", "both", "LEFT", 1, ["left"]]),
    ("seconds", ["1", [], True, -1, 10**300, {}]),
    ("repeat", ["false", 0, 1, None, []]),
]


@pytest.mark.parametrize(("name", "values"), FIELDS, ids=[name for name, _ in FIELDS])
@pytest.mark.usefixtures("nothing_changes")
def test_fields_of_the_wrong_kind_are_refused(anna, vote, name, values):
    for value in values:
        anna.post(RATING, {**vote, name: value}).assert_a_sentence(400)
    if name in ("rating", "left", "right", "choice"):
        anna.post(RATING, {key: value for key, value in vote.items() if key != name}).assert_a_sentence(400)


@pytest.mark.usefixtures("nothing_changes")
def test_infinity_is_no_number_of_seconds(anna, vote):
    body = json.dumps(vote).replace('"seconds": 1.0', '"seconds": 1e999').encode()
    anna.post(RATING, body).assert_a_sentence(400)


@pytest.mark.usefixtures("nothing_changes")
def test_ids_that_nobody_knows_are_refused(anna, vote):
    anna.post(RATING, {**vote, "left": "00000000000000aa"}).assert_a_sentence(404)
    anna.post(RATING, {**vote, "right": vote["left"]}).assert_a_sentence(400)
    anna.post(RATING, {"undo": "00000000000000aa"}).assert_a_sentence(404)
    for undo in ("", "x", None, 7, [], {}, "\ud800"):
        anna.post(RATING, {"undo": undo}).assert_a_sentence(400, 404)
    for text in (None, 7, [], "x" * 501, "\ud800"):
        anna.post(GUIDELINE, {"guideline": text}).assert_a_sentence(400)
    anna.get(f"/chats/none/pair?tab={TAB}").assert_a_sentence(404)
    anna.post("/chats/none/rating", vote).assert_a_sentence(404)
    anna.post("/chats/none/guideline", {"guideline": "x"}).assert_a_sentence(404)


@pytest.mark.parametrize("user", [None, "default", "", "nobody", "__system", "../anna", "x" * 5000])
@pytest.mark.usefixtures("nothing_changes")
def test_who_is_no_user_is_refused(server, vote, user):
    client = Client(server.port, **({} if user is None else {"comfy_user": user}))
    for answer in (
        client.get("/chats/datasets"),
        client.get(f"{PAIR}?tab={TAB}"),
        client.post(RATING, vote),
        client.post(GUIDELINE, {"guideline": "x"}),
    ):
        answer.assert_a_sentence(403)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.usefixtures("nothing_changes")
def test_other_methods_do_nothing(anna, vote, method):
    for path in (PAIR, RATING, GUIDELINE, "/chats/datasets"):
        answer = anna.send(method, path, json.dumps(vote).encode(), content_type="application/json")
        assert answer.status in (404, 405)
        answer.assert_no_traceback()


def test_two_users_rate_each_for_oneself(anna, bert, place):
    def progress(client: Client) -> dict:
        return client.get(f"{PAIR}?tab={TAB}").content["progress"]

    def rate(client: Client, number: int, choice: str) -> Answer:
        pair = client.get(f"{PAIR}?tab={TAB}").content["pair"]
        return client.post(RATING, {"rating": f"{number:016x}", "seconds": None, **pair, "choice": choice})

    for number, client in enumerate((anna, bert), start=1):
        assert rate(client, number, "left").content["stands"]
        assert progress(client)["rated"] == 1
    bert.post(RATING, {"undo": f"{1:016x}"}).assert_a_sentence(404)  # that is Anna's
    assert bert.post(RATING, {"undo": f"{2:016x}"}).status == 200
    assert (progress(anna)["rated"], progress(bert)["rated"]) == (1, 0)
    rows = (place / "base/output/chats/my taste/ratings.jsonl").read_text(encoding="utf-8").splitlines()
    raters = [json.loads(row)["rater"] for row in rows]
    assert raters[0].startswith("anna_")
    assert raters[1] == raters[2]
    assert raters[1].startswith("bert_")
    named = {one["name"]: one for one in anna.get("/chats/datasets").content["datasets"]}
    assert named["my taste"]["rated"] == 1


def test_many_clients_at_once_leave_no_double(anna, place):
    """Eight connections send one key press, and eight other ones for the same pair: one line, one that stands."""
    pair = anna.get(f"{PAIR}?tab={TAB}").content["pair"]
    names = [f"{number:016x}" for number in (100, *range(100, 115))]
    votes = [{"rating": name, "seconds": None, **pair, "choice": "right"} for name in names for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(len(votes)) as pool:
        answers = list(pool.map(lambda vote: anna.post(RATING, vote), votes))
    assert {answer.status for answer in answers} == {200}
    standing = {answer.content["rating"] for answer in answers if answer.content["stands"]}
    assert len(standing) == 1
    rows = (place / "base/output/chats/my taste/ratings.jsonl").read_text(encoding="utf-8").splitlines()
    assert {row["rating"] for row in map(json.loads, rows) if row.get("rating") in names} == standing
    assert sum(json.loads(row).get("rating") in names for row in rows) == 1


@pytest.fixture
def small_disk(server, place) -> Iterator[Path]:
    """A data set on a disk of its own of half a megabyte, where this user may mount one."""
    folder = place / "base/output/chats/small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        for index in (0, 3):
            server.run(graph(index, "small"))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_or_read_only_disk_is_a_sentence_until_there_is_room(anna, server, small_disk):
    pair = anna.get(f"/chats/small/pair?tab={TAB}").content["pair"]
    vote = {"rating": f"{200:016x}", "seconds": None, **pair, "choice": "left"}
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for obstacle in ("full", "read-only"):
        if obstacle == "read-only":
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        sentence = anna.post("/chats/small/rating", vote).assert_a_sentence(507)
        assert "nothing was kept" in sentence
        anna.post("/chats/small/guideline", {"guideline": "x"}).assert_a_sentence(507)
        looked = anna.get(f"/chats/small/pair?tab={TAB}").content
        assert (looked["pair"] is not None, looked["progress"]["rated"], looked["notes"]) == (True, 0, [])
        drawn = server.queue(graph(6, "small", size=512))  # the node says it too, and its picture is not half there
        assert wait_for(server, drawn["prompt_id"])["status"]["status_str"] == "error"
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert anna.post("/chats/small/rating", vote).content["stands"]
    assert len((small_disk / "candidates.jsonl").read_text().splitlines()) == len(list(small_disk.rglob("*.png"))) == 2


def wait_for(server: Server, prompt_id: str) -> dict:
    deadline = time.monotonic() + 60
    while not (entry := server.json(f"/history/{prompt_id}").get(prompt_id)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return entry


@pytest.mark.usefixtures("nothing_changes")
def test_a_name_of_another_case_is_no_other_data_set(anna, vote):
    """A vote for it would else wait or be dropped without a word of the one that is there."""
    for answer in (
        anna.get(f"/chats/My%20Taste/pair?tab={TAB}"),
        anna.post("/chats/My%20Taste/rating", vote),
        anna.post("/chats/My%20Taste/guideline", {"guideline": "x"}),
    ):
        assert "there is `my taste`, which is the same folder on Windows" in answer.assert_a_sentence(404)
    assert answer.content["key"] == "otherCase"
    assert answer.content["values"] == {"name": "My Taste", "other": "my taste"}


def test_folders_that_are_no_data_sets_are_not_listed(anna, place):
    chats = place / "base/output/chats"
    for name in (".git", "a.b", "empty", "con"):
        (chats / name).mkdir()
    for name in (".git", "a.b", "con"):
        (chats / name / "candidates.jsonl").touch()
    (chats / "file").touch()
    listed = anna.get("/chats/datasets").content["datasets"]
    assert [one["name"] for one in listed] == ["my taste"]


def test_no_request_came_as_a_surprise(server):
    """After all of the above, no traceback in the server's log goes through the routes."""
    log = server.log.read_text(encoding="utf-8", errors="replace")
    modules = [f"{PACK}/nodes/rating/{name}.py" for name in ("routes", "answers", "requests")]
    traced = [line for line in log.splitlines() if any(module in line for module in modules)]
    assert not traced, log[-5000:]
