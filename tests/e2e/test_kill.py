"""`kill -9` at random moments: what was acknowledged is there, and the audit log has each change once.

CAPI_KILL_ROUNDS says how often (default 20, and 200 with CAPI_FULL=1), CAPI_KILL_SEED where the dice begin.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import msgspec
import pytest

from capi_core.audit import Action
from capi_core.keys import Tier
from capi_trio.bootstrap import ADMIN_KEY_NAME
from capi_trio.control import ask
from capi_trio.operations import CreateKey, KeyAnswer, KeysAnswer, ListKeys, RevokeKey
from capi_trio.storage.audit_log import read_lines
from tests.support.process import Capi, IssuedKey, command
from tests.support.scale import FULL, tell

ROUNDS: Final = int(os.environ.get("CAPI_KILL_ROUNDS", "200" if FULL else "20"))
SEED: Final = int(os.environ.get("CAPI_KILL_SEED", "1"))
LATEST_S: Final = 0.5
"""A running server is killed at most this long after it began to work."""
STARTING_S: Final = 1.5
"""One that starts is killed at most this long after its process began."""
OPERATORS: Final = 3

# Replaces the file over and over, with documents of different lengths, until it is killed too.
WRITE_CONFIG: Final = """
import itertools, pathlib, sys
from capi_trio.configstore import write
for number in itertools.count():
    models = ",".join(f'"alias-{n}":{{"upstream":"demo-chat"}}' for n in range(number % 200))
    write(pathlib.Path(sys.argv[1]), b'{"upstreams":{"demo":{"kind":"demo"}},"models":{%b}}' % models.encode())
    if number == 0:
        print(flush=True)
"""


class Operators:
    """Who creates and revokes keys all the time, and remembers what was acknowledged."""

    def __init__(self, data_dir: Path) -> None:
        self.created: list[IssuedKey] = []
        self.revoked: set[str] = set()
        self.to_be_revoked: set[str] = set()
        """Ids for which somebody asked it, whether or not there was time for an answer."""
        self._data_dir = data_dir
        self._lock = threading.Lock()
        self._numbers = random.Random(SEED)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """They work as long as the block runs and the server lives."""
        over = threading.Event()
        by_socket = [threading.Thread(target=self._ask, args=(over,)) for _ in range(OPERATORS)]
        workers = [*by_socket, threading.Thread(target=self._run_command)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            over.set()
            for worker in workers:
                worker.join()

    def _ask(self, over: threading.Event) -> None:
        """What the commands have the server do, without the start of a process for each."""
        while not over.is_set():
            try:
                answer = ask(self._data_dir, self._next())
            except OSError:
                return  # killed: whether that one was done, nobody was told
            if isinstance(answer, KeyAnswer):
                self._acknowledged(answer)

    def _next(self) -> CreateKey | RevokeKey:
        with self._lock:
            left = [key.id for key in self.created if key.id not in self.revoked]
            if left and self._numbers.random() < 0.3:
                key_id = self._numbers.choice(left)
                self.to_be_revoked.add(key_id)
                return RevokeKey(key_id)
            return CreateKey(label=f"number {len(self.created)}")

    def _acknowledged(self, answer: KeyAnswer) -> None:
        with self._lock:
            if answer.text is not None:
                self.created.append(IssuedKey(answer.key.id, answer.text))
            else:
                self.revoked.add(answer.key.id)

    def _run_command(self) -> None:
        """One real command, which finds the server or, when it is dead by then, does its work itself."""
        file = self._data_dir.with_name(f"key-{time.monotonic_ns()}")
        options = ("--data-dir", str(self._data_dir), "--key-file", str(file), "--json")
        done = command("keys", "create", "by command", *options)
        if done.returncode == 0:
            made = msgspec.json.decode(done.stdout, type=dict[str, object])
            with self._lock:
                self.created.append(IssuedKey(str(made["id"]), file.read_text().strip()))


@contextmanager
def config_writer(path: Path) -> Iterator[None]:
    """Somebody who edits the configuration all the time, and is killed at the end of the block."""
    command_line = [sys.executable, "-c", WRITE_CONFIG, str(path)]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603 - our own program
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == "\n"
            yield
        finally:
            writer.kill()


def kill_once(data_dir: Path, operators: Operators, dice: random.Random, *, while_starting: bool) -> None:
    capi = Capi("start", "--port", "0", "--data-dir", str(data_dir))
    try:
        if while_starting:
            time.sleep(dice.uniform(0, STARTING_S))
            capi.send_signal(signal.SIGKILL)
        else:
            capi.wait_ready()
            with operators.at_work(), config_writer(data_dir / "config.json"):
                time.sleep(dice.uniform(0, LATEST_S))
                capi.send_signal(signal.SIGKILL)
        assert capi.wait() == -signal.SIGKILL
    finally:
        capi.close()
    assert capi.faults == []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "capi"


def test_nothing_acknowledged_is_lost_and_nothing_is_torn_or_counted_twice(data_dir: Path) -> None:
    dice = random.Random(SEED)
    operators = Operators(data_dir)
    for number in range(ROUNDS):
        # Also the very first start, which makes the data directory, the configuration and the admin key.
        kill_once(data_dir, operators, dice, while_starting=number % 3 == 0)
        if (data_dir / "config.json").exists():
            msgspec.json.decode((data_dir / "config.json").read_bytes(), type=dict[str, object])
    capi = Capi("start", "--port", "0", "--data-dir", str(data_dir))
    try:
        capi.wait_ready()
        listed = ask(data_dir, ListKeys())
        assert isinstance(listed, KeysAnswer)
        check_keys(capi, data_dir, operators, listed)
        capi.terminate()
        assert capi.wait() == 0
    finally:
        capi.close()
    check_audit(data_dir, listed)
    revoked = len(operators.revoked)
    tell(f"{ROUNDS} kills, {len(operators.created)} keys made, {revoked} revoked: all there")


def check_keys(capi: Capi, data_dir: Path, operators: Operators, listed: KeysAnswer) -> None:
    """Each acknowledged key is there, and opens unless it was revoked."""
    revoked = {key.id for key in listed.keys if key.revoked_at is not None}
    assert operators.revoked <= revoked <= operators.to_be_revoked
    assert {key.id for key in operators.created} <= {key.id for key in listed.keys}
    admin_key = (data_dir / ADMIN_KEY_NAME).read_text().strip()
    (data_dir / ADMIN_KEY_NAME).unlink()
    wanted = {key.text: 401 if key.id in revoked else 200 for key in operators.created}
    with httpx.Client(base_url=capi.url, timeout=10) as client:
        for text, status in {admin_key: 200, **wanted}.items():
            assert client.get("/v1/models", headers={"x-api-key": text}).status_code == status


def check_audit(data_dir: Path, listed: KeysAnswer) -> None:
    """As many lines as changes, none missing, none twice, in an unbroken chain."""
    verified = command("audit", "verify", "--data-dir", str(data_dir))
    assert verified.returncode == 0, verified.stderr
    lines = [msgspec.json.decode(line, type=dict[str, object]) for line in read_lines(data_dir)]
    clients = [key for key in listed.keys if key.tier == Tier.CLIENT.value]
    assert targets(lines, Action.KEY_CREATE) == Counter(key.id for key in clients)
    assert targets(lines, Action.KEY_REVOKE) == Counter(key.id for key in listed.keys if key.revoked_at is not None)
    admins = Counter(key.id for key in listed.keys if key.tier == Tier.ADMIN.value)
    assert targets(lines, Action.AUTH_BOOTSTRAP) == admins
    assert admins.total() == 1


def targets(lines: list[dict[str, object]], action: Action) -> Counter[str]:
    return Counter(str(line["target"]) for line in lines if line["action"] == action.value)
