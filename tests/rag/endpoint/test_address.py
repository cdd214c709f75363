"""How an endpoint is written, and what is sent to it of what should stay secret."""

from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.i18n import Translatable, translate
from rag.config import read_config
from rag.endpoint import Address, EndpointOptions
from rag.endpoint.engines import Failed
from rag.endpoint.generator import reach
from rag.generate import GenerateOptions
from tests.faulty import Call, answers, fails, faulty
from tests.rag.endpoint import reached as made

SECRET = "sk-very-secret"


@pytest.mark.parametrize(("text", "base", "model", "name"), [
    ("http://127.0.0.1:8000/v1#glm-4-9b", "http://127.0.0.1:8000/v1", "glm-4-9b", "glm-4-9b"),
    ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1", "", "127.0.0.1:8000"),
    ("http://localhost:11434#qwen3:8b", "http://localhost:11434/v1", "qwen3:8b", "qwen3:8b"),
    ("HTTP://[::1]:80/v1/chat/completions#a/b", "http://[::1]:80/v1", "a/b", "a/b"),
    ("https://host/api/paas/v4#glm-4", "https://host/api/paas/v4", "glm-4", "glm-4"),
])  # fmt: skip
def test_an_address_and_a_model(text: str, base: str, model: str, name: str) -> None:
    address = Address.parse(text)
    assert (address.base, address.model, address.name) == (base, model, name)


@pytest.mark.parametrize(
    "text",
    ["http://", "http://host:port/v1", "http://host:99999", "http://ho st/v1", "http://host/v1?a=b",
     "http://[::1/v1", "https://:8000/v1", "127.0.0.1:8000", "localhost:8000/v1#glm",
     "http:/127.0.0.1:8000", "htp://127.0.0.1:8000"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match=r"is not an endpoint's address.*write http://host:port"):
        GenerateOptions(model=text)


@pytest.mark.parametrize("name", ["glm/", "THUDM/chatglm3-6b@v1", "modelscope:a/b", "./a:80"])
def test_what_is_a_folder_or_on_a_hub(name: str) -> None:
    assert not GenerateOptions(model=name).served


def test_a_secret_has_no_place_in_an_address() -> None:
    with pytest.raises(UserError, match="RAG_MODEL_KEY") as wrong:
        GenerateOptions(model=f"http://me:{SECRET}@host/v1")
    assert SECRET not in str(wrong.value) + translate(wrong.value.message, "zh")
    assert "RAG_MODEL_KEY" in translate(wrong.value.message, "zh")


def test_where_this_machine_is() -> None:
    assert all(
        Address.parse(f"http://{host}").local for host in ("127.0.0.2", "[::1]", "localhost")
    )
    assert not any(Address.parse(f"http://{host}").local for host in ("10.0.0.1", "localhost.evil"))


@pytest.mark.parametrize(("more", "said"), [
    ({"quant": "int8"}, "the weights are held at http://host/v1; leave it out"),
    ({"adapter": "law"}, "an adapter as a separate model, whose name goes after #"),
])  # fmt: skip
def test_weights_and_adapters_are_the_engines(more: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        GenerateOptions(model="http://host", **more)


def test_an_adapter_can_not_be_put_on_later() -> None:
    generator = reach("http://127.0.0.1:1", EndpointOptions(), note=lambda en, zh: None)
    assert generator.use(None) == ()
    with pytest.raises(UserError, match="whose name goes after #"):
        generator.use(Path("law"))


def test_settings_name_an_endpoint_and_how_it_is_asked(tmp_path: Path) -> None:
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
    with pytest.raises(
        UserError, match=r"rag.toml: \[generate.endpoint\] tries is 0; need 1 or more"
    ):
        read_config(tmp_path)
    (tmp_path / "rag.toml").write_text("[generate.endpoint]\ntimeout = 3\n")
    with pytest.raises(UserError, match=r"unknown key timeout in \[generate.endpoint\]"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"context": -1}, {"connect_seconds": 0}, {"silence_seconds": -1.0}]
)
def test_impossible_options(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
        EndpointOptions(**wrong)


def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", f" {SECRET}\n")
    with faulty(fails(401, "bad key")) as engine:
        generator = reach(engine.address, EndpointOptions(), note=lambda en, zh: None)
        with pytest.raises(Failed) as failed:
            list(generator.stream(made.ASKED, made.Sampling()))
        assert {each.headers.get("Authorization") for each in engine.seen} == {f"Bearer {SECRET}"}
    assert SECRET not in str(failed.value) + translate(failed.value.message, "zh") + repr(
        vars(generator)
    )
    monkeypatch.delenv("RAG_MODEL_KEY")
    with faulty(answers("好")) as engine:
        generator = reach(engine.address, EndpointOptions(), note=lambda en, zh: None)
        assert list(generator.stream(made.ASKED, made.Sampling())) == ["好"]
        assert not any("Authorization" in each.headers for each in engine.seen)


@pytest.mark.parametrize("key", ["钥匙串", "a\nb"])
def test_a_key_that_can_be_none_is_told_without_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", key)
    with pytest.raises(UserError, match="RAG_MODEL_KEY holds a character") as wrong:
        reach("http://127.0.0.1:1", EndpointOptions(), note=lambda en, zh: None)
    assert key not in str(wrong.value) + translate(wrong.value.message, "zh")


def test_a_key_that_others_may_read_on_its_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", SECRET)
    notes: list[Translatable] = []
    for address in ("https://192.0.2.1/v1", "http://127.0.0.1:1"):
        reach(address, EndpointOptions(), note=notes.append)
    assert notes == []
    reach("http://192.0.2.1/v1", EndpointOptions(), note=notes.append)
    assert len(notes) == 1
    assert "http://192.0.2.1/v1 unencrypted" in notes[0]
    assert "明文" in translate(notes[0], "zh")


def test_a_redirect_is_told_and_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_MODEL_KEY", SECRET)
    with faulty(answers("no")) as other:

        def redirects(call: Call) -> None:
            call.value({}, 307, Location=f"{other.address}/chat/completions")

        with (
            faulty(redirects) as engine,
            pytest.raises(Failed, match=f"redirects to {other.address}"),
        ):
            made.reach(engine).reply()
        assert other.seen == []


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty(answers("no")) as proxy, faulty(answers("六个月")) as engine:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.setenv("http_proxy", proxy.address)
        assert made.reach(engine).reply() == "六个月"
        assert proxy.seen == []


def test_what_openais_variables_hold_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: {SECRET}\nX-Gateway: {SECRET}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    with faulty(answers("六个月")) as engine:
        assert made.reach(engine).reply() == "六个月"
        assert SECRET not in str([each.headers for each in engine.seen])
        sent = {name.lower() for each in engine.seen for name in each.headers}
        assert not any(name.startswith(("x-", "openai-")) for name in sent)
