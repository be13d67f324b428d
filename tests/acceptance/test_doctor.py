"""`overspill doctor` on the machine that the tests run on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.acceptance

DOCTOR = [sys.executable, "-m", "overspill", "doctor", "--json"]


@pytest.mark.timeout(180)  # TensorFlow is imported, in a process of its own
def test_a_machine_that_runs_the_tests_is_well() -> None:
    ran = subprocess.run(
        DOCTOR, capture_output=True, text=True, timeout=170, check=False
    )

    assert ran.returncode == 0, ran.stdout
    said = json.loads(ran.stdout)
    found = {each["name"]: each for each in said["findings"]}
    assert said["ok"]
    assert found["RabbitMQ"]["found"][0].isdigit()
    for name in ("Python", "LiteRT", "TensorFlow", "RabbitMQ MQTT plugin", "disk"):
        assert found[name]["verdict"] == "ok"
