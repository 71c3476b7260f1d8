"""`edged deploy` when its answer does not come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.cli.client import Client
from edged.errors import Unreachable


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Unreachable("gone", url="http://n1")])
def test_a_deploy_whose_answer_is_missing_may_have_taken_effect(
    cli: Any, module_file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    call = Client.call

    def failing(self: Client, method: str, path: str, **rest: Any) -> bytes:
        if path.startswith("/v1/functions/"):
            raise error
        return call(self, method, path, **rest)

    monkeypatch.setattr(Client, "call", failing)
    done = cli("deploy", module_file)
    assert done.exit_code != 0
    assert "the deploy may have taken effect: edged describe hello tells" in done.stderr
