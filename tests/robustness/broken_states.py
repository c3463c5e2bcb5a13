"""What commands left behind and read when they go on, broken; see ``kinds``."""

from __future__ import annotations

import json
import shutil
import threading
from base64 import b64encode
from dataclasses import replace
from hashlib import md5
from pathlib import Path

from kinds import accepted, break_file, break_json, choose, judged_call, kind
from mutations import Rng
from outcomes import Outcome, run
from samples import TRAINING, Samples

from flexgs_lightning.data.benchmarks import find_benchmark
from flexgs_lightning.data.transfer import fetch
from flexgs_lightning.deploy.web.serve import static_server
from flexgs_lightning.evaluation.benchmark.report import write_report


@kind(4)
def study_record(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """What a comparison or a rate-distortion run finds of itself when it goes on."""
    name = choose(rng, samples.studies)
    output = Path(shutil.copytree(samples.studies[name], folder / name))
    broken = choose(rng, [*sorted(output.rglob("cell.json")), *sorted(output.rglob("facts.json"))])
    break_json(broken, rng)
    outcome = run([*samples.study(name), "--output", str(output)], (broken.name, str(output)))
    return accepted(outcome, lambda: len(list(output.glob("*.json"))) == 1)


@kind(4)
def benchmark_run(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """Metrics, or the options, of a finished scene, as the benchmark's report reads them."""
    runs = Path(shutil.copytree(samples.benchmark, folder / "runs"))
    version = runs / "garden" / "version_0"
    if rng.random() < 0.8:
        break_json(version / "metrics.json", rng)
    else:
        break_file(version / "config.yaml", rng)
    published = find_benchmark("mipnerf360")
    outcome = judged_call(
        lambda: write_report(published, "mipnerf360", runs), ("metrics.json", "config.yaml")
    )
    return accepted(outcome, lambda: "scenes" in json.loads((runs / "benchmark.json").read_text()))


@kind(3)
def processed_capture(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """The report of finished structure from motion, which the same command reads."""
    output = Path(shutil.copytree(samples.processed, folder / "capture"))
    break_json(output / "process.json", rng)
    options = ["--output", str(output), "--camera_model", "PINHOLE"]
    return run(["data", "process", str(samples.binary / "images"), *options], ("process.json", str(output)))


@kind(3)
def download_note(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """What is known of a file that has arrived in part: the whole must arrive all the same."""
    content = samples.exported.read_bytes()
    path, note = folder / "file.ply", folder / "file.ply.part.json"
    with static_server(samples.site, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/{samples.exported.name}"
            changed = (samples.site / samples.exported.name).stat().st_mtime_ns
            known = {"url": url, "validator": f'"{changed:x}-{len(content):x}"', "size": len(content)}
            digest = b64encode(md5(content).digest()).decode()
            note.write_text(json.dumps(known | {"md5": digest}))
            break_json(note, rng)
            (folder / "file.ply.part").write_bytes(content[: int(rng.integers(len(content)))])
            outcome = judged_call(lambda: fetch(url, path, first_pause=0.0), (url, note.name))
        finally:
            server.shutdown()
            thread.join()
    return accepted(outcome, lambda: path.read_bytes() == content)


@kind(3)
def start(samples: Samples, folder: Path, rng: Rng) -> Outcome:
    """A scene that training starts from or takes for its capture, or the cameras that look at that."""
    source = samples.splats[choose(rng, ("ply", "spz", "sog", "splat", "glb"))]
    scene, cameras = Path(shutil.copy(source, folder)), Path(shutil.copy(samples.path, folder))
    choice = choose(rng, ("start_from", "start_from", "cameras", "cameras", "root"))
    (break_json if choice == "cameras" else break_file)(cameras if choice == "cameras" else scene, rng)
    runs = folder / "runs"
    if choice == "start_from":
        options = [f"--data.root={samples.binary}", f"--start_from={scene}"]
    else:
        options = [f"--start_from={scene}", "--data.views=4", "--data.view_size=48"]
        options += [f"--data.cameras={cameras}"] if choice == "cameras" else []
    outcome = run(["fit", *options, f"--runs={runs}", *TRAINING], (scene.name, cameras.name))
    if outcome.status != 0 and runs.exists():
        return replace(outcome, fault=outcome.fault or "a run folder after a refusal")
    return outcome
