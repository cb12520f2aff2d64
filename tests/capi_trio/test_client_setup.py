"""Client setup: every shell reads back what was meant, files keep what is not ours, and no key is ever written."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from capi_trio.client_setup import Client, Gateway, SetupError, Shell, config_path, merged_config, shell_text

URL = "http://127.0.0.1:4141"
AWKWARD = 'it\'s $HOME "x" \\ `id` é'


def gateway(key_file: Path | None = None, model: str | None = "fast", small: str | None = "tiny") -> Gateway:
    return Gateway(URL, key_file, model, small)


# --- shells ---


@pytest.mark.parametrize("shell", [Shell.SH, Shell.BASH, Shell.ZSH, Shell.FISH])
def test_a_shell_reads_back_exactly_what_was_meant(shell: Shell, tmp_path: Path) -> None:
    program = shutil.which(shell.value)
    if program is None:
        pytest.skip(f"{shell.value} is not installed")
    key_file = tmp_path / "a key's $file"
    key_file.write_text("sk-cap-test\n")
    text = shell_text(Client.CLAUDE_CODE, gateway(key_file, model=AWKWARD), shell)
    assert "sk-cap-test" not in text
    script = text + 'printf "%s\\n" "$ANTHROPIC_MODEL" "$ANTHROPIC_AUTH_TOKEN" "$ANTHROPIC_BASE_URL"\n'
    ran = subprocess.run([program], input=script, capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.splitlines() == [AWKWARD, "sk-cap-test", URL]


def test_powershell_and_cmd_have_their_own_quoting(tmp_path: Path) -> None:
    key = tmp_path / "it's"
    powershell = shell_text(Client.ENV, Gateway(URL, key), Shell.POWERSHELL).splitlines()
    quoted = str(key).replace("'", "''")
    assert powershell[0] == f"$env:OPENAI_BASE_URL = '{URL}/v1'"
    assert powershell[1] == f"$env:OPENAI_API_KEY = (Get-Content -Raw -LiteralPath '{quoted}').Trim()"
    cmd = shell_text(Client.ENV, Gateway(URL, Path("C:/key")), Shell.CMD).splitlines()
    assert cmd[:2] == [f'set "OPENAI_BASE_URL={URL}/v1"', 'set /p OPENAI_API_KEY=<"C:/key"']


@pytest.mark.parametrize("value", ['a"b', "100%", "a!b", "a\nb"])
def test_what_cmd_cannot_take_is_refused(value: str) -> None:
    with pytest.raises(SetupError, match="powershell"):
        shell_text(Client.CLAUDE_CODE, gateway(model=value), Shell.CMD)


def test_each_client_gets_the_variables_that_it_reads() -> None:
    def names(client: Client) -> list[str]:
        lines = shell_text(client, gateway(), Shell.SH).splitlines()
        return [line.removeprefix("export ").partition("=")[0] for line in lines]

    assert names(Client.CLAUDE_CODE) == [
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    ]
    assert names(Client.CODEX) == names(Client.OPENCODE) == ["CAPI_API_KEY"]
    assert names(Client.ENV) == ["OPENAI_BASE_URL", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"]


def test_without_a_model_the_clients_own_choice_stays() -> None:
    assert "MODEL" not in shell_text(Client.CLAUDE_CODE, gateway(model=None, small=None), Shell.SH)
    assert "model" not in json.loads(merged_config(Client.OPENCODE, gateway(model=None, small=None), ""))
    assert "model" not in tomllib.loads(merged_config(Client.CODEX, gateway(model=None, small=None), ""))


# --- files ---


def test_where_each_client_keeps_its_file(tmp_path: Path) -> None:
    assert config_path(Client.CLAUDE_CODE, tmp_path, {}) == tmp_path / ".claude/settings.json"
    assert config_path(Client.CODEX, tmp_path, {}) == tmp_path / ".codex/config.toml"
    assert config_path(Client.OPENCODE, tmp_path, {}) == tmp_path / ".config/opencode/opencode.json"
    assert config_path(Client.ENV, tmp_path, {}) is None
    named = {"CLAUDE_CONFIG_DIR": "/c", "CODEX_HOME": "/x", "XDG_CONFIG_HOME": "/o"}
    assert config_path(Client.CLAUDE_CODE, tmp_path, named) == Path("/c/settings.json")
    assert config_path(Client.CODEX, tmp_path, named) == Path("/x/config.toml")
    assert config_path(Client.OPENCODE, tmp_path, named) == Path("/o/opencode/opencode.json")


def test_claude_code_asks_a_command_for_the_key() -> None:
    settings = json.loads(merged_config(Client.CLAUDE_CODE, gateway(Path("/keys/my key")), ""))
    assert settings["apiKeyHelper"] == "cat -- '/keys/my key'"
    assert settings["env"]["ANTHROPIC_BASE_URL"] == URL
    assert settings["env"]["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "tiny"
    assert "ANTHROPIC_AUTH_TOKEN" not in settings["env"]
    assert "ANTHROPIC_AUTH_TOKEN" in json.loads(merged_config(Client.CLAUDE_CODE, gateway(), ""))["env"]


def test_opencode_reads_the_key_from_its_file() -> None:
    config = json.loads(merged_config(Client.OPENCODE, gateway(Path("/keys/k")), ""))
    assert config["provider"]["capi"]["options"] == {"baseURL": f"{URL}/v1", "apiKey": "{file:/keys/k}"}
    assert config["provider"]["capi"]["models"] == {"fast": {"name": "fast"}, "tiny": {"name": "tiny"}}
    assert (config["model"], config["small_model"]) == ("capi/fast", "capi/tiny")
    keyless = json.loads(merged_config(Client.OPENCODE, gateway(), ""))
    assert keyless["provider"]["capi"]["options"]["apiKey"] == "none"


def test_a_json_file_keeps_what_is_not_ours() -> None:
    mine = '{"permissions": {"allow": ["x"]}, "env": {"EDITOR": "vi", "ANTHROPIC_BASE_URL": "http://old"}, "ü": 1}'
    merged = json.loads(merged_config(Client.CLAUDE_CODE, gateway(), mine))
    assert merged["permissions"] == {"allow": ["x"]}
    assert merged["env"]["EDITOR"] == "vi"
    assert merged["env"]["ANTHROPIC_BASE_URL"] == URL
    assert merged["ü"] == 1
    assert merged_config(Client.CLAUDE_CODE, gateway(), json.dumps({"env": 3})).count("ANTHROPIC_BASE_URL") == 1


def test_a_toml_file_keeps_its_comments_and_its_other_providers() -> None:
    mine = '# mine\nmodel = "old" # why\n\n[model_providers.other]\nname = "o"\n\n[tui]\ntheme = "dark"\n'
    merged = merged_config(Client.CODEX, gateway(), mine)
    assert "# mine" in merged
    assert "# why" in merged
    read = tomllib.loads(merged)
    assert read["model"] == "fast"
    assert read["model_provider"] == "capi"
    assert read["model_providers"]["other"] == {"name": "o"}
    assert read["model_providers"]["capi"]["base_url"] == f"{URL}/v1"
    assert read["model_providers"]["capi"]["wire_api"] == "responses"
    assert read["model_providers"]["capi"]["supports_websockets"] is True
    assert read["tui"] == {"theme": "dark"}
    assert merged_config(Client.CODEX, gateway(), merged) == merged


@pytest.mark.parametrize(
    ("client", "text"),
    [
        (Client.CLAUDE_CODE, "// comment\n{}"),
        (Client.OPENCODE, "[]"),
        (Client.CODEX, "= nothing"),
        (Client.CODEX, "model_providers = 3"),
        (Client.ENV, ""),
    ],
)
def test_a_file_that_would_be_harmed_is_left_alone(client: Client, text: str) -> None:
    with pytest.raises(SetupError):
        merged_config(client, gateway(), text)
