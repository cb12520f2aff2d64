"""A key's budget, held by a gateway that runs, over every protocol, and by the one that starts after it."""

from pathlib import Path

import anthropic
import openai
import pytest

from capi_core.keys import BudgetPeriod, BudgetUnit
from capi_trio.operations import BudgetChoice, CreateKey
from tests.e2e.conftest import faultless
from tests.support.process import Capi, gateway, issue_key

QUICK = '[[demo {"pace_ms": 0}]]'
CONFIG = {
    "upstreams": {"demo": {"kind": "demo"}},
    "prices": {"demo-*": {"input": 1, "cache_read": 1, "cache_write": 1, "output": 1_000_000}},
}


def spend(capi: Capi, key: str, protocol: str) -> None:
    if protocol == "messages":
        with anthropic.Anthropic(base_url=capi.url, api_key=key, max_retries=0, timeout=30) as claude:
            claude.messages.create(
                model="demo-claude", max_tokens=500, messages=[{"role": "user", "content": f"hello {QUICK}"}]
            )
        return
    with openai.OpenAI(base_url=f"{capi.url}/v1", api_key=key, max_retries=0, timeout=30) as sdk:
        if protocol == "chat":
            sdk.chat.completions.create(model="demo-chat", messages=[{"role": "user", "content": f"hello {QUICK}"}])
        else:
            sdk.responses.create(model="demo-gpt", input=f"hello {QUICK}")


@pytest.mark.parametrize(
    ("unit", "amount"), [(BudgetUnit.TOKENS, 50), (BudgetUnit.MONEY, 1_000_000)], ids=["tokens", "money"]
)
def test_a_key_spends_its_budget_and_no_more(tmp_path: Path, unit: BudgetUnit, amount: int) -> None:
    """The first answer is more than it may spend: there is no second one, in any protocol, nor after a restart."""
    budget = BudgetChoice(amount, unit, BudgetPeriod.MONTH)
    with faultless(gateway(tmp_path, CONFIG, auth=True)) as capi:
        key = issue_key(tmp_path, CreateKey(label="small", budget=budget)).text
        free = issue_key(tmp_path, CreateKey(label="free")).text
        spend(capi, key, "chat")
        for protocol, refusal in (
            ("chat", openai.RateLimitError),
            ("responses", openai.RateLimitError),
            ("messages", anthropic.RateLimitError),
        ):
            with pytest.raises(refusal) as refused:
                spend(capi, key, protocol)
            assert "budget" in str(refused.value)
            assert isinstance(refused.value, openai.RateLimitError | anthropic.RateLimitError)
            assert int(refused.value.response.headers["retry-after"]) > 0
        spend(capi, free, "chat")
        assert len(capi.events("budget_warning")) == 1
        capi.terminate()
        assert capi.wait() == 0
    with faultless(gateway(tmp_path, None, auth=True)) as capi:
        with pytest.raises(openai.RateLimitError):
            spend(capi, key, "chat")
        assert capi.log_line("exchange", outcome="refused_budget")["upstream"] is None
        spend(capi, free, "chat")
