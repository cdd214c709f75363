"""The form of an address, and which secrets are sent to it."""

from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.i18n import Translatable, translate
from rag.config import read_config
from rag.endpoint import Address, EndpointOptions
from rag.endpoint.engines import EngineFailure
from rag.endpoint.generator import reach
from rag.generate import GenerateOptions
from rag.types import Sampling
from tests.faulty import Call, answers, fails, faulty
from tests.rag.endpoint import clients

SECRET = "sk-very-secret"


@pytest.mark.parametrize(("text", "base", "model", "name"), [
    ("http://127.0.0.1:8000/v1#glm-4-9b", "http://127.0.0.1:8000/v1", "glm-4-9b", "glm-4-9b"),
    ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1", "", "127.0.0.1:8000"),
    ("http://localhost:11434#qwen3:8b", "http://localhost:11434/v1", "qwen3:8b", "qwen3:8b"),
    ("HTTP://[::1]:80/v1/chat/completions#a/b", "http://[::1]:80/v1", "a/b", "a/b"),
    ("https://host/api/paas/v4#glm-4", "https://host/api/paas/v4", "glm-4", "glm-4"),
])  # fmt: skip
def test_an_address_names_an_engine_and_a_model(text: str, base: str, model: str, name: str) -> None:
    address = Address.parse(text)
    assert (address.base, address.model, address.name) == (base, model, name)


@pytest.mark.parametrize(
    "text",
    ["http://", "http://host:port/v1", "http://host:99999", "http://ho st/v1", "http://host/v1?a=b",
     "http://[::1/v1", "https://:8000/v1", "127.0.0.1:8000", "localhost:8000/v1#glm",
     "http:/127.0.0.1:8000", "htp://127.0.0.1:8000"],
)  # fmt: skip
def test_other_texts_are_not_addresses(text: str) -> None:
    with pytest.raises(UserError, match=r"is not an endpoint's address.*write http://host:port"):
        GenerateOptions(model=text)


@pytest.mark.parametrize("name", ["glm/", "THUDM/chatglm3-6b@v1", "modelscope:a/b", "./a:80"])
def test_folders_and_names_on_a_hub_are_not_addresses(name: str) -> None:
    assert not GenerateOptions(model=name).served


def test_a_secret_in_an_address_is_refused() -> None:
    with pytest.raises(UserError, match="RAG_MODEL_KEY") as wrong:
        GenerateOptions(model=f"http://me:{SECRET}@host/v1")
    assert SECRET not in str(wrong.value) + translate(wrong.value.message, "zh")
    assert "RAG_MODEL_KEY" in translate(wrong.value.message, "zh")


def test_loopback_addresses_are_this_machine() -> None:
    assert all(Address.parse(f"http://{host}").local for host in ("127.0.0.2", "[::1]", "localhost"))
    assert not any(Address.parse(f"http://{host}").local for host in ("10.0.0.1", "localhost.evil"))


@pytest.mark.parametrize(("more", "message"), [
    ({"quant": "int8"}, "the weights are held at http://host/v1; leave it out"),
    ({"adapter": "law"}, "an adapter as a separate model, whose name goes after #"),
])  # fmt: skip
def test_weights_and_adapters_belong_to_the_engine(more: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateOptions(model="http://host", **more)


def test_an_adapter_cannot_be_attached_later() -> None:
    generator = reach("http://127.0.0.1:1", EndpointOptions(), note=lambda en, zh: None)
    assert generator.use(None) == ()
    with pytest.raises(UserError, match="whose name goes after #"):
        generator.use(Path("law"))


def test_settings_name_an_endpoint_and_its_options(tmp_path: Path) -> None:
    (tmp_path / "rag.toml").write_text(
        '[generate]\nmodel = "http://127.0.0.1:8000#glm"\n'
        "[generate.endpoint]\ncontext = 8192\nsilence_seconds = 30\n"
    )
    options = read_config(tmp_path).generate
    assert options.served
    assert options.endpoint == EndpointOptions(context=8192, silence_seconds=30)
    (tmp_path / "rag.toml").write_text('[generate.endpoint]\ntokenizer = "own"\n')
    assert read_config(tmp_path).generate.endpoint.tokenizer == "own"
    (tmp_path / "own").mkdir()
    assert read_config(tmp_path).generate.endpoint.tokenizer == str(tmp_path / "own")
    (tmp_path / "rag.toml").write_text("[generate.endpoint]\ntries = 0\n")
    with pytest.raises(UserError, match=r"rag.toml: \[generate.endpoint\] tries is 0; need 1 or more"):
        read_config(tmp_path)
    (tmp_path / "rag.toml").write_text("[generate.endpoint]\ntimeout = 3\n")
    with pytest.raises(UserError, match=r"unknown key timeout in \[generate.endpoint\]"):
        read_config(tmp_path)


@pytest.mark.parametrize("wrong", [{"context": -1}, {"connect_seconds": 0}, {"silence_seconds": -1.0}])
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
        EndpointOptions(**wrong)


def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", f" {SECRET}\n")
    with faulty(fails(401, "bad key")) as engine:
        generator = reach(engine.address, EndpointOptions(), note=lambda en, zh: None)
        with pytest.raises(EngineFailure) as failed:
            list(generator.stream(clients.QUESTION, Sampling()))
        assert {each.headers.get("Authorization") for each in engine.seen} == {f"Bearer {SECRET}"}
    assert SECRET not in str(failed.value) + translate(failed.value.message, "zh") + repr(vars(generator))
    monkeypatch.delenv("RAG_MODEL_KEY")
    with faulty(answers("好")) as engine:
        generator = reach(engine.address, EndpointOptions(), note=lambda en, zh: None)
        assert list(generator.stream(clients.QUESTION, Sampling())) == ["好"]
        assert not any("Authorization" in each.headers for each in engine.seen)


@pytest.mark.parametrize("key", ["钥匙串", "a\nb"])
def test_an_invalid_key_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", key)
    with pytest.raises(UserError, match="RAG_MODEL_KEY holds a character") as wrong:
        reach("http://127.0.0.1:1", EndpointOptions(), note=lambda en, zh: None)
    assert key not in str(wrong.value) + translate(wrong.value.message, "zh")


def test_an_unencrypted_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", SECRET)
    notes: list[Translatable] = []
    for address in ("https://192.0.2.1/v1", "http://127.0.0.1:1"):
        reach(address, EndpointOptions(), note=notes.append)
    assert notes == []
    reach("http://192.0.2.1/v1", EndpointOptions(), note=notes.append)
    assert len(notes) == 1
    assert "http://192.0.2.1/v1 unencrypted" in notes[0]
    assert "明文" in translate(notes[0], "zh")


def test_a_redirect_is_reported_and_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", SECRET)
    with faulty(answers("no")) as other:

        def redirects(call: Call) -> None:
            call.value({}, 307, Location=f"{other.address}/chat/completions")

        with faulty(redirects) as engine, pytest.raises(EngineFailure, match=f"redirects to {other.address}"):
            clients.connect(engine).reply()
        assert other.seen == []


def test_no_proxy_is_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty(answers("no")) as proxy, faulty(answers("六个月")) as engine:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.setenv("http_proxy", proxy.address)
        assert clients.connect(engine).reply() == "六个月"
        assert proxy.seen == []


def test_openais_variables_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: {SECRET}\nX-Gateway: {SECRET}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    with faulty(answers("六个月")) as engine:
        assert clients.connect(engine).reply() == "六个月"
        assert SECRET not in str([each.headers for each in engine.seen])
        sent = {name.lower() for each in engine.seen for name in each.headers}
        assert not any(name.startswith(("x-", "openai-")) for name in sent)
