"""Many at once: the same answers, no error, no memory that grows.

./test.sh -m faults        # LOAD_SECONDS=60 of requests to the page
"""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import SENTENCE
from tests.runs import ROOT, free_port, wait_for_port

pytestmark = pytest.mark.faults
SECONDS = float(os.environ.get("LOAD_SECONDS", "60"))
REQUESTS = 50  # at any time
PROGRAMS = 10


def test_ten_programs_at_once_say_what_one_says(trained, record, tmp_path):
    command = [
        sys.executable,
        "inference.py",
        "--checkpoint",
        trained / "best_model.pth",
        "--device",
        "cpu",
        "--num_inference_steps",
        "4",
    ]
    outputs = [tmp_path / str(number) for number in range(1 + PROGRAMS)]
    alone = subprocess.run([*command, "--output_dir", outputs[0]], cwd=ROOT, capture_output=True, text=True, check=True)
    together = [
        subprocess.Popen(
            [*command, "--output_dir", output], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for output in outputs[1:]
    ]
    wrong = sum(process.communicate()[0] != alone.stdout or process.returncode != 0 for process in together)
    record("load", "inference.py, ten at once", tried=PROGRAMS, wrong=wrong)
    assert not wrong


def test_the_page_answers_fifty_requests_at_once(trained, record):
    client = pytest.importorskip("gradio_client")
    port = free_port()
    command = [
        sys.executable,
        "demo.py",
        "--checkpoint",
        trained / "best_model.pth",
        "--port",
        str(port),
        "--no-browser",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    model, answered, failed, memory = f"{trained.name}/best_model.pth", [], [], []
    try:
        wait_for_port(port, process)
        page, end = (
            client.Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False),
            time.time() + SECONDS,
        )

        def ask(number: int) -> None:
            while time.time() < end:
                name, arguments = (
                    ("/on_recover", (model, SENTENCE, 0.1, 2, number)), ("/on_write", (model, SENTENCE[:20], 48, 4, 0.9, number)),
                )[number % 2]  # fmt: skip
                try:
                    answered.append(page.submit(*arguments, api_name=name).result(timeout=300))
                except Exception as error:
                    failed.append(error)
                memory.append(resident(process.pid))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(REQUESTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alive = process.poll() is None
    finally:
        process.terminate()
        process.wait()
    half = len(memory) // 2
    grown = max(memory[half:]) / max(memory[:half])
    wrong = len(failed) + (not alive) + (grown > 1.2)
    record("load", "demo.py, fifty requests at once", tried=len(answered) + len(failed), wrong=wrong)
    print(f"{len(answered)} answers, at most {max(memory) >> 20} MiB, second half {grown:.3f} times the first")
    assert not wrong, (failed[:3], grown)


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) << 10
