"""What a gateway installs: the wheel with [edge] and nothing else, in a clean place."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.processes import AgentProcess, environment
from tests.integration.edge_agent.edge import ROOT, SHIRT, device, tiny

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.timeout(240),  # It builds a wheel and installs twenty packages.
]

SHIRT_FILE = ROOT / "examples" / "fashion" / "images" / "shirt.png"
BIN = Path(sys.executable).parent


def run(
    *command: str | Path, cwd: Path, succeeds: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout, with nothing of it on the path."""
    clean = environment()
    clean.pop("PYTHONPATH", None)
    clean.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert not succeeds or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a clean environment that holds the wheel with [edge]."""
    place = tmp_path_factory.mktemp("gateway")
    built = place / "dist"
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
        *("--outdir", built, ROOT),
        cwd=place,
    )
    (wheel,) = built.glob("overspill-*.whl")
    run(BIN / "uv", "venv", "--python", sys.executable, place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    install = (BIN / "uv", "pip", "install", "--quiet", "--python", python)
    locked = ("--require-hashes", "-r", ROOT / "requirements" / "edge.lock")
    # `make setup` has left all of these in uv's cache.
    cached = run(*install, "--offline", *locked, cwd=place, succeeds=False)
    if cached.returncode:
        sys.stderr.write(f"not in uv's cache, so from the index: {cached.stderr}")
        run(*install, *locked, cwd=place)
    run(*install, "--offline", "--no-deps", wheel, cwd=place)
    return python.parent


def test_it_holds_what_the_edge_needs_and_nothing_of_the_clouds(gateway: Path) -> None:
    listed = run(
        *(BIN / "uv", "pip", "list", "--format", "json"),
        *("--python", gateway / "python"),
        cwd=gateway,
    )
    names = {each["name"].lower() for each in json.loads(listed.stdout)}
    assert {"overspill", "ai-edge-litert", "amqtt", "aiomqtt"} <= names
    clouds = {"tensorflow", "tensorflow-cpu", "aio-pika", "aiormq", "sqlalchemy"}
    assert names.isdisjoint(clouds)
    run(BIN / "uv", "pip", "check", "--python", gateway / "python", cwd=gateway)
    helped = run(gateway / "overspill-agent", "--help", cwd=gateway)
    assert "run" in helped.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("overspill-worker", "run"),
        ("overspill", "model", "list"),
        ("overspill", "rollout", "start", "fashion", "2", "--wait", "5"),
        ("overspill", "demo"),
    ],
    ids=" ".join,
)
def test_a_program_that_needs_more_says_what_to_install(
    gateway: Path, words: tuple[str, ...]
) -> None:
    done = run(gateway / words[0], *words[1:], cwd=gateway, succeeds=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is not installed: run `pip install 'overspill[" in done.stderr


async def test_its_daemon_answers_an_image(
    gateway: Path, short_tmp: Path, free_port: int
) -> None:
    agent = AgentProcess(
        short_tmp,
        command=[str(gateway / "overspill-agent"), "run"],
        bundles=tiny(short_tmp / "tiny", threshold=0.0),
        embedded_port=free_port,
    )
    await agent.start()
    try:
        done = run(
            *(gateway / "overspill-agent", "infer", SHIRT_FILE, "--model", "fashion"),
            *("--state-dir", agent.state_dir),
            cwd=short_tmp,
        )
        answer = json.loads(done.stdout)
        assert (answer["status"], answer["source"]) == ("answered", "edge")
        async with device(f"mqtt://127.0.0.1:{free_port}") as cam:
            await cam.send("fashion", SHIRT)
            assert (await cam.next_answer(0))["label"] == answer["label"]
        assert await agent.end() == 0
    finally:
        await agent.end(signal.SIGKILL)


def test_the_agent_imports_nothing_of_the_clouds_even_where_it_is_installed(
    tmp_path: Path,
) -> None:
    done = run(
        *(sys.executable, "-X", "importtime"),
        *("-c", "import edge_agent.app, edge_agent.__main__"),
        cwd=tmp_path,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "edge_agent.app" in imported
    heads = {name.partition(".")[0] for name in imported}
    assert heads.isdisjoint({"tensorflow", "aio_pika", "aiormq", "sqlalchemy", "keras"})
    # Nor what only a port for metrics or a collector of traces needs.
    assert heads.isdisjoint({"h11", "prometheus_client", "opentelemetry"})
    assert "ai_edge_litert" not in heads  # Only a model brings it in.
