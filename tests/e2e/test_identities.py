"""Identities of a gateway that runs: commands reach it, outlive it, and show no token anywhere."""

import os
import signal
import stat
from pathlib import Path
from typing import Final

import msgspec

from capi_trio.control import ask
from capi_trio.identity_operations import (
    AddIdentity,
    IdentitiesAnswer,
    IdentityAnswer,
    IdentityCommand,
    IdentityStatus,
    ListIdentities,
    RemoveIdentity,
)
from capi_trio.storage.audit_log import read_lines
from capi_trio.token_files import TOKENS_NAME
from tests.e2e.conftest import faultless
from tests.support.process import command, gateway

TOKENS: Final = [f"gho_{'s3cret' * 6}{number}" for number in range(3)]
DEMO: Final = {"upstreams": {"demo": {"kind": "demo"}}}


def asked(data_dir: Path, what: IdentityCommand) -> IdentityStatus:
    """What the running server answers about one identity."""
    answer = ask(data_dir, what)
    assert isinstance(answer, IdentityAnswer), answer
    return answer.identity


def identities(data_dir: Path, *arguments: str) -> str:
    """What `capi identities ARGUMENTS` prints, a process of its own."""
    done = command("identities", *arguments, "--data-dir", str(data_dir), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_change_reaches_the_server_and_outlives_its_kill_and_no_token_is_shown(tmp_path: Path) -> None:
    data_dir = tmp_path / "capi"
    shown: list[str] = []
    with faultless(gateway(data_dir, DEMO, "--verbose")) as capi:
        for number, token in enumerate(TOKENS):
            asked(data_dir, AddIdentity(name=f"seat-{number}", token=token, owner="Ann"))
        shown.append(identities(data_dir, "share", "seat-0", "--reason", "on call"))
        shown.append(identities(data_dir, "stop", "seat-1", "--reason", "abuse"))
        asked(data_dir, RemoveIdentity("seat-2"))
        answer = ask(data_dir, ListIdentities())
        assert isinstance(answer, IdentitiesAnswer)
        shown.append(identities(data_dir, "list"))
        assert msgspec.json.decode(shown[-1], type=list[IdentityStatus]) == answer.identities
        capi.send_signal(signal.SIGKILL)
        capi.wait()
    said = str(capi.logs) + str(capi.text) + str(capi.output)
    assert [(one.name, one.shared, one.state, one.token_problem) for one in answer.identities] == [
        ("seat-0", True, "active", None),
        ("seat-1", False, "stopped", None),
    ]
    shown.append(identities(data_dir, "list"))
    assert shown[-1] == shown[-2], "without a server the command looks for itself"
    with faultless(gateway(data_dir, None)) as again:
        assert ask(data_dir, ListIdentities()) == answer
        again.terminate()
        assert again.wait() == 0
    said += str(again.logs) + str(again.text) + str(again.output)
    files = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    places = {path.relative_to(data_dir) for path, content in files.items() if b"s3cret" in content}
    assert places == {Path(TOKENS_NAME) / "seat-0.token", Path(TOKENS_NAME) / "seat-1.token"}
    assert all(stat.S_IMODE(os.lstat(data_dir / place).st_mode) == 0o600 for place in places)
    assert "s3cret" not in said + str(shown) + str(list(read_lines(data_dir)))
