"""The files of docs/deploy in use: nginx before two servers, the commands of unit and image."""

import configparser
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rag.types import Message, Sampling
from server.auth import Grant
from tests.fakes import CopyingGenerator
from tests.server.servers import LAW, run_jobs, run_server, state, wait_for

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
NAME = "rag.example.org"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
ANALYZE = shutil.which("systemd-analyze")


class PausingGenerator(CopyingGenerator):
    """Yields one piece, and the next one when the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.permission = threading.Event()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        for piece in super().stream(messages, sampling):
            yield piece
            assert self.permission.wait(30)


@dataclass(frozen=True)
class Site:
    """Two servers on one folder behind nginx, as their clients see them: `client` has a key to all.
    `servers` are they themselves; of `third` nginx knows too."""

    client: httpx.Client
    stranger: httpx.Client
    generator: PausingGenerator
    servers: tuple[httpx.Client, httpx.Client]
    third: "CrashingServer"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not NGINX:
        pytest.skip("nginx is not installed")
    folder, generator = tmp_path_factory.mktemp("site"), PausingGenerator()
    shared = {"data": folder / "data", "generator": generator}
    with (
        closing(state(**shared)) as server,
        closing(state(**shared)) as second,
        run_server(server) as direct,
        run_server(second) as beside,
    ):
        third = CrashingServer()
        key = server.keys.create("client", [Grant("admin")])
        port = free_port()
        trust = certificate(folder)
        both = direct, beside
        addresses = [each.base_url.netloc.decode() for each in both]
        configure(folder, port=port, servers=[*addresses, f"{third.address} max_fails=0"])
        proxy = subprocess.Popen([NGINX, "-p", folder, "-c", "nginx.conf", "-e", "errors"])
        try:
            wait_for(lambda: is_listening(port))
            host = {"host": NAME}
            settings = {"base_url": f"https://127.0.0.1:{port}", "verify": trust, "timeout": 30}
            with (
                httpx.Client(**settings, headers=host | {"authorization": f"Bearer {key}"}) as client,
                httpx.Client(**settings, headers=host) as stranger,
            ):
                assert client.post("/knowledge-bases", json={"name": "laws"}).status_code == 201
                files = [("files", ("劳动合同法.txt", LAW.encode()))]
                sent = client.post("/knowledge-bases/laws/documents", files=files)
                assert sent.status_code == 202, sent.text
                run_jobs(server)
                yield Site(client, stranger, generator, both, third)
        finally:
            proxy.terminate()
            proxy.wait(30)


class CrashingServer:
    """An address without a server or, during the block, with one that dies of each request."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.deaths = 0

    def __enter__(self) -> "CrashingServer":
        self.listener.listen()
        self._thread = threading.Thread(target=self._die)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.listener.close()

    def _die(self) -> None:
        with suppress(OSError):  # when the block is over
            while True:
                line, _ = self.listener.accept()
                with line:
                    line.recv(100)
                    self.deaths += 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def certificate(folder: Path) -> ssl.SSLContext:
    """Creates a certificate for one hour, and returns a context that trusts it."""
    shared = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    listener = ["-subj", f"/CN={NAME}", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", *shared.split(), *listener], check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    trust.check_hostname = False  # clients go to the loopback's address
    return trust


def configure(folder: Path, *, port: int, servers: Sequence[str]) -> None:
    """The published site, except for its addresses and certificate files."""
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    for published, here in {
        "    server 127.0.0.1:8765;\n": "".join(f"    server {each};\n" for each in servers),
        "    # server 127.0.0.1:8766;\n": "",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/certs/rag.example.org.pem": str(folder / "cert.pem"),
        "/etc/ssl/private/rag.example.org.key": str(folder / "key.pem"),
    }.items():
        assert text.count(published) == 1
        text = text.replace(published, here)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}}}\n",
        "utf-8",
    )


def test_nginx_passes_on_the_page_and_the_api(site: Site) -> None:
    assert "<!doctype html>" in site.stranger.get("/").text.lower()
    assert site.stranger.get("/readyz").json() == {"status": "ready"}
    found = site.client.post("/search", json={"question": "试用期", "knowledge_base": "laws"}).json()
    assert "不得超过六个月" in found["hits"][0]["text"]


def test_a_key_is_needed(site: Site) -> None:
    assert site.stranger.get("/knowledge-bases").status_code == 401


def test_nginx_balances_questions_and_retries_them_after_a_crash(site: Site) -> None:
    def search_counts() -> list[float]:
        """The number of searches that each server has answered."""
        metrics = [server.get("/metrics", headers=site.client.headers).text for server in site.servers]
        found = [re.search(r'rag_requests_total.*"/search".* (\S+)', each) for each in metrics]
        return [float(each[1]) if each else 0.0 for each in found]

    before = search_counts()
    with site.third:
        for _ in range(20):
            body = {"question": "试用期", "knowledge_base": "laws"}
            found = site.client.post("/search", json=body)
            assert found.status_code == 200, found.text
    assert site.third.deaths
    now = search_counts()
    assert sum(now) - sum(before) == 20
    assert all(later > earlier for later, earlier in zip(now, before, strict=True))


def test_pages_of_other_sites_change_nothing(site: Site) -> None:
    """The proxy passes on the host name, so that the server accepts its own page."""
    for origin, status in ((f"https://{NAME}", 201), ("https://elsewhere.example", 403)):
        sent = site.client.post("/knowledge-bases", json={"name": "from-a-page"}, headers={"origin": origin})
        assert sent.status_code == status, sent.text


def test_words_arrive_as_they_are_written(site: Site) -> None:
    """The second piece is written only after the first one has arrived through the proxy."""
    site.generator.permission.clear()
    body = {"question": "试用期最长不得超过几个月？", "knowledge_base": "laws", "stream": True}
    with site.client.stream("POST", "/ask", json=body) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line == "event: text")
        site.generator.permission.set()
        assert [line for line in lines if line.startswith("event:")][-1] == "event: citations"


def test_nginx_refuses_a_body_that_is_too_large(site: Site) -> None:
    """The announced length is enough; nothing is sent."""
    limit = re.search(r"client_max_body_size (\d+)m", (DEPLOY / "nginx.conf").read_text("utf-8"))
    assert limit
    with socket.create_connection(("127.0.0.1", site.client.base_url.port)) as plain:
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        with trust.wrap_socket(plain) as line:
            length = (int(limit[1]) << 20) + 1
            head = f"POST /x HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {length}\r\n\r\n"
            line.sendall(head.encode())
            assert line.recv(100).startswith(b"HTTP/1.1 413 ")


def test_the_unit_is_valid_and_its_command_serves(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(DEPLOY / "chatglm-rag.service", "utf-8")
    program, *words = unit["Service"]["ExecStart"].split()
    assert Path(program).name == "rag"
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    served = subprocess.Popen(
        [sys.executable, "-m", "rag", *words, "--port", "0"], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert served.stdout
        address = served.stdout.readline().split()[1]
        assert httpx.get(f"{address}healthz").json() == {"status": "ok"}
    finally:
        served.terminate()
        served.communicate(timeout=60)
    assert served.returncode == 0


@pytest.mark.skipif(not ANALYZE, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["chatglm-rag.service", "chatglm-rag@8766.service"])
def test_systemd_accepts_the_unit_and_rates_it_safe(name: str, tmp_path: Path) -> None:
    """Also as the guide's command changes it for several servers."""
    assert ANALYZE
    unit = DEPLOY / "chatglm-rag.service"
    guide = re.search(r"sed '(.*?)'", (DEPLOY.parent / "deploy.md").read_text("utf-8"))
    assert guide
    change = ["sed", guide[1] if "@" in name else "", unit]
    text = subprocess.run(change, capture_output=True, text=True, check=True).stdout
    assert ("--port %i" in text) == ("@" in name)
    here = tmp_path / name
    here.write_text(text.replace("/opt/chatglm-rag/bin/rag", sys.executable), "utf-8")
    result = subprocess.run([ANALYZE, "verify", here], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    strict = [ANALYZE, "security", "--offline=yes", "--threshold=20", here]
    result = subprocess.run(strict, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout.splitlines()[-1]


def test_the_image_is_built_from_files_of_the_repository_without_root(tmp_path: Path) -> None:
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = {
        source
        for word, rest in instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]} <= copied
    assert not [rest for word, rest in instructions if word == "ADD"]
    [user] = [rest for word, rest in instructions if word == "USER"]
    assert int(user.partition(":")[0]) > 0
    # Its command as it is: other machines could reach it, and there is no key yet.
    [command] = [rest for word, rest in instructions if word == "CMD"]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        [sys.executable, "-m", "rag", *re.findall(r'"(.*?)"', command)], cwd=ROOT,
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "rag keys create" in result.stderr
